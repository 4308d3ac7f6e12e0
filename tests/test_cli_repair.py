"""``ckptdoctor repair``: exit codes, what is written where, what a user reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import patients
import pytest

import ckptdoctor
from ckptdoctor.cli import run

NAN = float("nan")
SAMPLES = Path(__file__).parents[1] / "sample_checkpoints"
FOUNDING = sorted((SAMPLES / "sick").glob("bn001-overflow-skipped-step.*"))


@pytest.fixture
def sick(tmp_path):
    """A BatchNorm with one lost channel; every weight is sound."""
    weights = patients.state()
    name = next(name for name in weights if name.endswith("running_var"))
    for part in ("running_var", "running_mean"):
        weights[name.replace("running_var", part)][1] = np.nan
    return patients.save_torch(tmp_path / "model.pt", weights)


@pytest.fixture
def sound(tmp_path):
    return patients.save_torch(tmp_path / "sound.pt", patients.state())


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


class TestExitCodes:
    def test_done_as_asked_is_0(self, sick, capsys):
        assert run(["repair", str(sick), "--bn-reset"]) == 0
        assert names(sick.parent) == ["model.pt", "model.repaired.pt"]
        assert "BN001" not in {
            f.code for f in ckptdoctor.inspect(sick.with_name("model.repaired.pt")).findings
        }

    def test_remainder_is_1_and_the_copy_is_there(self, sick, capsys):
        assert run(["repair", str(sick)]) == 1
        assert sick.with_name("model.repaired.pt").read_bytes() == sick.read_bytes()
        assert "--bn-reset" in capsys.readouterr().out

    def test_nothing_to_repair_is_0_and_an_identical_copy(self, sound, capsys):
        assert run(["repair", str(sound)]) == 0
        assert sound.with_name("sound.repaired.pt").read_bytes() == sound.read_bytes()
        assert "identical copy" in " ".join(capsys.readouterr().out.split())

    def test_dry_run_writes_nothing(self, sick, capsys):
        assert run(["repair", str(sick), "-n"]) == 1
        assert run(["repair", str(sick), "-n", "--bn-reset"]) == 0
        assert names(sick.parent) == ["model.pt"]

    @pytest.mark.parametrize(
        "words",
        [
            ["absent.pt"],
            ["model.pt", "--donor", "absent.pt"],
            ["model.pt", "-o", "model.pt"],
            ["model.pt", "-o", "absent/model.pt"],
            ["model.pt", "-o", "folder"],
            ["model.pt", "-o", "other.pt", "--in-place"],
            ["model.pt", "--tensor", "no.such.*", "--bn-reset"],
            ["model.pt", "--reinit", "no.such.*"],
            ["model.pt", "--reinit", "*=no_such_law"],
            ["model.pt", "--set", "no.such=1"],
            ["model.pt", "--set", "nonsense"],
            ["model.pt", "--set", "lr=fast"],
            ["model.pt", "--bn-scope", "everything"],
            ["model.pt", "--allow", "anything"],
            ["model.pt", "--from-plan", "absent.json"],
            ["model.pt", "--receipt", "model.pt"],
            ["model.pt", "--write-plan", "folder"],
            ["model.pt", "--donor", "model.pt"],
            [],
        ],
        ids=" ".join,
    )
    def test_declined_is_2_in_one_line_and_nothing_is_written(
        self, words, sick, capsys, monkeypatch
    ):
        monkeypatch.chdir(sick.parent)
        Path("folder").mkdir()
        before = names(".")
        assert run(["repair", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert names(".") == before
        assert not list(Path("folder").iterdir())

    def test_unreadable_is_3(self, tmp_path, capsys):
        path = tmp_path / "m.safetensors"
        path.write_bytes((1000).to_bytes(8, "little") + b'{"w": ')
        assert run(["repair", str(path), "--bn-reset"]) == 3
        assert names(tmp_path) == ["m.safetensors"]
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("call", ["write", "fsync", "replace"])
    def test_unwritable_is_3_and_nothing_is_left(self, call, sick, capsys, monkeypatch):
        def refuse(*_):
            raise OSError(28, "No space left on device")

        where = (Path, "replace") if call == "replace" else (os, call)
        monkeypatch.setattr(*where, refuse)
        assert run(["repair", str(sick), "--bn-reset"]) == 3
        monkeypatch.undo()
        assert names(sick.parent) == ["model.pt"]
        assert "No space left on device" in capsys.readouterr().err


class TestPlaces:
    def test_existing_output_needs_force_unless_it_is_the_same(self, sick, capsys):
        out = sick.with_name("out.pt")
        out.write_bytes(b"mine")
        words = ["repair", str(sick), "--bn-reset", "-o", str(out)]
        assert run(words) == 2
        assert out.read_bytes() == b"mine"
        assert "--force" in capsys.readouterr().err
        assert run([*words, "--force"]) == 0
        written = out.stat()
        assert run(words) == 0
        assert (out.stat().st_ino, out.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)

    def test_in_place_keeps_the_original(self, sick, capsys):
        original = sick.read_bytes()
        assert run(["repair", str(sick), "--bn-reset", "--in-place"]) == 0
        assert names(sick.parent) == ["model.pt", "model.pt.orig"]
        assert sick.with_name("model.pt.orig").read_bytes() == original
        repaired = sick.read_bytes()
        assert repaired != original
        assert run(["repair", str(sick), "--bn-reset", "--in-place"]) == 0
        assert sick.read_bytes() == repaired

    def test_in_place_without_backup(self, sick):
        assert run(["repair", str(sick), "--bn-reset", "--in-place", "--no-backup"]) == 0
        assert names(sick.parent) == ["model.pt"]

    def test_plan_then_repair_gives_what_repair_gives(self, sick, capsys):
        folder = sick.parent
        plan, receipt = str(folder / "plan.json"), str(folder / "receipt.json")
        assert run(["repair", str(sick), "--bn-reset", "-n", "--write-plan", plan]) == 0
        words = ["repair", str(sick), "-o", str(folder / "a.pt")]
        assert run([*words, "--from-plan", plan, "--receipt", receipt]) == 0
        assert run(["repair", str(sick), "--bn-reset", "-o", str(folder / "b.pt")]) == 0
        assert (folder / "a.pt").read_bytes() == (folder / "b.pt").read_bytes()
        assert json.loads(Path(receipt).read_text())["files"][0]["runs"]

    def test_plan_of_another_file_is_declined(self, sick, sound, capsys):
        plan = str(sick.with_name("plan.json"))
        assert run(["repair", str(sick), "--bn-reset", "-n", "--write-plan", plan]) == 0
        assert run(["repair", str(sound), "--from-plan", plan]) == 2
        assert "made for a file of" in capsys.readouterr().err


class TestOutput:
    def test_json_is_one_document(self, sick, capsys):
        assert run(["repair", str(sick), "--bn-reset", "--format", "json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["schema"] == 1
        assert told["repair"]["done"] is True

    def test_quiet_is_one_line(self, sick, capsys):
        assert run(["repair", str(sick), "--bn-reset", "--quiet"]) == 0
        assert capsys.readouterr().out.count("\n") == 1

    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_nothing_but_commands_is_wider_than_the_terminal(
        self, width, sick, capsys, monkeypatch
    ):
        monkeypatch.chdir(sick.parent)
        monkeypatch.setenv("COLUMNS", str(width))
        run(["repair", "model.pt"])
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= width or "ckptdoctor " in line

    def test_progress_is_not_written_to_a_pipe(self, sick):
        command = [sys.executable, "-m", "ckptdoctor", "repair", str(sick), "--bn-reset"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")

    def test_donor_and_what_it_gave_are_told(self, sick, sound, capsys):
        assert run(["repair", str(sick), "--donor", str(sound)]) == 0
        out = capsys.readouterr().out
        assert "tensors match" in out
        assert "donor, statistical" in out

    def test_interrupted_is_130_and_nothing_is_left(self, sick, monkeypatch, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("ckptdoctor.write.fill.copy_file", interrupt)
        assert run(["repair", str(sick), "--bn-reset"]) == 130
        assert names(sick.parent) == ["model.pt"]


@pytest.mark.parametrize("path", FOUNDING, ids=lambda path: "".join(path.suffixes))
def test_founding_case_in_every_layout_becomes_finite_in_one_command(path, tmp_path):
    out = tmp_path / f"out{''.join(path.suffixes)}"
    assert run(["repair", str(path), "--bn-reset", "-o", str(out)]) == 0
    report = ckptdoctor.inspect(out)
    assert not {"BN001", "BN002", "BN003", "NF001", "NF002"} & {f.code for f in report.findings}
    before, after = path.read_bytes(), out.read_bytes()
    assert len(before) == len(after)
    assert 0 < sum(a != b for a, b in zip(before, after, strict=True)) < 1000


def test_reset_of_every_healthy_sample_is_the_sample(tmp_path):
    for number, path in enumerate(sorted((SAMPLES / "healthy").rglob("*"))):
        if path.is_dir() or path.name.endswith(".json") or "-of-" in path.name:
            continue
        for words in ({}, {"bn_reset": True}):
            out = tmp_path / f"{number}-{len(words)}"
            outcome = ckptdoctor.repair(path, out, **words)
            assert outcome.done, path.name
            assert out.read_bytes() == path.read_bytes() or outcome.plan.warnings, path.name


class TestWhatIsAsked:
    """Wishes that mean nothing are declined, and refusals by the tool are no success."""

    @pytest.mark.parametrize(
        "words",
        [
            ["--bn-scope", "all"],
            ["--seed", "3"],
            ["--bn-reset", "--tensor", "*.weight"],
            ["--set", "epoch=1e400"],
        ],
        ids=" ".join,
    )
    def test_option_without_effect_is_2(self, words, sick, capsys):
        assert run(["repair", str(sick), *words]) == 2
        assert names(sick.parent) == ["model.pt"]

    def test_plan_and_wishes_do_not_mix(self, sick, capsys):
        plan = str(sick.with_name("plan.json"))
        assert run(["repair", str(sick), "--bn-reset", "-n", "--write-plan", plan]) == 0
        assert run(["repair", str(sick), "--from-plan", plan, "--drop-optimizer"]) == 2

    def test_layer_is_named_as_its_framework_does(self, tmp_path, capsys):
        path = next(path for path in FOUNDING if path.suffixes == [".h5"])
        out = str(tmp_path / "out.h5")
        assert run(["repair", str(path), "--bn-reset", "--tensor", "*post_bn", "-o", out]) == 0
        assert "2 layers" not in capsys.readouterr().out

    def test_failure_in_json_is_a_document(self, tmp_path, capsys):
        path = tmp_path / "m.safetensors"
        path.write_bytes((1000).to_bytes(8, "little") + b'{"w": ')
        assert run(["repair", str(path), "--format", "json"]) == 3
        told = json.loads(capsys.readouterr().out)
        assert told["repair"]["error"]["type"] == "TruncatedError"
        assert told["repair"]["done"] is False

    def test_hidden_half_of_float16_that_is_left_is_1(self, tmp_path, capsys):
        weights = patients.state()
        name = next(name for name in weights if name.endswith("running_var"))
        weights = {
            n: v.astype(np.float16) if v.dtype.kind == "f" else v for n, v in weights.items()
        }
        weights[name][1] = np.inf
        path = patients.save_torch(tmp_path / "half.pt", weights)
        assert run(["repair", str(path), "--bn-reset"]) == 1
        assert "in float16" in capsys.readouterr().out
        layer = name.removesuffix("running_var")
        words = ["--bn-reset", "--tensor", f"{layer}running_*", "--force"]
        assert run(["repair", str(path), *words]) == 0
