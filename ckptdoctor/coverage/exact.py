"""A checkpoint against a list of names."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..findings import Finding, Severity
from ..tensors import TensorTable
from .expected import Expectation, weights_of
from .wording import ignored, listing, shown, told

__all__ = ["held_against"]

_COMPILED = "_orig_mod."
_PROBES = 16
"""Missing names that are looked for behind other words."""
_LIKELY = 0.5
"""Share of the missing names that a prefix must explain before it is called one."""


def held_against(table: TensorTable, wanted: Expectation) -> Iterator[Finding]:
    """CK003 for names that are missing or surplus, wrapped, or of another shape."""
    names = weights_of(table)
    here = dict.fromkeys(table)
    shapes = {name: table[name].shape for name in here}
    missing, matched = _missing(wanted, list(here))
    surplus = [name for name in names if name not in matched]
    if missing and surplus:
        missing, surplus, found = _unwrapped(table, missing, surplus, wanted, shapes)
        yield from found
    yield from _told(table, wanted, missing, surplus)
    yield from _misshaped(table, wanted, shapes)


def _missing(wanted: Expectation, here: Sequence[str]) -> tuple[list[str], set[str]]:
    """Names without a tensor, and tensors with a name."""
    known = set(here)
    ordered: list[str] = []
    missing: list[str] = []
    matched: set[str] = set()
    for name in dict.fromkeys(wanted.names):
        if name in known:
            matched.add(name)
        elif "*" in name and not wanted.literal:
            ordered = ordered or sorted(known)
            found = _like(name, ordered)
            matched.update(found)
            missing += [] if found else [name]
        else:
            missing.append(name)
    return missing, matched


def _like(pattern: str, ordered: Sequence[str]) -> list[str]:
    """Names that a pattern means, found by what stands before its first star."""
    parts = pattern.split("*")
    start = bisect_left(ordered, parts[0])
    end = start
    while end < len(ordered) and ordered[end].startswith(parts[0]):
        end += 1
    return [name for name in ordered[start:end] if _matches(name, parts)]


def _matches(name: str, parts: Sequence[str]) -> bool:
    """Whether parts stand in a name in this order, the first in front and the last at its end.

    Taking each as early as it comes is enough, and needs no step back.
    """
    if not name.endswith(parts[-1]):
        return False
    at, end = len(parts[0]), len(name) - len(parts[-1])
    if end < at:
        return False
    for part in parts[1:-1]:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _unwrapped(
    table: TensorTable,
    missing: Sequence[str],
    surplus: Sequence[str],
    wanted: Expectation,
    shapes: dict[str, tuple[int, ...]],
) -> tuple[list[str], list[str], list[Finding]]:
    """Find names that are there under others' words, and say so once instead of name by name."""
    compiled = {name.replace(_COMPILED, ""): name for name in surplus}
    drop, add = _prefixes(missing, list(compiled))
    pairs: dict[str, str] = {}
    for name in missing:
        there = compiled.get(f"{drop}{name}") if not add else None
        if add and name.startswith(add):
            there = compiled.get(name[len(add) :])
        if there is not None:
            pairs[name] = there
    if not pairs or len(pairs) < _LIKELY * len(missing):
        return list(missing), list(surplus), []
    for name, there in pairs.items():
        shapes[name] = shapes[there]
    used = set(pairs.values())
    left = [name for name in missing if name not in pairs]
    rest = [name for name in surplus if name not in used]
    return left, rest, [_wrapping(table, wanted, pairs, drop, add)]


def _prefixes(missing: Sequence[str], surplus: Sequence[str]) -> tuple[str, str]:
    """Words in front that only the file has, or only the expectation."""
    votes: Counter[tuple[str, str]] = Counter()
    here = set(surplus)
    for name in missing[:: 1 + len(missing) // _PROBES]:
        if name in here:
            votes["", ""] += 1
        dotted = f".{name}"
        votes.update((n[: len(n) - len(name)], "") for n in surplus if n.endswith(dotted))
        votes.update(
            ("", name[: match.end()])
            for match in re.finditer(r"\.", name)
            if name[match.end() :] in here
        )
    # of equals the shortest: 'model.' rather than 'model.encoder.'; then the first in the file
    best = max(votes, key=lambda pair: (votes[pair], -len(pair[0]) - len(pair[1])), default=None)
    return best or ("", "")


def _wrapping(
    table: TensorTable, wanted: Expectation, pairs: Mapping[str, str], drop: str, add: str
) -> Finding:
    count = len(pairs)
    names = list(pairs.values())
    of = f"{count:,} names" if count < len(table) else f"all {count:,} names"
    if drop and all(_is_container(table, name, drop) for name in names):
        text = f"{of} of {wanted.source} lie under the key {shown(drop[:-1])} of the file"
        return told(Severity.NOTE, text, table.path, "wrapped", names)
    if add:
        text = f"{count:,} names lack the {shown(add)} in front that {wanted.source} expects"
        cure = f"add it to each: {{{add!r:.80} + name: value}}"
    elif drop:
        text = f"{of} start with {shown(drop)}, which {wanted.source} does not expect"
        cure = f"remove it from each: name.removeprefix({drop!r:.80})"
    else:
        drop = _COMPILED
        text = f"{of} hold {shown(drop)}, which {wanted.source} does not expect"
        cure = f"remove it from each: name.replace({drop!r}, '')"
    if drop and drop != _COMPILED and any(_COMPILED in name for name in names):
        cure += f".replace({_COMPILED!r}, '')"
    text += f": a plain load_state_dict finds none of them; {cure}"
    return told(Severity.ERROR, text, table.path, "wrapped", names)


def _is_container(table: TensorTable, name: str, prefix: str) -> bool:
    """Whether a prefix is made of keys of the dictionaries around the weights."""
    words = table[name].path[:-1]
    return any(".".join(words[:depth]) + "." == prefix for depth in range(1, len(words) + 1))


def _told(
    table: TensorTable, wanted: Expectation, missing: Sequence[str], surplus: Sequence[str]
) -> Iterator[Finding]:
    source, where = wanted.source, table.path
    needed = [name for name in missing if not ignored(name)]
    if needed:
        of = f"{len(needed):,} of the {len(set(wanted.names)):,} weights that {source} expects"
        verb = "is" if len(needed) == 1 else "are"
        text = f"{of} {verb} missing: {listing(needed, table)}"
        if len(needed) == len(set(wanted.names)):
            own = weights_of(table)
            text += f"; the file's own names are like {shown(own[0])}" if own else ""
            text += "" if own else "; the file holds no weights at all"
        yield told(Severity.ERROR, text, where, "missing", needed)
    if len(needed) < len(missing):
        names = [name for name in missing if ignored(name)]
        text = f"{len(names):,} that {source} expects and loaders make anew "
        text += f"{'is' if len(names) == 1 else 'are'} not there: {listing(names, table)}"
        yield told(Severity.NOTE, text, where, "missing", names)
    odd = [name for name in surplus if not ignored(name)]
    if odd:
        text = f"{_weights(len(odd))} that {source} does not expect: {listing(odd, wanted.names)}"
        yield told(Severity.WARNING, text, where, "surplus", odd)
    if len(odd) < len(surplus):
        names = [name for name in surplus if ignored(name)]
        text = f"{_weights(len(names))} that {source} does not expect and loaders ignore on "
        text += f"purpose: {listing(names, wanted.names)}"
        yield told(Severity.NOTE, text, where, "surplus", names)


def _weights(count: int) -> str:
    return "1 weight" if count == 1 else f"{count:,} weights"


def _misshaped(
    table: TensorTable, wanted: Expectation, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Finding]:
    odd = [
        name for name, shape in wanted.shapes.items() if name in shapes and shapes[name] != shape
    ]
    if odd:
        first = odd[0]
        text = f"{_weights(len(odd))} with another shape than in {wanted.source}, first "
        text += f"{shown(first)}: {list(shapes[first])} instead of {list(wanted.shapes[first])}"
        yield told(Severity.ERROR, text, table.path, "misshaped", odd)
