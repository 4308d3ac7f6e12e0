"""What each command was asked for, as plain data that costs nothing to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..results import FailOn, Sort, Tensors

__all__ = ["InspectWish", "ListingWish", "RepairWish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectWish:
    """What ``inspect`` was asked to do; ``given`` are wishes, None where nothing was said."""

    paths: list[str]
    given: dict[str, Any]
    config: str | None
    tensors: Tensors | None
    sort: Sort
    fail_on: FailOn | None
    format: str
    reports: list[tuple[str, str]]
    debug: bool
    quiet: bool
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingWish:
    """What ``explain``, ``rules`` or ``formats`` was asked to show."""

    what: str
    format: str
    color: str
    codes: list[str] | None = None
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairWish:
    """``given`` are the arguments of `ckptdoctor.repair`."""

    path: str
    given: dict[str, Any]
    config: str | None
    format: str
    quiet: bool
    color: str
    debug: bool
