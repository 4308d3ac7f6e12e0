"""Layers of a stored Keras configuration, and what feeds them.

Both encodings of the layer graph are read: nested lists of ``[layer, node, tensor]`` (Keras 1 and 2)
and ``__keras_tensor__`` objects (Keras 3).  Nested models are flattened; what stood in front of a
nested model feeds its input layers, and its output layers feed what stands behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..tensors import LayerConfig

__all__ = ["MAX_NESTING", "Flattener", "renamed", "settings_of", "snake_case", "string_of"]

MAX_NESTING = 40
MAX_EDGES = 1_000_000


class Flattener:
    """Collects the layers of a model and of the models inside it."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerConfig] = {}
        self.paths: dict[str, str] = {}
        self.outputs: dict[str, tuple[str, ...]] = {}
        self.short: dict[str, str] = {}
        self.edges = 0

    def model(
        self, document: Mapping[str, Any], outer: tuple[str, ...], group: str, fed: tuple[str, ...]
    ) -> bool:
        """Add a model's layers; False where models nest without end.

        ``outer`` are the names of the models around it, ``group`` is where Keras 3 stores its
        variables, ``fed`` is what feeds it.
        """
        if len(outer) > MAX_NESTING:
            return False
        layers = _layers_of(document)
        settings = settings_of(document)
        names = [_layer_name(layer) for layer in layers]
        known = frozenset(names)
        functional = any(layer.get("inbound_nodes") for layer in layers)
        inputs = tuple(_histories(settings.get("input_layers"), known))
        counters: dict[str, int] = {}
        before: tuple[str, ...] = fed
        for layer, name in zip(layers, names, strict=True):
            full = "/".join((*outer, name))
            below = f"{group}layers/{_unique(snake_case(_class_of(layer)), counters)}"
            if functional:
                feeding = _below(outer, _histories(layer.get("inbound_nodes"), known))
                if name in inputs or (not feeding and _class_of(layer) == "InputLayer"):
                    feeding = _pick(fed, inputs, name)
            else:
                feeding = before
            if not self._layer(layer, name, full, below, outer, feeding):
                return False
            before = (full,)
        ends = _below(outer, _histories(settings.get("output_layers"), known))
        self.outputs["/".join(outer)] = (functional and ends) or before
        return True

    def _layer(
        self,
        layer: Mapping[str, Any],
        name: str,
        full: str,
        group: str,
        outer: tuple[str, ...],
        feeding: tuple[str, ...],
    ) -> bool:
        if _layers_of(layer):
            return self.model(layer, (*outer, name), f"{group}/", feeding)
        self._add(full, group, name, layer, feeding)
        for key, inner_name, inner in _wrapped(layer):
            if _layers_of(inner):
                below = (*outer, name, inner_name)
                if not self.model(inner, below, f"{group}/{key}/", feeding):
                    return False
                continue
            inside = "/".join((*outer, name, inner_name))
            self._add(inside, f"{group}/{key}", f"{name}/{inner_name}", inner, feeding)
        return True

    def _add(
        self, full: str, group: str, short: str, layer: Mapping[str, Any], feeding: tuple[str, ...]
    ) -> None:
        self.layers[full] = _describe(layer, full, feeding)
        self.paths[group], self.short[full] = full, short

    def bare_names(self) -> dict[str, str]:
        """Names without the models around, where that leaves them different."""
        counts = Counter(self.short.values())
        return {full: short if counts[short] == 1 else full for full, short in self.short.items()}

    def _resolve(self, names: Sequence[str]) -> tuple[str, ...]:
        """Layers among names of layers and nested models; a model stands for those it ends with."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        todo = list(reversed(names))
        while todo and self.edges < MAX_EDGES:
            name = todo.pop()
            self.edges += 1
            if name in self.layers:
                found[name] = None
            elif name not in seen:
                todo += reversed(self.outputs.get(name, ()))
            seen.add(name)
        return tuple(found)

    def ordered(self) -> dict[str, LayerConfig]:
        """Layers so that each comes after what feeds it, otherwise as stored."""
        self.layers = {
            name: replace(layer, inputs=self._resolve(layer.inputs))
            for name, layer in self.layers.items()
        }
        done: dict[str, LayerConfig] = {}
        for root in self.layers:
            todo = [(root, False)]
            open_: set[str] = set()
            while todo:
                name, ready = todo.pop()
                if name in done or name not in self.layers:
                    continue
                if ready or name in open_:
                    done[name] = self.layers[name]
                    continue
                open_.add(name)
                todo.append((name, True))
                todo += [(n, False) for n in reversed(self.layers[name].inputs) if n not in open_]
        return done


def renamed(layers: Mapping[str, LayerConfig], names: Mapping[str, str]) -> dict[str, LayerConfig]:
    """Call layers by other names, as themselves and as inputs."""
    return {
        names[old]: replace(
            layer, name=names[old], inputs=tuple(names[each] for each in layer.inputs)
        )
        for old, layer in layers.items()
    }


def _below(outer: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    return tuple("/".join((*outer, name)) for name in names)


def _pick(fed: tuple[str, ...], inputs: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Pair an input layer with what feeds it, where there are as many of them."""
    if len(fed) == len(inputs) and name in inputs:
        return (fed[inputs.index(name)],)
    return fed


def _unique(name: str, counters: dict[str, int]) -> str:
    if name in counters:
        counters[name] += 1
        return f"{name}_{counters[name]}"
    counters[name] = 0
    return name


def settings_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``config`` of an object, where it is an object itself."""
    config = layer.get("config")
    return config if isinstance(config, dict) else {}


def _layers_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Layers of a model's configuration; Keras 1 and early 2 stored a Sequential as a bare list."""
    config = document.get("config")
    found = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(found, list):
        return []
    return [each for each in found if isinstance(each, dict) and "class_name" in each]


def _class_of(layer: Mapping[str, Any]) -> str:
    return (string_of(layer.get("class_name")) or "").rpartition(">")[2]


def _layer_name(layer: Mapping[str, Any]) -> str:
    name = string_of(layer.get("name")) or string_of(settings_of(layer).get("name"))
    return name or snake_case(_class_of(layer)) or "layer"


def _histories(value: object, known: frozenset[str]) -> Iterator[str]:
    """Names of the layers that a tangle of inbound nodes refers to, each once, in order."""
    seen: set[str] = set()
    todo = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            todo += reversed(node.values())
        elif isinstance(node, list):
            name = node[0] if len(node) >= 3 else None
            if isinstance(name, str) and type(node[1]) is int and type(node[2]) is int:
                if name in known and name not in seen:
                    seen.add(name)
                    yield name
                todo += reversed(node[3:])
            else:
                todo += reversed(node)


def _wrapped(layer: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Layers inside a wrapper: the attribute that holds each, its name, and its configuration."""
    settings = settings_of(layer)
    inner = settings.get("layer")
    if not isinstance(inner, dict) or not settings_of(inner):
        return
    name = _layer_name(inner)
    if _class_of(layer) != "Bidirectional":
        yield "layer", name, inner
        return
    base = name.removeprefix("forward_")
    yield "forward_layer", f"forward_{base}", inner
    other = settings.get("backward_layer")
    if isinstance(other, dict) and settings_of(other):
        yield "backward_layer", _layer_name(other), other
    else:
        yield "backward_layer", f"backward_{base}", inner


def _describe(layer: Mapping[str, Any], name: str, feeding: tuple[str, ...]) -> LayerConfig:
    settings = settings_of(layer)
    own = ("name", "epsilon", "momentum", "activation", "dtype", "layers")
    plain = {
        key[:80]: _initialiser(value) if key.endswith("_initializer") else _plain(value)
        for key, value in settings.items()
        if key not in own
    }
    return LayerConfig(
        name=name,
        class_name=_class_of(layer),
        epsilon=_float(settings.get("epsilon")),
        momentum=_float(settings.get("momentum")),
        activation=_named(settings.get("activation")),
        dtype_policy=_named(settings.get("dtype")),
        inputs=feeding,
        settings={key: value for key, value in plain.items() if value is not None},
    )


_LAW_NUMBERS = (
    "value", "gain", "scale", "mode", "distribution", "mean", "stddev", "minval", "maxval",
    "input_axes", "output_axes",
)  # fmt: skip


def _initialiser(value: object) -> Any:
    """Give an initialiser's name, or its class and what numbers of it are stored.

    The name of a class of the user's own keeps its package, so that it is not taken for Keras'.
    """
    if not isinstance(value, dict):
        return _plain(value)
    name = string_of(value.get("registered_name")) or string_of(value.get("class_name"))
    config = settings_of(value)
    numbers = {key: _plain(config[key]) for key in _LAW_NUMBERS if key in config}
    numbers = {key: number for key, number in numbers.items() if number is not None}
    return {"class_name": name, **numbers} if numbers else name


def _float(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None


def string_of(value: object) -> str | None:
    """Return a string, cut to a sane length; None for anything else."""
    return value[:500] if isinstance(value, str) else None


def _named(value: object) -> str | None:
    """Read a name stored as a string, as an object with a name of its own, or as a class."""
    if not isinstance(value, dict):
        return string_of(value)
    inner = value.get("config")
    if isinstance(inner, str):
        return inner[:500]
    if isinstance(inner, dict) and isinstance(inner.get("name"), str):
        return string_of(inner["name"])
    return string_of(value.get("class_name"))


def _plain(value: object) -> Any:
    """Numbers, strings, flags and short lists of them; the class name of an object; else None."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if isinstance(value, float) or abs(value) < 1 << 63 else None
    if isinstance(value, str):
        return value[:200]
    if isinstance(value, list) and 0 < len(value) <= 8:
        # One level: [3, 3] and [[1, 1], [2, 2]] are settings, deeper lists are not.
        flat = [each for part in value for each in (part if isinstance(part, list) else (part,))]
        if len(flat) <= 32 and all(isinstance(each, int | float | str) for each in flat):
            return tuple(tuple(p) if isinstance(p, list) else p for p in value)
        return None
    if isinstance(value, dict):
        return string_of(value.get("class_name"))
    return None


def snake_case(name: str) -> str:
    """Spell a class name the way Keras names the groups of its weights.

    Examples
    --------
    >>> snake_case("BatchNormalization"), snake_case("Conv2DTranspose"), snake_case("LSTM")
    ('batch_normalization', 'conv2d_transpose', 'lstm')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
