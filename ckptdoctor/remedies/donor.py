"""BatchNorm channels from an older or sibling checkpoint of the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from ..edits import Change, Class, Refusal, Remark
from ..findings import Severity
from .base import Ailment, Orders, Patient, Remedy
from .donor_file import Donor, no_partner
from .kinship import NEAR
from .transfer import cast, sound

__all__ = ["FromDonor"]

_KINDS = frozenset({"batchnorm", "norm", "normalization"})
_WORDS = {"mean": "mean", "var": "variance", "gamma": "gamma", "beta": "beta"}


class FromDonor(Remedy):
    """``--donor``: broken channels of normalisations get the donor's numbers.

    What it does
    ------------
    Mean, variance, gamma and beta of broken channels, and of no others, are those of the same
    channel in an older or sibling checkpoint.  What is not finite or not above zero there either,
    exploded, collapsed or was never updated, is refused and left to the next remedy.  Channels
    that are only suspected are taken only from a donor of the same run where they are in order.

    What it costs
    -------------
    What the statistics moved by since: accuracy 0.994 of 0.995 (all 9 layers NaN), 0.994 (last
    block), 0.996 (a layer inside), 0.992 (a band of the input) with donors of the same run, a few
    hundred steps old.  All 9 layers of a healthy network from its checkpoint of epoch 3: 0.986 of
    0.994.  The further the weights moved, the more is lost; the report says how far.

    Scaling the donor's statistics by how much the kernels' norms grew since was tried and left
    out.  The numbers above stayed the same; over 63 settings of three optimizers it changed nothing
    up to a distance of 15 %, and cost 3 points on average up to 50 % (15 at worst, 1 gained at
    best) and 5 beyond.
    """

    name: ClassVar[str] = "donor"
    kind: ClassVar[Class] = "statistical"
    option: ClassVar[str] = "--donor"

    def asked(self, orders: Orders) -> bool:
        return bool(orders.donor)

    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        donor = patient.donor
        if donor is None:
            return
        warned = False
        for ailment in ailments:
            layer = ailment.layer
            if layer is None or layer.kind not in _KINDS or ailment.part not in _WORDS:
                continue
            for proposed in self._channels(donor, ailment):
                if isinstance(proposed, Change) and not warned:
                    warned = True
                    for text in donor.warnings:
                        yield Remark(remedy=self.name, text=text)
                yield proposed

    def _channels(self, donor: Donor, ailment: Ailment) -> Iterator[Change | Refusal]:
        info = ailment.info
        reason = no_partner(donor, info) or _suspicious(donor, ailment)
        if reason:
            yield self.refusal(info.name, reason, ailment.codes)
            return
        taken = donor.take(info, ailment.bad)
        there = sound(taken, ailment.part)
        values = cast(taken, info)
        good = there & sound(values, ailment.part)
        bad = np.count_nonzero(~good)
        if bad:
            what = "cannot be used there either: not finite"
            what += " or not above zero" if ailment.part == "var" else ""
            if there.all():
                what = f"do not fit into {info.dtype}"
            channels = f"{bad:,} of {good.size:,} channels"
            yield self.refusal(info.name, f"{channels} {what} in {donor.name!r}", ailment.codes)
        if good.any():
            of = f"{donor.match.pairs[info.name]!r:.120} of {donor.name!r}"
            yield self.edit(
                ailment,
                values[good],
                f"{_WORDS[ailment.part]} as in {of}",
                indices=ailment.bad[good],
            )


def _suspicious(donor: Donor, ailment: Ailment) -> str:
    """Reason why the donor's statistics of a layer are not taken."""
    if ailment.part not in ("mean", "var"):
        return ""
    finding = donor.absurd(donor.match.pairs[ailment.info.name])
    if ailment.suspected:
        reason = _no_better(donor, ailment) if finding is None else "it looks the same"
        return f"{ailment.suspected}; in {donor.name!r} {reason}" if reason else ""
    if finding is not None and finding.severity >= Severity.ERROR:
        return f"it is sick in {donor.name!r}, too: {finding.message:.200}"
    return ""


def _no_better(donor: Donor, ailment: Ailment) -> str:
    """Reason why a donor decides nothing about channels that are only suspected."""
    if donor.likeness is not None and donor.likeness.median > NEAR:
        return "the weights are another run's"
    var = ailment.layer.parts.get("var") if ailment.layer is not None else None
    if var is None or no_partner(donor, var):
        return ""
    fits = sound(cast(donor.take(var, ailment.bad), var), "var").all()
    return "" if fits else f"the variance is beyond {var.dtype}, too"
