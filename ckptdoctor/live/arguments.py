"""Arguments that are whole numbers, checked before anything is read, run or saved."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import UsageError

__all__ = ["whole"]


def whole(value: Any, what: str, least: int) -> int:
    """Return a whole number, whatever type holds it.

    Raises
    ------
    UsageError
        If it is none, or less than the least.

    Examples
    --------
    >>> whole(64, "samples", 1)
    64
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if isinstance(value, bool) or found < least:
        shown = _shown(value)
        message = f"expected {what} to be a whole number, {least} or more, found {shown:.100}"
        raise UsageError(message)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 300:  # Python may refuse to write it out
        return f"one of {value.bit_length()} bits"
    return f"{value!r:.100}" if isinstance(value, int | float | str) else type(value).__name__
