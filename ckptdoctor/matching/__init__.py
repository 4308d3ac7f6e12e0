"""Which tensor of one table is which of another: for donors, and for models that take weights."""

from __future__ import annotations

from .match import Match, match, stripped

__all__ = ["Match", "match", "stripped"]
