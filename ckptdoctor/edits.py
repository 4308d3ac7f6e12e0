"""What a repair changes, as data: changes, refusals, and the plan that lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from .tensors import Array
from .wishes import Class

__all__ = [
    "CLASSES",
    "Change",
    "Class",
    "Edit",
    "NumberEdit",
    "Refusal",
    "Remark",
    "Removal",
    "RepairPlan",
    "Restamp",
    "Trim",
]

CLASSES: tuple[Class, ...] = ("lossless", "statistical", "destructive")
"""From harmless to not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What every change says of itself.

    Parameters
    ----------
    remedy
        Name of what made it: ``donor``, ``bn-reset``.
    kind
        Its class, see `Class`.
    cures
        Codes of the findings it cures; empty where somebody asked for it.
    title
        What it does, honestly, in one line: ``mean 0 and variance 1``.
    """

    remedy: str
    kind: Class
    cures: tuple[str, ...]
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit(_Change):
    """New values for some elements of one tensor.

    Parameters
    ----------
    tensor
        Name in the table.
    indices
        Of the elements, flat in row-major order, ascending, int64; None for all of them.
    values
        New values in the tensor's own dtype, shape ``(len(indices),)``, or what makes them when
        they are written: a large tensor should not wait in memory.
    """

    tensor: str
    indices: Array | None
    values: Array | Callable[[], Array]

    @property
    def mends(self) -> bool:
        """Whether it brings the data back to what a stated checksum says of them."""
        return self.remedy == "checksum"

    def after(self) -> Array:
        """Make the new values, flat."""
        made = self.values() if callable(self.values) else self.values
        return made.reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberEdit(_Change):
    """A new value for a Python number of the training state or the configuration.

    ``name`` is its path as `TensorTable.scalars` has it.
    """

    name: str
    before: float | int
    value: float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal(_Change):
    """Parts of the checkpoint that go: ``names`` are the outermost keys or groups."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What a remedy wants said: what its changes cost, or what it left alone on purpose."""

    remedy: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trim(_Change):
    """Bytes behind the end of the format that go: ``size`` is what stays."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Restamp(_Change):
    """A stated checksum that is made to fit the data; ``where`` names it."""

    where: str


Change = Edit | NumberEdit | Removal | Trim | Restamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is not done, and why.

    Parameters
    ----------
    target
        Tensor, number or part of the file.
    reason
        In one sentence.
    remedy
        Which remedy refuses; empty where none exists.
    codes
        Of the findings that stay.
    hint
        What would do it: options of ``repair``, such as ``--bn-reset``.
    """

    target: str
    reason: str
    remedy: str = ""
    codes: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """Changes to one checkpoint, and what is left.

    Parameters
    ----------
    changes
        In ladder order; no two touch the same element.
    refusals
        Findings and wishes that nothing is done about.
    warnings
        What the changes cost, one sentence each.
    explicit
        Whether only actions were asked for by name: what they do not treat was not asked for.
    made_for
        Content identity of the file: ``size`` and ``sha256``; empty until somebody needs it.
    """

    changes: tuple[Change, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    explicit: bool = False
    made_for: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def edits(self) -> Iterator[Edit]:
        """Yield the changes that overwrite elements."""
        return (change for change in self.changes if isinstance(change, Edit))

    @property
    def tensors(self) -> dict[str, list[Edit]]:
        """Edits by tensor."""
        found: dict[str, list[Edit]] = {}
        for edit in self.edits:
            found.setdefault(edit.tensor, []).append(edit)
        return found
