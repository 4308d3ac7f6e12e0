"""JSON objects that give a key twice: loaders disagree which value counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["keep_last"]

MAX_NOTED = 100


def keep_last(repeated: set[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Make a hook for `json.loads` that takes the last value of a key, as without it, and notes it.

    Parameters
    ----------
    repeated
        Receives keys that one object gives twice: at most those of a hundred objects.

    Examples
    --------
    >>> import json
    >>> repeated = set()
    >>> json.loads('{"a": 1, "b": 2, "a": 3}', object_pairs_hook=keep_last(repeated)), repeated
    ({'a': 3, 'b': 2}, {'a'})
    """

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) and len(repeated) < MAX_NOTED:
            seen: set[str] = set()
            for key, _ in pairs:
                (repeated if key in seen else seen).add(key)
        return found

    return hook
