"""What a message about a mistake repeats, and what it suggests instead."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["shown", "suggestion"]

_LONGEST = 60
"""Characters of a word or value that a message repeats."""


def shown(value: object) -> str:
    """Text of a value, short.

    Examples
    --------
    >>> shown("a" * 100)[:10], shown(1 << 100_000)
    ("'aaaaaaaaa", 'a number of 100,001 bits')
    """
    try:
        return f"{value!r:.{_LONGEST}}"
    except ValueError:  # an integer of more than 4300 digits has no text
        bits = f" of {value.bit_length():,} bits" if isinstance(value, int) else ""
        return f"a number{bits}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """``did you mean ...?`` for the words closest to one that does not exist; empty without any.

    Examples
    --------
    >>> suggestion("nan-value", ["nan-values", "inf-values"])
    "did you mean 'nan-values' or 'inf-values'?"
    """
    from difflib import get_close_matches  # noqa: PLC0415  (only for mistakes)

    spelled = {have.lower(): have for have in known}
    close = get_close_matches(word[:_LONGEST].lower(), list(spelled), n=2, cutoff=0.6)
    return f"did you mean {' or '.join(repr(spelled[c]) for c in close)}?" if close else ""
