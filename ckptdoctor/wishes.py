"""What ``repair`` was asked for on the command line, as plain data that costs nothing to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Class", "RepairWish", "Scope"]

Class = Literal["lossless", "statistical", "destructive"]
"""Provably the same model, or a file that could not be used; an estimate of what was there;
invented values."""
Scope = Literal["channels", "layers", "all"]
"""What ``--bn-reset`` resets."""


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
