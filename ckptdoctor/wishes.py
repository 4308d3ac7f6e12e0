"""Words of a repair's orders, as types that cost nothing to import."""

from __future__ import annotations

from typing import Literal

__all__ = ["Class", "Scope"]

Class = Literal["lossless", "statistical", "destructive"]
"""Provably the same model, or a file that could not be used; an estimate of what was there;
invented values."""
Scope = Literal["channels", "layers", "all"]
"""What ``--bn-reset`` resets."""
