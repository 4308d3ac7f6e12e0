"""A collapsed loss scale starts where its framework starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import patients
import pytest
from bedside import after, edits, patient, refusals

from ckptdoctor.edits import NumberEdit
from ckptdoctor.formats import open_path
from ckptdoctor.remedies.base import Orders
from ckptdoctor.remedies.grad_scaler import GradScaler

NAN = float("nan")


def proposed(sick: Any) -> list[Any]:
    return list(GradScaler().propose(sick, []))


def scaler(scale: float, **more: float) -> dict[str, float]:
    return {
        "scaler.scale": scale,
        "scaler.growth_factor": 2.0,
        **{f"scaler.{k}": v for k, v in more.items()},
    }


def numbers(changes: list[Any]) -> dict[str, tuple[Any, Any]]:
    return {c.name: (c.before, c.value) for c in changes if isinstance(c, NumberEdit)}


def test_it_needs_no_asking_and_estimates() -> None:
    assert not GradScaler().asked(Orders(bn_reset=True))
    assert GradScaler.kind == "statistical"


def test_torchs_scale_and_its_tracker_start_again() -> None:
    changes = proposed(patient({}, scalars=scaler(0.0, _growth_tracker=17)))
    assert numbers(changes) == {
        "scaler.scale": (0.0, 65536.0),
        "scaler._growth_tracker": (17, 0),
    }
    assert all(c.cures == ("TS005",) and c.kind == "statistical" for c in changes)
    assert changes[0].title == "loss scale 65536, torch's default"
    assert type(changes[1].value) is int


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        (scaler(0.0, _growth_tracker=0), {"scaler.scale": (0.0, 65536.0)}),
        (scaler(0), {"scaler.scale": (0, 65536)}),
        ({"amp.loss_scaler0.loss_scale": 0.0, "amp.loss_scaler0.unskipped": 5},
         {"amp.loss_scaler0.loss_scale": (0.0, 65536.0), "amp.loss_scaler0.unskipped": (5, 0)}),
        ({"scale": 0.0, "growth_factor": 2.0, "_growth_tracker": 3.0, "step": 9},
         {"scale": (0.0, 65536.0), "_growth_tracker": (3.0, 0.0)}),
        (scaler(1.0), {}),
        (scaler(65536.0), {}),
    ],
)  # fmt: skip
def test_the_type_stays_and_what_is_in_order_does_too(scalars: Any, expected: Any) -> None:
    found = numbers(proposed(patient({}, scalars=scalars)))
    assert found == expected
    assert [type(v) for _, v in found.values()] == [type(v) for _, v in expected.values()]


def test_what_the_caller_sets_is_left_to_the_caller() -> None:
    assert proposed(patient({}, scalars=scaler(0.0), numbers={"scaler.scale": 4.0})) == []


LSO = "optimizer_weights/loss_scale_optimizer"


@pytest.mark.parametrize(
    ("tensors", "scalars", "expected"),
    [
        ({f"{LSO}/dynamic_scale": np.float32(0), f"{LSO}/step_counter": np.int64(7)}, {},
         {f"{LSO}/dynamic_scale": 32768, f"{LSO}/step_counter": 0}),
        ({f"{LSO}/dynamic_scale": np.float32(0), f"{LSO}/step_counter": np.int64(0)},
         {"compile_config/optimizer/config/initial_scale": 1024.0}, {f"{LSO}/dynamic_scale": 1024}),
        *(({f"{LSO}/dynamic_scale": np.float32(0)}, {"compile_config/optimizer/config/initial_scale": stored},
           {f"{LSO}/dynamic_scale": started})
          for stored, started in ((0.5, 32768), (1.0, 1), (2.0**40, 2**40), (2.0**41, 32768))),
        ({f"{LSO}/current_loss_scale:0": np.float32(NAN), f"{LSO}/good_steps:0": np.int64(7)}, {},
         {f"{LSO}/current_loss_scale:0": 32768, f"{LSO}/good_steps:0": 0}),
        ({"optimizer.grad_scaler.scale": np.float32([0.5]), "optimizer.grad_scaler.growth_tracker": np.int32([4])},
         {}, {"optimizer.grad_scaler.scale": 65536, "optimizer.grad_scaler.growth_tracker": 0}),
        ({"optimizer.grad_scaler.scale": np.float16([0.5])}, {}, {"optimizer.grad_scaler.scale": 32768}),
        ({"optimizer/vars/0": np.int64(9), "optimizer/vars/1": np.float32(0.1), "optimizer/vars/2": np.int32(5),
          "optimizer/vars/3": np.float32(0), "optimizer/vars/4": np.int64(3), "optimizer/vars/5": np.float32(0.1)},
         {}, {"optimizer/vars/3": 32768, "optimizer/vars/2": 0}),
    ],
)  # fmt: skip
def test_scales_that_are_tensors_start_again_in_their_type(
    tensors: Any, scalars: Any, expected: Any
) -> None:
    sick = patient(tensors, scalars=scalars)
    found = edits(proposed(sick))
    made = {name: float(after(sick, change).reshape(-1)[0]) for name, change in found.items()}
    assert made == expected
    assert all(change.after().dtype == tensors[name].dtype for name, change in found.items())
    assert all(change.cures == ("TS005",) for change in found.values())


def test_an_encoded_scale_is_refused() -> None:
    import dataclasses

    sick = patient({f"{LSO}/dynamic_scale": np.float32(0)})
    info = sick.ctx.table[f"{LSO}/dynamic_scale"]._replace(encoding="opaque")
    sick.ctx.table = dataclasses.replace(sick.ctx.table, infos={info.name: info})
    assert "opaque" in refusals(proposed(sick))[info.name]


def test_a_file_of_keras_is_known_by_its_configuration(tmp_path: Path) -> None:
    path = patients.save_keras(tmp_path / "m.h5", patients.keras_state(), scaled=True)
    with h5py.File(path, "r+") as file:
        file["optimizer_weights/loss_scale_optimizer/dynamic_scale"][()] = 2.0**-10
    with open_path(path) as table:
        sick = patient(table)
        changes = proposed(sick)
        assert changes[0].title == "loss scale 32768, as its configuration says"
        assert [after(sick, change).tolist() for change in changes] == [32768.0, 0]


@pytest.mark.oracle
def test_the_defaults_are_the_frameworks_own() -> None:
    torch = pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    import inspect

    from ckptdoctor.remedies.grad_scaler import KERAS_SCALE, TORCH_SCALE

    default = inspect.signature(torch.amp.GradScaler.__init__).parameters["init_scale"].default
    assert default == TORCH_SCALE
    wrapped = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    assert wrapped.initial_scale == KERAS_SCALE
