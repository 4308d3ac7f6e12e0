"""A Keras file against the layers of its configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..findings import Finding, Severity
from ..keras.config import read_model_config
from ..tensors import LayerConfig, TensorInfo, TensorTable
from .keras_layers import Part, parts_of
from .wording import SHOWN, shown, told

__all__ = ["held_against_json", "held_against_layers"]

_LISTS = ("_layer_checkpoint_dependencies", "_operations")
"""Other names of the group ``layers``."""
_DEPTH = 12
"""Groups within groups: models in models in wrappers have six."""
_UNUSUAL = ("int8", "int4", "float8", "gptq", "awq", "quantized")
"""Words of dtype policies under which layers keep other variables."""


def held_against_layers(table: TensorTable) -> Iterator[Finding]:
    """CK003 for variables that the file's own configuration asks for."""
    if table.layers:
        yield from _compared(table, table.layers, _held(table, {}), "the model's configuration")


def held_against_json(table: TensorTable, text: bytes, source: str) -> Iterator[Finding]:
    """CK003 for variables that a configuration of Keras asks for, which lies elsewhere.

    Raises
    ------
    UsageError
        If no layer can be read from it.
    """
    bare = table.format != "keras-h5"
    config, _, _ = read_model_config(text, where=source, bare=bare)
    if not config.layers:
        message = "no layers in the configuration: that of a subclassed model names none"
        hint = "give the names of its weights, or another checkpoint of it"
        raise UsageError(message, where=source, hint=hint)
    yield from _compared(table, config.layers, _held(table, config.paths), source)


class _Variable(NamedTuple):
    info: TensorInfo
    part: str
    """``kernel``, or a number."""


class _Held:
    """Variables by the names that their layer may go by."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[_Variable]] = {}
        self.vague: set[str] = set()
        self.tops: dict[str, list[_Variable]] = {}

    def of(self, name: str) -> list[_Variable] | None:
        """Variables of a layer; None where it may be there under another name."""
        if name in self.by_name:
            return self.by_name[name]
        top, *rest = name.split("/")
        for start in range(len(rest)):
            key = f"{top}//{'/'.join(rest[start:])}"
            if key in self.by_name:
                return self.by_name[key]
        return None if rest and f"{top}//{rest[-1]}" in self.vague else []


def _held(table: TensorTable, paths: Mapping[str, str]) -> _Held:
    held = _Held()
    groups: dict[tuple[str, ...], list[_Variable]] = {}
    for info in table.values():
        if info.role == "model":
            groups.setdefault(info.path[:-1], []).append(_Variable(info, _plain(info.path[-1])))
    for group, variables in groups.items():
        if table.format == "keras-h5":
            words = group[1:] if group[:1] == ("model_weights",) else group
            _add_path(held, words[:_DEPTH], variables)
        else:
            _add_name(held, group, variables, paths)
    return held


def _plain(name: str) -> str:
    return name.partition(":")[0]


def _add_path(held: _Held, words: Sequence[str], variables: list[_Variable]) -> None:
    """Variables of a legacy file: its groups repeat the layer's name and those of models around."""
    if not words:
        return
    held.tops.setdefault(words[0], []).extend(variables)
    keys = {"/".join(words[:end]) for end in range(1, len(words) + 1)}
    for start in range(1, len(words)):
        held.vague.add(f"{words[0]}//{re.sub(r'_[0-9]+$', '', words[start])}")
        keys.update(
            f"{words[0]}//{'/'.join(words[start:end])}" for end in range(start + 1, len(words) + 1)
        )
    for key in keys:
        held.by_name.setdefault(key, []).extend(variables)


def _add_name(
    held: _Held, group: tuple[str, ...], variables: list[_Variable], paths: Mapping[str, str]
) -> None:
    """Variables of a Keras 3 file: by the name that reading gave them, or the configuration's."""
    name = variables[0].info.layer_name
    words = ["layers" if word in _LISTS else word for word in group if word != "vars"][:_DEPTH]
    for end in range(len(words), 0, -1):
        mapped = paths.get("/".join(words[:end]))
        if mapped is not None:
            name = "/".join((mapped, *words[end:]))
            break
    if not name:
        held.tops.setdefault("", []).extend(variables)
        return
    cut = len(name)
    while cut > 0:
        held.by_name.setdefault(name[:cut], []).extend(variables)
        cut = name.rfind("/", 0, cut)


def _compared(
    table: TensorTable, layers: Mapping[str, LayerConfig], held: _Held, source: str
) -> Iterator[Finding]:
    if not held.by_name and not held.tops:  # which the adapter has said
        return
    missing: list[tuple[LayerConfig, list[str], bool]] = []
    odd: list[tuple[str, tuple[int, ...], Part]] = []
    nameless = "" in held.tops
    twins = _twins(layers, held)
    mentioned = _Mentioned(table)
    for name, layer in layers.items():
        if any(word in (layer.dtype_policy or "") for word in _UNUSUAL) or mentioned(name):
            continue
        parts = parts_of(layer.class_name, layer.settings)
        there = held.of(name) if parts else None
        if there is None:
            continue
        if there:
            lacking = _lacking(parts, there)
            if lacking:
                missing.append((layer, lacking, False))
            else:
                odd += _misshaped(parts, there)
        elif not (nameless or _short(layer) in twins or _wrapped(name, layers, held)):
            missing.append((layer, [part.names[0] for part in parts], True))
    if missing:
        yield _told_missing(table, missing, source)
    if odd:
        name, shape, part = odd[0]
        want = str(["?" if size is None else size for size in part.shape or ()]).replace("'", "")
        text = f"{shown(name)} is {list(shape)}, {source} asks for {want}"
        text += f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        yield told(Severity.ERROR, text, table.path, "misshaped", [each[0] for each in odd])
    if table.format == "keras-h5":
        yield from _surplus(table, layers, held, source)


def _short(layer: LayerConfig) -> tuple[str, str]:
    return layer.class_name, layer.name.rpartition("/")[2]


def _twins(layers: Mapping[str, LayerConfig], held: _Held) -> set[tuple[str, str]]:
    """Layers that models share: Keras 3 stores their variables under the first only."""
    counts = Counter(_short(layer) for layer in layers.values())
    return {
        _short(layer)
        for name, layer in layers.items()
        if counts[_short(layer)] > 1 and held.of(name)
    }


def _wrapped(name: str, layers: Mapping[str, LayerConfig], held: _Held) -> bool:
    """Whether the layer is inside a wrapper that keeps its variables as its own."""
    around = name.rpartition("/")[0]
    if around not in layers:
        return False
    inside = {
        each.info.name
        for other in layers
        if other.startswith(f"{around}/")
        for each in held.of(other) or ()
    }
    return any(each.info.name not in inside for each in held.of(around) or ())


def _lacking(parts: Sequence[Part], there: Sequence[_Variable]) -> list[str]:
    """Parts without a variable; by their names, or where these are numbers, by how many."""
    have = Counter(each.part for each in there)
    known = {name for part in parts for name in part.names}
    if any(part in known for part in have):
        lacking = []
        for part in parts:
            name = next((name for name in part.names if have[name] > 0), None)
            if name is None:
                lacking.append(part.names[0])
            else:
                have[name] -= 1
        return lacking
    gone = len(parts) - len(there)
    return [f"{gone} of {len(parts)} variables"] if gone > 0 else []


def _misshaped(
    parts: Sequence[Part], there: Sequence[_Variable]
) -> Iterator[tuple[str, tuple[int, ...], Part]]:
    numbers = all(each.part.isdecimal() for each in there)
    by_part = {each.part: each.info for each in there}
    if len(by_part) < len(there) or (numbers and len(there) != len(parts)):
        return
    for place, part in enumerate(parts):
        keys = (str(place),) if numbers else part.names
        info = next((by_part[key] for key in keys if key in by_part), None)
        if info is None or part.shape is None or info.encoding == "opaque":
            continue
        if len(info.shape) != len(part.shape) or any(
            size not in (None, found) for size, found in zip(part.shape, info.shape, strict=True)
        ):
            yield info.name, info.shape, part


class _Mentioned:
    """Whether reading has told already that something of a layer is not there."""

    def __init__(self, table: TensorTable) -> None:
        self.messages = [
            re.sub(r"['\"]", "/", each.message) + "/"
            for each in table.findings
            if each.code in ("CK003", "CK004") and each.severity is Severity.ERROR
        ]
        self.more = any(" more layers or weights " in message for message in self.messages)

    def __call__(self, name: str) -> bool:
        last = f"/{name.rpartition('/')[2]}/"
        return self.more or any(last in message for message in self.messages)


def _told_missing(
    table: TensorTable, missing: Sequence[tuple[LayerConfig, list[str], bool]], source: str
) -> Finding:
    texts = []
    for layer, lacking, whole in missing[:SHOWN]:
        what = ", ".join(lacking[:SHOWN])
        if whole:
            what = f"all {len(lacking)} weights" if len(lacking) > 1 else f"its {what}"
        texts.append(f"{shown(layer.name)} ({layer.class_name}): {what}")
    text = f"{len(missing):,} of the layers of {source} {'lacks' if len(missing) == 1 else 'lack'} "
    text += f"weights: {'; '.join(texts)}"
    text += f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
    names = [f"{layer.name}/{part}" for layer, lacking, _ in missing for part in lacking]
    return told(Severity.ERROR, text, table.path, "missing", names)


def _surplus(
    table: TensorTable, layers: Iterable[str], held: _Held, source: str
) -> Iterator[Finding]:
    tops = {part for name in layers for part in (name, name.partition("/")[0])}
    odd = [
        top for top in held.tops if top not in tops and top not in ("top_level_model_weights", "")
    ]
    if odd:
        names = [each.info.name for top in odd for each in held.tops[top]]
        text = f"{len(names):,} weights of layers that {source} does not have: "
        text += ", ".join(shown(top) for top in odd[:SHOWN])
        text += f" and {len(odd) - SHOWN:,} more" if len(odd) > SHOWN else ""
        yield told(Severity.WARNING, text, table.path, "surplus", names)
