"""A living model beside its checkpoint: the file's weights in it, the user's samples at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import UsageError
from ..live.data import Data, data_for
from ..live.opening import fill, open_subject
from ..live.subject import Subject
from ..tensors import Array, TensorTable
from .choice import Candidate, Reach, Recalibration, recalibrated
from .estimate import Channels

__all__ = ["Bedside", "Order", "Place"]

_REACHES = {"none": "as it is", "broken": "broken channels only", "all": "all BatchNorms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user says of model and samples; see `ckptdoctor.repair`."""

    model: str
    data: str
    trust: bool = False
    force: bool = False
    batch_size: int = 64


class Place(NamedTuple):
    """What a tensor of the file is in the model: ``mean`` or ``var`` of a BatchNorm."""

    norm: str
    part: str


@dataclass(slots=True)
class Bedside:
    """The model, opened when it is first asked for.

    Parameters
    ----------
    order
        Which model and samples.
    table
        The open checkpoint whose weights go into it.
    note
        Told of samples done, and samples in all.

    Attributes
    ----------
    facts
        What was found, one sentence each, for the report.
    """

    order: Order
    table: TensorTable
    note: Callable[[int, int], None] | None = None
    facts: list[str] = field(default_factory=list)
    _subject: Subject | None = None
    _role: str = ""
    _places: dict[str, Place] = field(default_factory=dict)
    _data: Data | None = None

    def places(self, role: str) -> Mapping[str, Place]:
        """Statistics of the file by tensor name, once its weights of this role are in the model.

        Raises
        ------
        UsageError
            If the model cannot be made, or the file's weights do not fit it.
        """
        if self._subject is None:
            self._open()
        subject = self._subject
        if self._role != role and subject is not None:
            loaded = fill(subject, self.table.path, role, self._sample)
            self.facts += [note for note in loaded.notes if note not in self.facts]
            names = {}
            for norm in subject.norms.values():
                names[norm.mean] = Place(norm.name, "mean")
                names[norm.var] = Place(norm.name, "var")
            pairs = loaded.pairs
            self._places = {pairs[ours]: place for ours, place in names.items() if ours in pairs}
            self._role = role
        return self._places

    def _open(self) -> None:
        opened = open_subject(self.order.model, trust=self.order.trust)
        data = data_for(opened.subject, self.order.data)
        if data.kind == "random":
            hint = "give samples of the training data: on noise accuracy fell from 0.98 to 0.38"
            raise UsageError("statistics of random numbers are no statistics", hint=hint)
        if opened.code:
            self.facts.append(f"ran the code of {opened.code} to make the model")
        self.facts += data.notes
        self._subject, self._data = opened.subject, data

    def _sample(self, _: Subject) -> Sequence[Array]:
        """Give a batch to models that have no weights before they are first called."""
        return self._data.filled([0]) if self._data is not None else ()

    def recalibrated(self, broken: Channels, reach: Reach | None) -> Recalibration:
        """Recompute statistics of the model that `places` spoke of last.

        Raises
        ------
        UsageError
            If there are too few samples, or they say nothing.
        """
        subject, data = self._subject, self._data
        if subject is None or data is None:  # places() comes first
            raise UsageError("no model is open")
        made = recalibrated(
            subject, data.take(range(len(data))), broken, reach=reach,
            batch_size=data.batch or self.order.batch_size, force=self.order.force, note=self.note,
        )  # fmt: skip
        self.facts += _told(made, data.source)
        return made


def _told(made: Recalibration, source: str) -> list[str]:
    """Say what was compared, what was chosen, and what was left out."""
    samples = f"{made.samples:,} samples of {source}"
    held = f", {made.held_back:,} held back to compare on" if made.candidates else ""
    facts = [samples + held]
    facts += [_compared(each, taken=each.reach == made.reach) for each in made.candidates]
    if made.idle:
        others = len(made.idle) - 1
        more = f", nor are {others:,} more" if others else ""
        facts.append(f"{made.idle[0]!r:.100} is not called on these data{more}: it stays")
    return [*facts, *made.warnings] if made.reach == "none" else facts


def _compared(candidate: Candidate, *, taken: bool) -> str:
    agreement = candidate.agreement
    told = str(agreement or "no output with a row per sample to compare")
    if candidate.contradicted and not (agreement and agreement.error == float("inf")):
        told += "; its broken channels hold what the data contradict"
    kept = "  <- taken, the narrowest that agrees" if taken else ""
    return f"{_REACHES[candidate.reach]}, against training mode: {told}{kept}"
