"""What each command was asked for, as plain data that costs nothing to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..results import FailOn, Sort, Tensors

__all__ = ["InspectWish", "ListingWish", "PreflightWish", "ProbeWish", "RepairWish"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightWish:
    """What ``preflight`` was asked to do; ``given`` are wishes, None where nothing was said.

    ``expect_sha256`` is a digest, or a file as ``sha256sum`` writes them.
    """

    paths: list[str]
    given: dict[str, Any]
    config: str | None
    fail_on: FailOn | None
    expect_sha256: str | None
    expect_keys: str | None
    cache: str | None
    cache_key: Literal["stat", "content"]
    allow_unsafe_load: bool
    format: str
    reports: list[tuple[str, str]]
    debug: bool
    quiet: bool
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeWish:
    """What ``probe`` was asked for; ``given`` are the arguments of `ckptdoctor.probe`."""

    model: str
    given: dict[str, Any]
    layers: Literal["near", "all", "none"]
    format: str
    quiet: bool
    color: str
    debug: bool
