"""An intact copy of the same tensor in the same file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np

from ..edits import Change, Class, Edit, Refusal, Remark
from ..findings import Severity
from ..matching import stripped
from ..rules.base import Context
from ..rules.ema_copies import ema_copies
from ..tensors import TensorInfo
from .base import Ailment, Patient, Remedy
from .kinship import NEAR
from .likeness import compare
from .transfer import cast, compatible, pick, sound, whole, whole_fault

__all__ = ["Twin"]

_ABSURD = ("BN003", "BN004", "BN006")
"""Findings about finite statistics that make a copy of them no better."""

EXPLODED = 100.0
"""Times the largest number of the copy: TS006's own ratio.  An average lags behind the model; of
54 pairs of tensors in 3 files the largest elements differ by 1.8 times at most."""


class _Copy(NamedTuple):
    """Another tensor of the file that holds the same, how that is put, and how sure it is."""

    info: TensorInfo
    title: str
    kind: Class


class Twin(Remedy):
    """Broken elements get the values of an intact copy in the same file.

    What it does
    ------------
    The average of a model (EMA) and the model itself are copies of each other; so are two states
    of the same model below two keys (``state_dict`` and ``model``).  Only elements that are broken
    here and sound there are replaced, of kernels as well; a copy that exploded by 100 times
    (TS006) is replaced as a whole.

    What it costs
    -------------
    A copy that is identical in everything else is the same model.  An average that restarts from
    the model, and a model that could not be used and now holds the average of its last steps, are
    not the same numbers, but no invention: most frameworks serve the average for choice.  Two
    states that differ are a donor within the file: statistical, and only where their weights lie
    within 10 %.
    """

    name: ClassVar[str] = "twin"
    kind: ClassVar[Class] = "lossless"

    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        copies = _Copies(patient.ctx)
        for ailment in ailments:
            if not ailment.suspected:
                known = copies.of(ailment.info)
                wider = _with_absurd(patient, ailment, known)
                yield from self._from_copies(patient, wider, known)
        yield from self._exploded(patient)

    def _from_copies(
        self, patient: Patient, ailment: Ailment, copies: Sequence[_Copy]
    ) -> Iterator[Change | Refusal]:
        left = ailment.bad
        faults = []
        for copy in copies:
            if not left.size:
                break
            fault = compatible(ailment.info, copy.info) or _absurd(patient, ailment, copy.info)
            if fault:
                faults.append(f"its copy {copy.info.name!r:.120} is no help: {fault}")
                continue
            taken = pick(patient.ctx.table, copy.info, left)
            values = cast(taken, ailment.info)
            good = sound(taken, ailment.part) & sound(values, ailment.part)
            if good.any():
                yield self.edit(
                    ailment, values[good], copy.title, indices=left[good], kind=copy.kind
                )
            left = left[~good]
            if left.size:
                count = f"{left.size:,} of {good.size:,} elements"
                faults.append(f"its copy {copy.info.name!r:.120} is broken in {count}, too")
        if left.size and faults:
            yield self.refusal(ailment.info.name, "; ".join(faults[:2]), ailment.codes)

    def _exploded(self, patient: Patient) -> Iterator[Change | Refusal]:
        """Replace a copy that is finite and 100 times as large as the other: all of it."""
        table = patient.ctx.table
        for finding in patient.about("TS006"):
            name, other = finding.tensor, str(finding.measured.get("copy", ""))
            if finding.severity < Severity.WARNING or not {name, other} <= table.infos.keys():
                continue
            info, source = table[name], table[other]
            fault = compatible(info, source) or whole_fault(table, source, info)
            if fault:
                reason = f"its copy {other!r:.120} is no help: {fault}"
                yield self.refusal(name, reason, (finding.code,))
                continue
            yield Edit(
                tensor=name,
                indices=None,
                values=whole(table, source, info),
                remedy=self.name,
                kind="statistical",
                cures=(finding.code,),
                title=_title(source),
            )


def _with_absurd(patient: Patient, ailment: Ailment, copies: Sequence[_Copy]) -> Ailment:
    """Widen an ailment by finite elements beyond all that its copy holds.

    What a NaN reached in one step, numbers of 1e14 reached as well: an average of which 135 of 144
    weights were NaN had those in the other 9.
    """
    if "TS006" not in ailment.codes or not copies or ailment.info.kind.kind != "float":
        return ailment
    stats = patient.ctx.stats[copies[0].info.name]
    if stats.minimum is None or stats.maximum is None or stats.nonfinite:
        return ailment
    limit = EXPLODED * max(abs(stats.minimum), abs(stats.maximum))
    found, start = [ailment.bad], 0
    for block in patient.ctx.table.blocks(ailment.info):
        with np.errstate(invalid="ignore", over="ignore"):
            wild = np.abs(block.astype(np.float64)) > limit
        found.append(np.flatnonzero(wild) + start)
        start += block.size
    return replace(ailment, bad=np.unique(np.concatenate(found)).astype(np.int64))


def _absurd(patient: Patient, ailment: Ailment, copy: TensorInfo) -> str:
    """Reason why statistics of a copy are no better although they are finite."""
    layer = patient.ctx.layers.of(copy.name)
    if layer is None or ailment.part not in ("mean", "var"):
        return ""
    names = {info.name for info in layer.parts.values()}
    for finding in patient.about(*_ABSURD):
        if finding.tensor in names and finding.severity >= Severity.WARNING:
            return f"{finding.code}, {finding.message:.200}"
    return ""


def _title(source: TensorInfo) -> str:
    if source.role == "ema":
        return f"as in its average {source.name!r:.120}: not the last weights, but their average"
    return f"as in the model's {source.name!r:.120}: the average goes on from there"


class _Copies:
    """Copies of every tensor, looked for when first asked."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._averages: Mapping[str, Sequence[str]] | None = None
        self._groups: dict[object, list[TensorInfo]] | None = None
        self._alike: dict[tuple[str, str], tuple[str, Class] | None] = {}

    def of(self, info: TensorInfo) -> list[_Copy]:
        """Return the copies of one tensor, identical states first."""
        found = [copy for copy in self._duplicates(info) if copy.info.role == info.role]
        found.sort(key=lambda copy: copy.kind != "lossless")
        sure = sum(copy.kind == "lossless" for copy in found)
        averages = [
            _Copy(other, _title(other), "lossless")
            for other in map(self._ctx.table.__getitem__, self._average_of(info.name))
        ]
        return [*found[:sure], *averages, *found[sure:]]

    def _average_of(self, name: str) -> Sequence[str]:
        if self._averages is None:
            pairs = ema_copies(self._ctx)
            both: dict[str, list[str]] = {}
            for ema, model in pairs.items():
                both.setdefault(model, []).append(ema)
                both.setdefault(ema, []).append(model)
            self._averages = both
        return self._averages.get(name, ())

    def _duplicates(self, info: TensorInfo) -> Iterator[_Copy]:
        """Yield tensors of the same name below another container that is a state of the same model."""
        if self._groups is None:
            self._groups = {}
            for each in self._ctx.table.values():
                if each.role in ("model", "ema"):
                    self._groups.setdefault(_bare(each), []).append(each)
        for other in self._groups.get(_bare(info), ()):
            told = self._told(_container(info), _container(other)) if other != info else None
            if told is not None:
                yield _Copy(other, told[0].format(name=f"{other.name!r:.120}"), told[1])

    def _told(self, ours: str, theirs: str) -> tuple[str, Class] | None:
        """Say what two containers are to each other; None where not the same model."""
        key = ours, theirs
        if key not in self._alike:
            self._alike[key] = self._compared(ours, theirs)
        return self._alike[key]

    def _compared(self, ours: str, theirs: str) -> tuple[str, Class] | None:
        table = self._ctx.table
        pairs = {}
        for group in (self._groups or {}).values():
            by_container = {_container(each): each.name for each in group}
            if len(group) > 1 and ours in by_container and theirs in by_container:
                pairs[by_container[ours]] = by_container[theirs]
        matrices = {a: b for a, b in pairs.items() if len(table[a].shape) > 1}
        likeness = compare(table, table, matrices) or compare(table, table, pairs)
        if likeness is None or likeness.median > NEAR:
            return None
        if likeness.worst == 0:
            return "as in its copy {name}; what is sound is identical in both", "lossless"
        far = f"{likeness.median * 100:.2g} %"
        return f"as in {{name}}, another state of the model: weights differ by {far}", "statistical"


def _words(info: TensorInfo) -> list[str]:
    return info.name.split("/" if "/" in info.name else ".")


def _bare(info: TensorInfo) -> object:
    return info.role, info.shape, stripped(_words(info))


def _container(info: TensorInfo) -> str:
    """Words in front of a name that only say where it is kept."""
    words = _words(info)
    kept = len(stripped(words))
    return ".".join(words[: len(words) - kept])
