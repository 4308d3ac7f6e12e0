"""Which tensor of one checkpoint is which of another, whatever format and wrapping each has."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..layers import Layer, Layers, read_layers
from ..layers.groups import plain
from ..roles import role_of
from ..tensors import Role, TensorInfo, TensorTable
from .keras_order import match_by_class_order, ranks_of

__all__ = ["Match", "match", "stripped"]

Words = tuple[str, ...]

_WRAPPERS = frozenset(
    {
        "state_dict", "model", "module", "_module", "net", "network", "model_state_dict",
        "model_state", "net_state_dict", "model_weights", "weights", "params",
    }
)  # fmt: skip
"""Leading words of a name that say who saved it, not what it is."""

_COMPILED = "_orig_mod"
"""What `torch.compile` puts anywhere into a name."""

_PROBES = 16
"""Names without a partner that are looked for with other words in front."""

_CANDIDATES = 64
"""Partners of one probe that vote; hostile names could give it a hundred thousand."""

_ROUNDS = 4
"""Parts of a model that may each have a prefix of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Partners of a patient's tensors in a donor.

    Parameters
    ----------
    pairs
        Tensor of the patient -> tensor of the donor, of the same shape.
    missing, surplus
        Weights of either side without a partner, in file order.
    misshaped
        Weights that have the same name and different shapes: patient, donor.
    judged
        Weights of the patient: tensors of the model and its average.
    matched
        How many of them have a partner.
    """

    pairs: Mapping[str, str]
    missing: tuple[str, ...]
    surplus: tuple[str, ...]
    misshaped: tuple[tuple[str, str], ...]
    judged: int
    matched: int


class _Entry(NamedTuple):
    """A tensor and the ways to say which it is."""

    info: TensorInfo
    full: Words
    """Every word of its name, the layer's real one where it is known."""
    bare: Words
    """Without wrappers in front."""
    part: Words
    """The layer's name, and what the tensor is to it instead of its own last word."""
    vague: Words
    """The same for a file that does not say whether a gain or an offset is missing."""
    keras: bool
    """Whether a matrix has its outputs last."""


def match(
    patient: TensorTable,
    donor: TensorTable,
    patient_layers: Layers | None = None,
    donor_layers: Layers | None = None,
) -> Match:
    """Find every tensor's partner: by its name, without wrappers, by its layer and part, by order.

    Tensors of the model get partners among the donor's model, those of the average among its
    average, or where the donor holds only one of both, among that.  Matrices have a partner only
    where both sides lay them out alike: Keras puts inputs before outputs, torch does not.  Other
    roles (optimizer, loop state) match by the same name alone.

    Examples
    --------
    >>> old = TensorTable.from_arrays({"module.bn.weight": [1.0], "module.fc.bias": [0.0, 0.0]})
    >>> new = TensorTable.from_arrays({"model.bn.weight": [2.0], "model.fc.bias": [0.0]})
    >>> found = match(new, old)
    >>> found.pairs, found.misshaped, found.matched, found.judged
    ({'model.bn.weight': 'module.bn.weight'}, (('model.fc.bias', 'module.fc.bias'),), 1, 2)
    """
    ours = patient_layers or read_layers(patient)
    theirs = donor_layers or read_layers(donor)
    ranks = ranks_of(patient, donor)
    pairs: dict[str, str] = {}
    misshaped: list[tuple[str, str]] = []
    judged = 0
    for role in ("model", "ema"):
        wanted = _entries(patient, ours, role, ranks[0])
        judged += len(wanted)
        offered = _entries(donor, theirs, _role_offered(donor, role), ranks[1])
        if wanted and offered:
            _match_role(wanted, offered, pairs, misshaped)
            match_by_class_order(patient, donor, ours, theirs, pairs)
    _add_aliases(patient, pairs)
    matched = sum(1 for name in pairs if patient[name].role in ("model", "ema"))
    used = set(pairs.values()) | {other for _, other in misshaped}
    known = {name for name, _ in misshaped}
    missing = tuple(
        info.name
        for info in patient.values()
        if info.role in ("model", "ema") and info.name not in pairs and info.name not in known
    )
    surplus = tuple(
        info.name
        for info in donor.values()
        if info.role in ("model", "ema") and info.name not in used
    )
    _add_same_names(patient, donor, pairs)
    return Match(
        pairs=pairs, missing=missing, surplus=surplus, misshaped=tuple(misshaped),
        judged=judged, matched=matched,
    )  # fmt: skip


def stripped(words: Sequence[str]) -> Words:
    """Words of a name without the wrappers in front.

    Examples
    --------
    >>> stripped(["state_dict", "model", "_orig_mod", "bn1", "weight"]), stripped(["model"])
    (('bn1', 'weight'), ('model',))
    """
    kept = [word for word in words[:-1] if word != _COMPILED]
    start = next((i for i, word in enumerate(kept) if not _wraps(word)), len(kept))
    return (*kept[start:], *words[-1:])


@functools.lru_cache(maxsize=4096)
def _wraps(word: str) -> bool:
    return word in _WRAPPERS or role_of((word, "x")) == "ema"


def _role_offered(donor: TensorTable, role: Role) -> Role:
    roles = {info.role for info in donor.values()}
    if role in roles:
        return role
    return "ema" if role == "model" else "model"


def _entries(
    table: TensorTable, layers: Layers, role: Role, ranks: Mapping[str, str]
) -> list[_Entry]:
    keras_file = table.format.startswith("keras")
    return [
        _entry(info, layers.of(info.name), layers, ranks, keras_file)
        for info in table.values()
        if info.role == role
    ]


def _entry(
    info: TensorInfo,
    layer: Layer | None,
    layers: Layers,
    ranks: Mapping[str, str],
    keras_file: bool,
) -> _Entry:
    if "/" in info.name:
        owner = tuple(ranks.get(word, word) for word in info.layer.split("/"))
        full = (*owner, plain(info.path[-1]))
    else:
        full = tuple(plain(info.name).split("."))
        owner = full[:-1] if layer is None else tuple(layer.name.split("."))
    if layer is None:
        return _Entry(info, full, stripped(full), stripped(full), stripped(full), keras_file)
    part = layers.part_of(info.name)
    lone = part in ("gamma", "beta") and not {"gamma", "beta"} <= set(layer.parts)
    named = stripped((*owner, part))
    vague = (*named[:-1], "gamma_or_beta") if lone else named
    return _Entry(info, full, stripped(full), named, vague, layer.keras)


def _match_role(
    wanted: Sequence[_Entry],
    offered: Sequence[_Entry],
    pairs: dict[str, str],
    misshaped: list[tuple[str, str]],
) -> None:
    left = list(wanted)
    ways: list[Callable[[_Entry], Words]] = [
        lambda entry: entry.full,
        lambda entry: entry.bare,
        lambda entry: entry.part,
    ]
    # numbers of variables are no names: vars/0 may be a gamma or a mean
    numbered = any(entry.full[-1].isdecimal() for entry in (*wanted, *offered))
    for way in ways[2:] if numbered else ways:
        left = _by_key(left, offered, way, pairs, misshaped)
    if any(entry.part[-1] == "gamma_or_beta" for entry in (*wanted, *offered)):
        left = _by_key(left, offered, lambda entry: entry.vague, pairs, misshaped)
    for _ in range(_ROUNDS):
        fewer = _by_prefix(left, offered, pairs)
        if len(fewer) == len(left):
            break
        left = fewer
    # the models around a layer are left out of Keras 3's names where its own is unique
    if any("/" in entry.info.name for entry in wanted):
        _by_key(left, offered, lambda entry: entry.part[-2:], pairs, misshaped, unique=True)


def _by_key(
    wanted: Iterable[_Entry],
    offered: Iterable[_Entry],
    way: Callable[[_Entry], Words],
    pairs: dict[str, str],
    misshaped: list[tuple[str, str]],
    *,
    unique: bool = False,
) -> list[_Entry]:
    """Pair what has the same key; returns what is left."""
    shelf: dict[Words, list[_Entry]] = {}
    for entry in offered:
        shelf.setdefault(way(entry), []).append(entry)
    wanted = list(wanted)
    counts = Counter(way(entry) for entry in wanted) if unique else Counter[Words]()
    used = set(pairs.values()) if unique else set()
    left = []
    for entry in wanted:
        found = shelf.get(way(entry), ())
        if unique and (len(found) > 1 or counts[way(entry)] > 1):
            found = ()
        best = max(found, key=lambda other: _common(entry.full, other.full), default=None)
        if best is None or best.info.name in used:
            left.append(entry)
        elif _fits(entry, best):
            pairs[entry.info.name] = best.info.name
        elif _comparable(entry, best):
            misshaped.append((entry.info.name, best.info.name))
        else:
            left.append(entry)
    return left


def _fits(entry: _Entry, other: _Entry) -> bool:
    return entry.info.shape == other.info.shape and _comparable(entry, other)


def _comparable(entry: _Entry, other: _Entry) -> bool:
    return entry.keras == other.keras or len(entry.info.shape) < 2


def _common(one: Words, other: Words) -> int:
    """Words that two names end in alike."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _by_prefix(
    wanted: Sequence[_Entry], offered: Sequence[_Entry], pairs: dict[str, str]
) -> list[_Entry]:
    """Pair names that differ by the words in front, the same ones for many of them.

    A few of the names without a partner vote for how to replace their first words; the vote that
    gives most of them a partner decides.
    """
    used = set(pairs.values())
    free = {entry.bare: entry for entry in offered if entry.info.name not in used}
    ends: dict[Words, list[Words]] = {}
    for words in free:
        ends.setdefault(words[-2:], []).append(words)
    votes: Counter[tuple[Words, Words]] = Counter()
    for probe in wanted[:: max(1, len(wanted) // _PROBES)][:_PROBES]:
        near = ends.get(probe.bare[-2:], ())[: 16 * _CANDIDATES]
        longest = max((_common(probe.bare, words) for words in near), default=0)
        close = [words for words in near if _common(probe.bare, words) == longest]
        for words in close[:_CANDIDATES]:
            votes[probe.bare[:-longest], words[:-longest]] += 1
    best: dict[str, str] = {}
    for (ours, theirs), _ in votes.most_common(_PROBES):
        found = {}
        for entry in wanted:
            if entry.bare[: len(ours)] == ours:
                other = free.get((*theirs, *entry.bare[len(ours) :]))
                if other is not None and _fits(entry, other):
                    found[entry.info.name] = other.info.name
        best = found if len(found) > len(best) else best
    if len(best) < 2:  # one of a kind may be anything
        return list(wanted)
    pairs.update(best)
    return [entry for entry in wanted if entry.info.name not in best]


def _add_aliases(patient: TensorTable, pairs: dict[str, str]) -> None:
    """Give a tied weight the partner of its other name: safetensors stores only one of both."""

    def memory(info: TensorInfo) -> tuple[object, ...]:
        return info.storage, info.extent and info.extent.offset, info.shape, info.strides

    shared = {
        memory(patient[name]): other for name, other in pairs.items() if patient[name].storage
    }
    for info in patient.values():
        judged = info.role in ("model", "ema") and info.name not in pairs
        if judged and info.storage and memory(info) in shared:
            pairs[info.name] = shared[memory(info)]


def _add_same_names(patient: TensorTable, donor: TensorTable, pairs: dict[str, str]) -> None:
    for info in patient.values():
        other = donor.get(info.name)
        if info.role in ("model", "ema") or other is None:
            continue
        if other.role == info.role and other.shape == info.shape:
            pairs[info.name] = info.name
