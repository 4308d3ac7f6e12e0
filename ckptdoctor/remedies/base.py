"""What every remedy is, and what it may ask of the patient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, get_args

import numpy as np

from ..edits import CLASSES, Change, Class, Edit, Refusal, Remark
from ..errors import UsageError
from ..findings import Finding
from ..layers import Layer
from ..rules.base import Context
from ..selection import matcher
from ..tensors import Array, TensorInfo
from ..wishes import Scope

if TYPE_CHECKING:
    from ..recalibration.bedside import Bedside
    from .donor_file import Donor

__all__ = ["Ailment", "Orders", "Patient", "Remedy", "Scope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a caller may ask of a repair; see `ckptdoctor.repair`.

    ``tensors`` are patterns of names to treat, whatever the rules say of them; ``reinit`` are
    patterns, each with a law behind ``=`` if not the layer's own; ``numbers`` are new values by
    path.  ``recalibrate`` names a model, and ``data`` samples to run it on.
    """

    bn_reset: bool = False
    bn_scope: Scope = "channels"
    bn_silence: bool = False
    donor: str = ""
    recalibrate: str = ""
    data: str = ""
    trust: bool = False
    few: bool = False
    tensors: Sequence[str] = ()
    reinit: Sequence[str] = ()
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    drop_optimizer: bool = False
    allow: Class = "statistical"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("allow", self.allow, CLASSES)
        _check_choice("bn_scope", self.bn_scope, get_args(Scope))
        for name in ("tensors", "reinit"):
            if isinstance(getattr(self, name), str):
                found = getattr(self, name)
                raise UsageError(f"expected {name} to be a list, found {found!r:.100}")

    @property
    def actions(self) -> bool:
        """Whether something was asked for by name."""
        grafts = bool(self.donor and self.tensors)
        return (
            bool(
                self.bn_reset
                or self.bn_silence
                or self.recalibrate
                or self.reinit
                or self.numbers
                or self.drop_optimizer
            )
            or grafts
        )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        listed = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"expected {name} to be {listed}, found {value!r:.100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ailment:
    """Elements of one tensor that need other values.

    Parameters
    ----------
    info
        The tensor.
    layer, part
        What it belongs to and is to it (``var``, ``kernel``); None and empty where nobody knows.
    bad
        Flat indices of the elements, ascending, int64.
    codes
        Of the findings about it.
    suspected
        Empty where the fault is certain; else why only a remedy that was asked for by name may
        touch it.
    """

    info: TensorInfo
    layer: Layer | None
    part: str
    bad: Array
    codes: tuple[str, ...]
    suspected: str = ""

    def without(self, indices: Array) -> Ailment | None:
        """Return what is left once some elements are treated; None for nothing."""
        rest = np.setdiff1d(self.bad, indices, assume_unique=True)
        if not rest.size:
            return None
        return Ailment(
            info=self.info, layer=self.layer, part=self.part, bad=rest,
            codes=self.codes, suspected=self.suspected,
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Patient:
    """A diagnosed checkpoint, as remedies see it.

    Parameters
    ----------
    ctx
        Table, statistics, layers and graph; the table is open.
    findings
        Of the rules and the adapter.
    orders
        What was asked for.
    donor
        The open donor, None without one.
    bedside
        The model to run, None without one.
    """

    ctx: Context
    findings: tuple[Finding, ...]
    orders: Orders
    donor: Donor | None = None
    bedside: Bedside | None = None
    named: frozenset[str] = frozenset()
    """Tensors that the orders' patterns name; empty without patterns."""

    def about(self, *codes: str) -> Iterator[Finding]:
        """Yield the findings of these codes."""
        return (finding for finding in self.findings if finding.code in codes)

    def matching(self, pattern: str) -> list[TensorInfo]:
        """Tensors whose names match a pattern, or whose layers do, in file order.

        Keras' users know a layer as ``post_bn``, not by the path of its weights.
        """
        match = matcher([pattern])
        found = [info for info in self.ctx.table.values() if match(info.name)]
        if found:
            return found
        return [
            info
            for info in self.ctx.table.values()
            if info.layer and (match(info.layer) or match(f"{info.layer}/{info.path[-1]}"))
        ]


class Remedy(ABC):
    """One way to replace what is broken.

    The class docstring says what it does, what it costs, and how well it did where it was
    measured.
    """

    name: ClassVar[str]
    """In kebab case; plans and receipts name it."""
    kind: ClassVar[Class]
    """Of most of its changes; a change may differ."""
    option: ClassVar[str] = ""
    """Option of ``repair`` that asks for it by name; empty for one that needs no asking."""

    def asked(self, orders: Orders) -> bool:
        """Whether the orders name it."""
        del orders
        return False

    @abstractmethod
    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        """Yield changes, refusals with reasons and remarks, for what no rung before has treated."""

    def unasked_hint(self, patient: Patient, change: Change) -> str:
        """Return the options to use where a change is too much to be made unasked."""
        del patient
        return self.option or f"--allow {change.kind}"

    def edit(
        self,
        ailment: Ailment,
        values: Array | Callable[[], Array],
        title: str,
        *,
        indices: Array | None = None,
        kind: Class | None = None,
    ) -> Edit:
        """Make an edit of an ailment's elements, or of ``indices`` among them."""
        at = ailment.bad if indices is None else indices
        if isinstance(values, np.ndarray):
            with np.errstate(over="ignore", invalid="ignore"):
                values = values.astype(ailment.info.kind.numpy, copy=False)
        return Edit(
            tensor=ailment.info.name,
            indices=at,
            values=values,
            remedy=self.name,
            kind=kind or self.kind,
            cures=ailment.codes,
            title=title,
        )

    def refusal(
        self, target: str, reason: str, codes: Sequence[str] = (), hint: str = ""
    ) -> Refusal:
        """Make a refusal."""
        return Refusal(
            target=target, reason=reason, remedy=self.name, codes=tuple(codes), hint=hint
        )
