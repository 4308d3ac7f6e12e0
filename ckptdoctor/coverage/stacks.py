"""A checkpoint of a family that no table knows, against its own layers and a few settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..findings import Finding, Severity
from ..tensors import TensorTable
from .templates import MAX_LAYERS, MAX_SIZE, setting
from .wording import listing, numbered, shown, told

__all__ = ["held_against_itself"]

_LAYERS = 4
"""The fewest layers from which one can be told to differ from the others."""
_LONE = 6
"""The fewest from which that is a loss: of four stages of a pyramid one has no resampling (DPT)."""
_WEIGHTS = 3
"""The fewest weights of a layer: two are a kernel and its bias, and such stacks have gaps."""
_UNIFORM = 0.75
"""Share of a stack's layers that must hold the same weights before the others mean anything."""
_WHOLE = 1.5
"""Numbers for each layer that is there, up to which those that are not are called missing."""
_NODES = 10_000
"""Values of a configuration that are looked at."""

_COUNTS = ("layers", "n_layer", "depth", "blocks", "stages")
_EXTRA = ("nextn", "mtp", "medusa", "eagle")
_EMBEDDINGS = (
    "embed_tokens.weight", "word_embeddings.weight", "wte.weight", "tok_embeddings.weight",
    "embed_in.weight",
)  # fmt: skip


def held_against_itself(
    table: TensorTable, names: Sequence[str], config: Mapping[str, Any], source: str
) -> Iterator[Finding]:
    """CK003 for layers that a numbered stack lacks, and a lone layer that lacks a weight."""
    stacks = [stack for stack in _stacks(names) if stack.even]
    counts = _counts(config)
    asked = setting(config, "num_hidden_layers") or setting(config, "text_config.num_hidden_layers")
    for stack in stacks:
        gaps = stack.gaps()
        if gaps:
            yield _missing(table, stack, gaps, source, names)
        lone = stack.lone()
        if lone is not None:
            number, lacking = lone
            full = [f"{stack.front}{number}.{inner}" for inner in lacking]
            text = f"layer {number} of {shown(stack.name)} lacks what the other layers have: "
            text += listing(full, names)
            yield told(Severity.WARNING, text, table.path, "missing", full)
    whole = len(stacks) == 1 and len(stacks[0].layers) == stacks[0].end
    if whole and type(asked) is int and counts == {asked}:
        yield from _of_other_length(table, stacks[0], asked, source, config, names)
    yield from _embeddings(table, names, config, source)


class _Stack:
    """Layers of one name and many numbers."""

    def __init__(self, name: str, layers: Mapping[int, frozenset[str]]) -> None:
        self.name, self.layers = name, layers
        self.front = f"{name}." if name else ""
        self.usual, self.alike = Counter(layers.values()).most_common(1)[0]
        parts = {inner.partition(".")[0] for inner in self.usual}
        self.even = (
            len(layers) >= _LAYERS
            and len(self.usual) >= _WEIGHTS
            and len(parts) > 1
            and self.alike >= _UNIFORM * len(layers)
        )

    @property
    def end(self) -> int:
        return max(self.layers) + 1

    def gaps(self) -> list[int]:
        """Numbers in between that are not there; none where so many are that it is a design."""
        if self.end > _WHOLE * len(self.layers):
            return []
        return [number for number in range(self.end) if number not in self.layers]

    def lone(self) -> tuple[int, list[str]] | None:
        """Find the one layer in between that lacks something, and holds nothing else instead.

        First and last layers differ by design in many models.
        """
        odd = [number for number, held in self.layers.items() if held != self.usual]
        if len(self.layers) < _LONE or len(odd) != 1 or odd[0] in (0, self.end - 1):
            return None
        if not self.layers[odd[0]] < self.usual:
            return None
        return odd[0], sorted(self.usual - self.layers[odd[0]])


def _stacks(names: Sequence[str]) -> Iterator[_Stack]:
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        part = numbered(name)
        if part is not None:
            found.setdefault(part[0], {}).setdefault(part[1], set()).add(part[2])
    for name, layers in found.items():
        yield _Stack(name, {number: frozenset(held) for number, held in layers.items()})


def _counts(config: Mapping[str, Any]) -> set[int]:
    """Every number of layers that a configuration speaks of, in whatever part of a model."""
    found: set[int] = set()
    todo: list[tuple[bool, object]] = [(False, config)]
    left = _NODES
    while todo and left:
        left -= 1
        counts, value = todo.pop()
        if isinstance(value, dict):
            todo += [
                (any(word in str(key)[:80] for word in _COUNTS), item)
                for key, item in value.items()
            ][:_NODES]
        elif isinstance(value, list):
            todo += [(counts, item) for item in value[:_NODES]]
        elif counts and type(value) is int and 0 < value <= MAX_LAYERS:
            found.add(value)
    return found


def _of_other_length(
    table: TensorTable,
    stack: _Stack,
    asked: int,
    source: str,
    config: Mapping[str, Any],
    names: Sequence[str],
) -> Iterator[Finding]:
    if stack.alike == asked:  # what is at the ends is no layer, but embeddings or a head
        return
    if asked / 2 <= stack.end < asked:
        yield _missing(table, stack, range(stack.end, asked), source, names)
    elif stack.end > asked and not any(word in str(key) for key in config for word in _EXTRA):
        full = [name for name in names if (numbered(name) or ("", -1))[1] >= asked]
        text = f"{source} asks for {asked} layers, {shown(stack.name)} has {stack.end}: loaders "
        text += f"pass the others by: {listing(full, [])}"
        yield told(Severity.WARNING, text, table.path, "surplus", full)


def _missing(
    table: TensorTable, stack: _Stack, gone: Sequence[int], source: str, names: Sequence[str]
) -> Finding:
    full = [f"{stack.front}{number}.{inner}" for number in gone for inner in sorted(stack.usual)]
    text = f"{len(gone)} of the layers of {shown(stack.name)} that {source} asks for "
    text += f"{'is' if len(gone) == 1 else 'are'} missing, and a loader leaves "
    text += f"{'it' if len(gone) == 1 else 'them'} random: {listing(full, names)}"
    return told(Severity.ERROR, text, table.path, "missing", full)


def _embeddings(
    table: TensorTable, names: Sequence[str], config: Mapping[str, Any], source: str
) -> Iterator[Finding]:
    words = setting(config, "vocab_size") or setting(config, "text_config.vocab_size")
    found = [name for name in names if name.endswith(_EMBEDDINGS) and name in table]
    if len(found) != 1 or type(words) is not int or words > MAX_SIZE or _has_more_words(config):
        return
    shape = table[found[0]].shape
    if len(shape) == 2 and shape[0] < words:
        text = f"{shown(found[0])} has {shape[0]:,} rows, {source} asks for {words:.10g} words"
        yield told(Severity.WARNING, text, table.path, "misshaped", found)


def _has_more_words(config: Mapping[str, Any]) -> bool:
    """Whether a configuration speaks of more than one vocabulary: of two texts, of units of speech."""
    named = (str(key) for key in config)
    if any(key.endswith("_vocab_size") and key != "type_vocab_size" for key in named):
        return True
    parts = (part.get("vocab_size") for part in config.values() if isinstance(part, dict))
    sizes = {size for size in (config.get("vocab_size"), *parts) if type(size) is int}
    return len(sizes) > 1
