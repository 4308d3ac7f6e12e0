"""``--recalibrate``: running statistics recomputed from data, with the model at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..edits import Change, Class, Edit, Refusal, Remark
from ..errors import UsageError
from ..tensors import Role
from .base import Ailment, Orders, Patient, Remedy
from .transfer import cast, sound

if TYPE_CHECKING:
    from ..live.subject import Statistics
    from ..recalibration.bedside import Bedside, Place
    from ..recalibration.choice import Reach, Recalibration
    from ..tensors import Array

__all__ = ["Recalibrate"]

_ELSEWHERE = "save the file with its BatchNorms in float32 or bfloat16, and recalibrate that one"
_WORDS = {"mean": "mean", "var": "variance"}


class Recalibrate(Remedy):
    """``--recalibrate``: statistics of broken channels anew, from data run through the model.

    What it does
    ------------
    Runs the model with the file's weights.  Broken channels normalise by the batch, all else is
    frozen; mean and variance over all samples together become the running ones.  Where the stored
    statistics of the other layers disagree with the data as well, all BatchNorms are recomputed:
    what is taken is what agrees with training mode on samples that were held back.

    What it costs
    -------------
    Nothing where it was measured: accuracy 0.998 of 0.995 (all 9 layers NaN), 0.998 (last block),
    0.997 (a layer inside), 0.991 of 0.981 (a band of the input), 0.964 of 0.968 (Keras, the stem).
    It takes 64 samples of the training data or more; with 16 up to 13 points were lost, and with
    noise in place of data nearly everything.
    """

    name: ClassVar[str] = "recalibrate"
    kind: ClassVar[Class] = "statistical"
    option: ClassVar[str] = "--recalibrate"

    def asked(self, orders: Orders) -> bool:
        return bool(orders.recalibrate)

    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        bedside = patient.bedside
        if bedside is None:
            return
        sick = [
            ailment
            for ailment in ailments
            if ailment.layer is not None
            and ailment.layer.kind == "batchnorm"
            and ailment.part in _WORDS
        ]
        roles = {info.role for info in patient.ctx.table.values()}
        served: Role = "model" if "model" in roles else "ema"
        for role in dict.fromkeys(ailment.info.role for ailment in sick) or (served,):
            of_role = [ailment for ailment in sick if ailment.info.role == role]
            yield from self._of_role(patient, bedside, role, of_role)

    def _of_role(
        self, patient: Patient, bedside: Bedside, role: str, sick: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        places = bedside.places(role)
        known, strange = [], ""
        reason = f"no BatchNorm of {patient.orders.recalibrate} is its partner"
        for ailment in _widened(patient, sick):
            if ailment.info.name in places:
                known.append(ailment)
            else:
                strange = strange or ailment.info.name
                yield self.refusal(ailment.info.name, reason, ailment.codes)
        if sick and not known:
            return
        try:
            made = bedside.recalibrated(_channels(known, places), _reach(patient))
        except UsageError as error:
            if not strange:
                raise
            # such as an InstanceNorm: it may be what the model fails by
            hint = f"{strange!r:.200} is broken as well, and {reason}"
            raise UsageError(error.message, where=error.where, hint=hint) from error
        if made.reach != "none":  # else the facts have them: remarks are on changes
            yield from (Remark(remedy=self.name, text=text) for text in made.warnings)
        yield from self._done(patient, made, known, places)

    def _done(
        self,
        patient: Patient,
        made: Recalibration,
        known: Sequence[Ailment],
        places: Mapping[str, Place],
    ) -> Iterator[Edit | Refusal]:
        """Say what becomes of each statistic, now that the data have spoken."""
        if made.reach == "none":
            for ailment in known:
                reason = "its statistics agree with these data"
                yield Refusal(target=ailment.info.name, reason=reason, codes=ailment.codes)
            return
        for ailment in known:
            if places[ailment.info.name].norm in made.idle:
                reason = "it is not called on these data"
                yield self.refusal(ailment.info.name, reason, ailment.codes)
        called = {name: place for name, place in places.items() if place.norm in made.statistics}
        known = [ailment for ailment in known if ailment.info.name in called]
        if made.reach == "all":
            known = [_whole(patient, name, known) for name in called]
        title = f"of {made.samples:,} samples"
        unfit = _unfit(known, called, made.statistics)
        for ailment in known:
            place = called[ailment.info.name]
            yield from self._edits(
                ailment, made.statistics[place.norm], place, title, unfit[place.norm]
            )

    def _edits(
        self, ailment: Ailment, statistics: Statistics, place: Place, title: str, unfit: Statistics
    ) -> Iterator[Edit | Refusal]:
        values = cast(_exact(ailment, statistics, place), ailment.info)
        misfits = getattr(unfit, place.part)[ailment.bad]
        if misfits.any():
            count = np.count_nonzero(misfits)
            reason = f"{count:,} of {misfits.size:,} channels do not fit into {ailment.info.dtype}"
            exact = _exact(ailment, statistics, place)[misfits]
            largest = exact[np.argmax(np.abs(exact))]
            reason += f" (as {largest:.3g})"
            yield self.refusal(ailment.info.name, reason, ailment.codes, _ELSEWHERE)
        # a channel gets both or neither: a new mean beside an old variance is worse than both old
        good = ~(unfit.mean | unfit.var)[ailment.bad]
        if good.any():
            word = _WORDS[place.part]
            yield self.edit(ailment, values[good], f"{word} {title}", indices=ailment.bad[good])


def _exact(ailment: Ailment, statistics: Statistics, place: Place) -> Array:
    """Values that belong into the broken elements, in float64."""
    exact: Array = getattr(statistics, place.part)[ailment.bad]
    if place.part == "mean":
        return exact
    # constant on these data: it gives beta whatever the variance, and 0 would blow up
    # (by 1/sqrt(eps)) what other data do to it
    return np.where(exact == 0, 1.0, exact)


def _unfit(
    known: Sequence[Ailment], places: Mapping[str, Place], statistics: Mapping[str, Statistics]
) -> dict[str, Statistics]:
    """Masks, by BatchNorm, of channels whose new values the file's type cannot hold."""
    masks = {
        name: type(each)(np.zeros(each.mean.size, bool), np.zeros(each.var.size, bool))
        for name, each in statistics.items()
    }
    for ailment in known:
        place = places[ailment.info.name]
        values = cast(_exact(ailment, statistics[place.norm], place), ailment.info)
        getattr(masks[place.norm], place.part)[ailment.bad] = ~sound(values, place.part)
    return masks


def _channels(sick: Sequence[Ailment], places: Mapping[str, Place]) -> dict[str, Statistics]:
    """Masks of broken channels by BatchNorm of the model."""
    from ..recalibration.estimate import masked  # noqa: PLC0415  (only with a model)

    return masked((*places[ailment.info.name], ailment.info.size, ailment.bad) for ailment in sick)


def _reach(patient: Patient) -> Reach | None:
    """Give what the user decided; None leaves it to the data."""
    if patient.orders.bn_scope == "all":
        return "all"
    return "broken" if patient.named or patient.orders.bn_scope == "layers" else None


def _widened(patient: Patient, sick: Sequence[Ailment]) -> Iterator[Ailment]:
    """Ailments of both statistics of broken layers, where that was asked for."""
    if patient.orders.bn_scope != "layers":
        yield from sick
        return
    told = set()
    for ailment in sick:
        for part in _WORDS:
            info = ailment.layer.parts.get(part) if ailment.layer is not None else None
            if info is not None and info.name not in told:
                told.add(info.name)
                yield _whole(patient, info.name, sick)


def _whole(patient: Patient, name: str, known: Sequence[Ailment]) -> Ailment:
    """Every channel of a statistic, whatever is known against it."""
    info = patient.ctx.table[name]
    codes = [code for ailment in known if ailment.info.name == name for code in ailment.codes]
    return Ailment(
        info=info,
        layer=patient.ctx.layers.of(name),
        part=patient.ctx.layers.part_of(name),
        bad=np.arange(info.size, dtype=np.int64),
        codes=tuple(dict.fromkeys(codes)),
    )
