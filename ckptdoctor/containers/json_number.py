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
    if not math.isfinite(value):
        raise UsageError(f"expected a finite number for {path[:200]!r}, found {value}")
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


def _find(text: str, path: str) -> tuple[int, int] | None:
    """Where a number stands in valid JSON; the last one, where keys are repeated, as for readers."""
    found: tuple[int, int] | None = None
    names: list[str | None] = []  # of the open objects; None for what is in a list
    name: str | None = ""  # of the value that comes next
    key = ""
    lists: list[bool] = []
    expects_key = False
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("]", "}"):
            names.pop()
            lists.pop()
        elif token == ",":
            expects_key = not lists[-1]
            name = None
        elif token == ":":
            above = names[-1]
            name = None if above is None else f"{above}/{key[:_SHOWN]}" if above else key[:_SHOWN]
            if name is not None and (path == name or path.startswith(f"{name}/")):
                found = None  # whatever an equal key said before
        elif expects_key:
            key, expects_key = json.loads(token), False
        elif token in ("{", "["):
            names.append(None if token == "[" else name)
            lists.append(token == "[")
            expects_key, name = token == "{", None
        elif name == path and token[0] in "-0123456789NI":
            found = match.span()
    return found
