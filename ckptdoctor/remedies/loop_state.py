"""Records of the training loop that are not finite: left as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..edits import Change, Refusal
from ..shell import quoted
from .base import Ailment, Patient, Remedy

__all__ = ["LoopState"]


class LoopState(Remedy):
    """Leave the records of the training loop alone, and say so.

    What it does
    ------------
    Nothing.  A best score of infinity is what loops start with, and a loss of NaN is what
    happened; another number would be a lie, and no weight depends on it.

    What it costs
    -------------
    A best score of NaN is never beaten: set it by hand (``--set PATH=NUMBER``) where a loop is to
    keep its best checkpoint again.

    How well it does
    ----------------
    6 of 371 checkpoints seen in public hold such infinities, all of them in order.
    """

    name = "loop-state"
    kind = "lossless"

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        del ailments
        for finding in patient.about("TS009"):
            nan = finding.measured.get("nan", 0)
            reason = "is a record of the training loop: weights do not depend on it"
            # no remedy of that name refuses: there is none, and nothing that was asked for is undone
            yield Refusal(
                target=finding.tensor,
                reason=reason,
                codes=(finding.code,),
                hint=f"--set {quoted(finding.tensor[:100] + '=NUMBER')}" if nan else "",
            )
