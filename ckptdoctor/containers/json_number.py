"""One number of a JSON text, replaced without touching another character of it."""

from __future__ import annotations

import json
import math
import re

from ..errors import FormatError, UsageError

__all__ = ["with_number"]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_SHOWN = 80
"""Characters of a key that names in the table keep."""


def with_number(text: str, path: str, value: float) -> str:
    """Replace a number.

    Parameters
    ----------
    text
        A JSON document: an object.
    path
        Keys from the outermost object to the number, joined by ``/``, each cut off after 80
        characters: the rest of a name of `TensorTable.scalars` behind its prefix.
    value
        Finite.  It is spelled with a point where the old number is, and without where it is
        not, as far as it is a whole number.

    Raises
    ------
    FormatError
        If the text is no JSON.
    UsageError
        If there is no number at the path, or the new one is none that JSON can spell.

    Examples
    --------
    >>> with_number('{"a" : {"lr":1e-1, "n": 3}}', "a/lr", 0.001)
    '{"a" : {"lr":0.001, "n": 3}}'
    """
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise UsageError(f"expected a finite number for {path[:200]!r}, found another")
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the configuration is no JSON: {str(error)[:120]}") from None
    span = _find(text, path)
    if span is None:
        raise UsageError(f"the configuration has no number {path[:200]!r}")
    start, end = span
    return text[:start] + _spelled(value, text[start:end]) + text[end:]


def _spelled(value: float, old: str) -> str:
    whole = re.fullmatch(r"-?\d+", old) is not None
    if whole and value == int(value):
        return str(int(value))
    return repr(value if whole else float(value))


class _Open:
    """An object or list that the reader is in."""

    __slots__ = ("is_list", "key", "name")

    def __init__(self, name: str | None, *, is_list: bool) -> None:
        self.name, self.is_list = name, is_list
        self.key = ""


def _find(text: str, path: str) -> tuple[int, int] | None:
    """Where a number stands in valid JSON; the last one, where keys are repeated, as for readers."""
    found: tuple[int, int] | None = None
    way: list[tuple[_Open, str]] = []  # to what was found
    inside: list[_Open] = []
    name: str | None = ""  # of the value that comes next; None in a list, where nothing has one
    expects_key = False
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("]", "}"):
            inside.pop()
        elif token == ",":
            expects_key, name = not inside[-1].is_list, None
        elif token == ":":
            here = inside[-1]
            name = None if here.name is None else f"{here.name}/{here.key[:_SHOWN]}"
            if (here, here.key) in way:
                found = None
        elif expects_key:
            inside[-1].key, expects_key = json.loads(token), False
        elif token in ("{", "["):
            expects_key = token == "{"
            inside.append(_Open(name if expects_key else None, is_list=not expects_key))
            name = None
        elif name == f"/{path}" and token[0] in "-0123456789NI":
            found, way = match.span(), [(each, each.key) for each in inside]
    return found
