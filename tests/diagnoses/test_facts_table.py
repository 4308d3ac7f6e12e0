"""Each fingerprint that practice left: one small file, told by title, suspect, cause and command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import patients
import pytest

import ckptdoctor
from ckptdoctor import cli
from ckptdoctor.errors import CkptDoctorError

NAN, INF = np.float32("nan"), np.float32("inf")
State = dict[str, np.ndarray]
SCALER = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}


def spoilt(spoil: Callable[[State], None], **tree: Any) -> Callable[[Path], Path]:
    """Torch file of the healthy network after ``spoil``; with ``tree``, around its state dict."""

    def write(folder: Path) -> Path:
        weights = patients.state()
        spoil(weights)
        around = {key: make(weights) for key, make in tree.items()}
        return patients.save_torch(
            folder / "m.pt", {"model": weights, **around} if tree else weights
        )

    return write


def setting(value: float, *names: str, share: int | None = None) -> Callable[[State], None]:
    """Set tensors, or their first ``share`` elements, to a value."""

    def spoil(weights: State) -> None:
        for name in names:
            weights[name].reshape(-1)[:share] = value

    return spoil


def both(*spoils: Callable[[State], None]) -> Callable[[State], None]:
    def spoil(weights: State) -> None:
        for each in spoils:
            each(weights)

    return spoil


def founding_case(folder: Path) -> Path:
    layers = patients.keras_state()
    layers["bn2"]["moving_variance"][:] = np.linspace(1601, 8958, 16)
    for part in ("moving_mean", "moving_variance"):
        layers["bn3"][part][:] = NAN
    return patients.save_keras(folder / "m.h5", layers, policy="mixed_float16", scaled=True)


def keras_zero_variance(folder: Path) -> Path:
    layers = patients.keras_state()
    layers["bn2"]["moving_variance"][:] = 0
    return patients.save_keras(folder / "m.h5", layers)


def keras_momentum_one(folder: Path) -> Path:
    layers = patients.keras_state()
    for name in ("bn1", "bn2", "bn3"):
        layers[name]["moving_mean"][:], layers[name]["moving_variance"][:] = 0, 1
    return patients.save_keras(folder / "m.h5", layers, momentum=1.0)


def torch_scaler(folder: Path) -> Path:
    """Overflow of all layers beside a scaler that skipped a step five steps ago."""
    weights = patients.state()
    names = [f"bn{i}.running_{part}" for i in (1, 2, 3) for part in ("mean", "var")]
    setting(NAN, *names)(weights)
    weights["bn1.running_mean"][0] = INF
    scaler = {"scale": 512.0, **SCALER, "_growth_tracker": 5}
    return patients.save_torch(
        folder / "m.pt",
        {"model": weights, "optimizer": patients.adam(weights), "scaler": scaler, "epoch": 4},
    )


def half_file(folder: Path) -> Path:
    weights = patients.state()
    setting(INF, "bn1.running_var", share=2)(weights)
    half = {n: v.astype(np.float16) if v.dtype == np.float32 else v for n, v in weights.items()}
    return patients.save_torch(folder / "m.pt", half)


def weight_norm(folder: Path) -> Path:
    weights = patients.state()
    weights["fc.weight_v"] = weights.pop("fc.weight")
    weights["fc.weight_g"] = np.linalg.norm(weights["fc.weight_v"], axis=1, keepdims=True)
    weights["fc.weight_v"][2] = 0
    return patients.save_torch(folder / "m.pt", weights)


def zero3(folder: Path) -> Path:
    weights = patients.state()
    for name in patients.parameters(weights):
        weights[name] = np.empty((0,), np.float32)
    return patients.save_torch(folder / "m.pt", weights)


def flipped_bit(folder: Path) -> Path:
    weights = patients.state()
    weights["conv2.weight"].view(np.uint32).reshape(-1)[100] ^= 1 << 30
    return patients.save_torch(folder / "m.pt", weights)


def averaged(folder: Path) -> Path:
    weights = patients.state()
    for i in (1, 2, 3):
        setting(0, f"bn{i}.running_mean")(weights)
        setting(1, f"bn{i}.running_var")(weights)
    weights["n_averaged"] = np.array(10, np.int64)
    return patients.save_torch(folder / "m.pt", weights)


def poisoned(spoil: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        weights = patients.state()
        optimizer = patients.adam(weights)
        spoil(optimizer["state"][3])
        return patients.save_torch(folder / "m.pt", {"model": weights, "optimizer": optimizer})

    return write


def scaled_to(scale: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        weights = patients.state()
        scaler = {"scale": scale, **SCALER, "_growth_tracker": 0}
        tree = {"model": weights, "optimizer": patients.adam(weights), "scaler": scaler}
        return patients.save_torch(folder / "m.pt", tree)

    return write


def copies(sick: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tree = {"model": patients.state(), "ema_state_dict": patients.state()}
        setting(NAN, *patients.parameters(tree[sick]))(tree[sick])
        return patients.save_torch(folder / "m.pt", tree)

    return write


def diverged(folder: Path) -> Path:
    weights = patients.state()
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"):
        weights[name] *= np.float32(1e9)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": [0]}]}
    return patients.save_torch(folder / "m.pt", {"model": weights, "optimizer": optimizer})


@dataclass(frozen=True)
class Row:
    name: str
    write: Callable[[Path], Path]
    key: str
    suspect: str
    cause: str
    confidence: str


ROWS = (
    Row("founding case", founding_case, "bn-stats-nan", "bn2", "overflow-skipped-step", "high"),
    Row("overflow beside a scaler", torch_scaler, "bn-stats-nan", "model.bn1",
        "overflow-skipped-step", "high"),
    Row("NaN statistics, no trace of float16",
        spoilt(setting(NAN, *[f"bn{i}.running_{p}" for i in (1, 2, 3) for p in ("mean", "var")])),
        "bn-stats-nan", "bn1", "nonfinite-input", "medium"),
    Row("variance NaN, mean finite", spoilt(setting(NAN, "bn3.running_var")),
        "bn-var-nan", "bn3", "batch-of-one", "high"),
    Row("variance 0 in a whole Keras layer", keras_zero_variance,
        "bn-var-zero", "bn2", "batch-of-one", "medium"),
    Row("variance +Inf, mean finite", spoilt(setting(INF, "bn2.running_var")),
        "bn-var-inf", "bn2", "huge-sample", "high"),
    Row("variance exploded, finite", spoilt(setting(3e6, "bn2.running_var")),
        "bn-var-exploded", "bn2", "exploded-activations", "medium"),
    Row("negative variance", spoilt(setting(-0.7, "bn2.running_var", share=3)),
        "bn-var-negative", "bn2", "checkpoint-arithmetic", "medium"),
    Row("statistics that never moved",
        spoilt(both(*[setting(0, f"bn{i}.running_mean") for i in (1, 2, 3)],
                    *[setting(1, f"bn{i}.running_var") for i in (1, 2, 3)])),
        "bn-stats-stale", "bn1", "momentum-zero", "medium"),
    Row("the same with Keras' momentum stored", keras_momentum_one,
        "bn-stats-stale", "bn1", "momentum-zero", "high"),
    Row("the same with averaged weights", averaged,
        "bn-stats-stale", "bn1", "averaged-weights", "high"),
    Row("statistics beyond float16", half_file, "bn-cast-to-half", "bn1", "cast-to-half", "high"),
    Row("weights NaN, statistics finite",
        spoilt(setting(NAN, *patients.parameters(patients.state()))),
        "weights-nonfinite", "conv1", "update-step", "high"),
    Row("only the head NaN", spoilt(setting(NAN, "fc.weight", "fc.bias")),
        "weights-nonfinite", "fc", "update-step", "high"),
    Row("one NaN in a kernel", spoilt(setting(NAN, "conv2.weight", share=1)),
        "weights-few-nonfinite", "conv2", "corrupted-write", "medium"),
    Row("moments Inf, weights finite", poisoned(lambda s: s["exp_avg_sq"].fill(INF)),
        "optimizer-poisoned", "model.conv2", "gradient-spike", "high"),
    Row("moments NaN, weights finite", poisoned(lambda s: s["exp_avg"].fill(NAN)),
        "optimizer-poisoned", "model.conv2", "gradient-spike", "high"),
    Row("second moment negative", poisoned(lambda s: s["exp_avg_sq"].fill(-1)),
        "optimizer-poisoned", "optimizer.state.3", "edited-state", "medium"),
    Row("loss scale 0", scaled_to(0.0),
        "loss-scale-collapsed", "scaler.scale", "skipped-steps", "high"),
    Row("loss scale far below 1", scaled_to(2.0**-40),
        "loss-scale-collapsed", "scaler.scale", "skipped-steps", "high"),
    Row("EMA NaN, model finite", copies("ema_state_dict"),
        "one-copy-intact", "ema_state_dict.conv1", "transient-nan", "high"),
    Row("model NaN, EMA finite", copies("model"),
        "one-copy-intact", "model.conv1", "transient-nan", "high"),
    Row("weights 1e8 and more", diverged, "weights-exploded", "model.conv1", "learning-rate", "high"),
    Row("a flipped exponent bit", flipped_bit,
        "weights-flipped-bit", "conv2", "corrupted-write", "medium"),
    Row("weight_norm with a zero row", weight_norm,
        "weightnorm-zero-row", "fc", "pruned-row", "medium"),
    Row("ZeRO-3 placeholders", zero3, "weights-empty", "conv1", "zero3-partition", "high"),
)  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
class TestRow:
    def test_diagnosis_names_illness_suspect_and_cause(self, row: Row, tmp_path: Path) -> None:
        path = row.write(tmp_path)
        report = ckptdoctor.inspect(path)
        assert report.diagnoses, [f.code for f in report.findings]
        top = report.diagnoses[0]
        assert (top.key, top.suspect) == (row.key, row.suspect)
        assert (top.causes[0].name, top.causes[0].confidence) == (row.cause, row.confidence)
        assert top.title
        assert top.inference
        assert top.repair

    def test_next_command_runs_and_exits_as_it_says(
        self, row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = row.write(tmp_path)
        for diagnosis in ckptdoctor.inspect(path).diagnoses:
            words = shlex.split(diagnosis.next)
            assert words.pop(0) == "ckptdoctor"
            told = re.search(r"[Ee]xit code (\d)", diagnosis.next_tells)
            assert told, diagnosis.next_tells
            assert cli.run(words) == int(told[1]), (diagnosis.next, capsys.readouterr())
        assert capsys.readouterr().err == ""


def test_healthy_network_has_no_diagnosis(tmp_path: Path) -> None:
    weights = patients.state()
    tree = {"model": weights, "optimizer": patients.adam(weights), "epoch": 12}
    for path in (
        patients.save_torch(tmp_path / "m.pt", tree),
        patients.save_keras(tmp_path / "m.h5", patients.keras_state(), policy="mixed_float16"),
    ):
        report = ckptdoctor.inspect(path)
        assert report.diagnoses == ()


def test_statistics_of_0_and_1_without_a_trained_batch_are_no_fault(tmp_path: Path) -> None:
    weights = patients.state()
    for i in (1, 2, 3):
        weights[f"bn{i}.running_mean"][:], weights[f"bn{i}.running_var"][:] = 0, 1
        weights[f"bn{i}.weight"][:], weights[f"bn{i}.bias"][:] = 1, 0
        weights[f"bn{i}.num_batches_tracked"] = np.array(0, np.int64)
    report = ckptdoctor.inspect(patients.save_torch(tmp_path / "m.pt", weights))
    assert report.diagnoses == ()


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (POINTER, r"Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>", r"HTML page"),
        (bytes(4096), r"zero"),
    ],
    ids=["a Git LFS pointer", "an error page", "an interrupted download"],
)
def test_what_is_no_checkpoint_is_refused_with_what_to_do(
    data: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(data)
    with pytest.raises(CkptDoctorError) as caught:
        ckptdoctor.inspect(path)
    assert caught.value.hint
    assert re.search(told, f"{caught.value.message} {caught.value.hint}")
