"""What a guard calls unfit, and what it does about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UsageError
from ..findings import Severity
from ..results import Purpose, Wishes

__all__ = ["LOSSES", "KeepUnfit", "OnUnfit", "Terms"]

OnUnfit = Literal["warn", "stop", "raise"]
KeepUnfit = Literal["both", "first", "latest", "none"]
Limit = Literal["error", "warning"]

LOSSES = (
    "NF001", "NF002", "BN001", "BN002", "BN003", "WT003", "WT009", "TS001", "TS002", "TS005",
    "TS006", "CK001", "CK003", "CK004",
)  # fmt: skip
"""What is lost when it replaces a good checkpoint: values that are no numbers any more, statistics
and weights that exploded, optimizer state that ruins the next step, bytes that are not there.

Everything else can be as intended in the middle of a training: statistics that have not moved yet,
layers that start from zero, code of one's own in the file.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Choices of a guard; see `ckptdoctor.guards.guarded_save`.

    Raises
    ------
    UsageError
        If a choice is none of those there are.

    Examples
    --------
    >>> Terms(on_unfit="panic")
    Traceback (most recent call last):
    ckptdoctor.errors.UsageError: expected on_unfit to be warn, stop or raise, found 'panic'
    """

    on_unfit: OnUnfit = "warn"
    keep_unfit: KeepUnfit = "both"
    fail_on: Limit = "error"
    purpose: Purpose = "any"
    select: Sequence[str] = LOSSES
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_choice("on_unfit", self.on_unfit, OnUnfit)
        _check_choice("keep_unfit", self.keep_unfit, KeepUnfit)
        _check_choice("fail_on", self.fail_on, Limit)
        from ..selection import check_wishes  # noqa: PLC0415  (NumPy, before anything is saved)

        check_wishes(self.wishes)
        for name in ("select", "ignore"):  # comparable, however they were given
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def wishes(self) -> Wishes:
        """How a saved file is to be examined; what is ignored is, however it was selected."""
        from ..selection import prefixes, wanted  # noqa: PLC0415  (NumPy)

        ignored = prefixes(self.ignore) if not isinstance(self.ignore, str) else ()
        left = tuple(code for code in self.select if wanted(code, (), ignored))
        return Wishes(purpose=self.purpose, select=left or self.select, ignore=self.ignore)

    @property
    def limit(self) -> Severity:
        """Lowest severity that makes a checkpoint unfit."""
        return Severity[self.fail_on.upper()]


def _check_choice(name: str, value: object, literal: Any) -> None:
    *others, last = get_args(literal)
    if value not in (*others, last):
        listed = f"{', '.join(others)} or {last}"
        raise UsageError(f"expected {name} to be {listed}, found {value!r:.100}")
