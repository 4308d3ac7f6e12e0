"""``--drop-optimizer`` removes whole keys that hold nothing else, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import patients
import pytest
from bedside import patient

from ckptdoctor.edits import Refusal, Removal
from ckptdoctor.formats import open_path
from ckptdoctor.remedies.base import Orders
from ckptdoctor.remedies.drop_optimizer import DropOptimizer

NAN = float("nan")


def proposed(tensors: Any, **more: Any) -> list[Any]:
    return list(DropOptimizer().propose(patient(tensors, drop_optimizer=True, **more), []))


def test_it_is_asked_for_by_its_option_alone() -> None:
    assert DropOptimizer().asked(Orders(drop_optimizer=True))
    assert not DropOptimizer().asked(Orders(bn_reset=True))
    sick = patient({"fc.weight": [[1.0]], "optimizer.state.0.exp_avg": [NAN]})
    assert list(DropOptimizer().propose(sick, [])) == []


FC = {"model.fc.weight": np.ones((2, 2))}


@pytest.mark.parametrize(
    ("tensors", "names"),
    [
        ({**FC, "optimizer.state.0.exp_avg": [1.0]}, ("optimizer",)),
        ({**FC, "optimizer_states.0.state.0.momentum_buffer": [1.0]}, ("optimizer_states",)),
        ({**FC, "optim_g.state.0.exp_avg": [1.0], "optim_d.state.0.exp_avg": [1.0]},
         ("optim_g", "optim_d")),
        ({"model_weights/fc/kernel": np.ones((2, 2)), "optimizer_weights/adam/fc_kernel_momentum": [1.0]},
         ("optimizer_weights",)),
    ],
)  # fmt: skip
def test_the_outermost_keys_of_the_optimizer_go(tensors: Any, names: tuple[str, ...]) -> None:
    (change,) = proposed(tensors)
    assert isinstance(change, Removal)
    assert (change.names, change.remedy, change.kind) == (names, "drop-optimizer", "destructive")


def test_what_was_wrong_with_it_is_cured_and_nothing_else() -> None:
    (change,) = proposed(
        {"model.fc.weight": [[NAN]], "optimizer.state.0.exp_avg_sq": [-1.0],
         "optimizer.state.1.exp_avg": [1.0, NAN]},
        scalars={"optimizer.param_groups.0.lr": NAN, "val_loss": NAN},
    )  # fmt: skip
    assert set(change.cures) == {"TS001", "TS002", "TS003"}


def test_an_optimizer_of_settings_alone_goes_too() -> None:
    scalars = {"optimizer.param_groups.0.lr": 0.1, "args.param_groups.0.lr": 0.1, "opt.lr": 0.1}
    (change,) = proposed(FC, scalars=scalars)
    assert change.names == ("optimizer",)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (FC, "no optimizer state"),
        ({"optimizer.state.0.exp_avg": [1.0]}, "without any tensor"),
    ],
)
def test_where_there_is_nothing_to_drop_it_says_so(tensors: Any, words: str) -> None:
    (refusal,) = proposed(tensors)
    assert words in refusal.reason
    assert refusal.remedy == "drop-optimizer"


def test_a_key_that_holds_the_model_as_well_stays() -> None:
    tensors = {"run.model.fc.weight": np.ones((2, 2)), "run.optimizer.state.0.exp_avg": [1.0],
               "optimizer.state.0.exp_avg": [1.0]}  # fmt: skip
    refusal, change = proposed(tensors)
    assert isinstance(refusal, Refusal)
    assert refusal.target == "run"
    assert "'run.model.fc.weight', which is model" in refusal.reason
    assert change.names == ("optimizer",)


def test_scaler_and_loop_stay(tmp_path: Path) -> None:
    weights = patients.state()
    tree = {"model": weights, "optimizer": patients.adam(weights), "epoch": 3,
            "scaler": {"scale": 65536.0, "growth_factor": 2.0}}  # fmt: skip
    with open_path(patients.save_torch(tmp_path / "m.pt", tree)) as table:
        (change,) = proposed(table)
    assert change.names == ("optimizer",)


def test_kerass_configuration_stays(tmp_path: Path) -> None:
    path = patients.save_keras(tmp_path / "m.h5", patients.keras_state(), scaled=True)
    with open_path(path) as table:
        (change,) = proposed(table)
    assert change.names == ("optimizer_weights",)
    path = patients.save_keras(tmp_path / "n.h5", patients.keras_state())
    with open_path(path) as table:
        (refusal,) = proposed(table)
    assert "no optimizer state" in refusal.reason
