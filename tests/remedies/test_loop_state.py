"""Records of the training loop are left as they are, and that is no failure."""

from __future__ import annotations

import numpy as np
from bedside import patient

from ckptdoctor.edits import Refusal
from ckptdoctor.remedies.base import Orders
from ckptdoctor.remedies.loop_state import LoopState

NAN, INF = float("nan"), float("inf")


def test_infinite_and_lost_scores_are_left_alone_with_the_reason() -> None:
    sick = patient({"callbacks.best": np.float32([INF])}, scalars={"best_loss": NAN})
    found = list(LoopState().propose(sick, []))
    assert all(isinstance(change, Refusal) for change in found)
    assert {change.target: change.hint for change in found} == {
        "callbacks.best": "",
        "best_loss": "--set best_loss=NUMBER",
    }
    assert {change.codes for change in found} == {("TS009",)}
    assert {change.remedy for change in found} == {""}, "nothing that was asked for is undone"
    assert "weights do not depend on it" in found[0].reason


def test_a_file_without_such_records_has_nothing_to_say() -> None:
    assert list(LoopState().propose(patient({"fc.weight": [[NAN]]}), [])) == []
    assert not LoopState().asked(Orders(bn_reset=True))
