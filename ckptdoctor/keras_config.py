"""Stored Keras configuration as data: layers, what feeds them, their settings, optimizer numbers.

No Keras object is ever built.  Both encodings of the layer graph are read: nested lists of
``[layer, node, tensor]`` (Keras 1 and 2) and ``__keras_tensor__`` objects (Keras 3).  Nested models
are flattened; what stood in front of a nested model feeds its input layers, and its output layers
feed what stands behind it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .findings import Finding, Severity, container_finding
from .keras_code import judge_code
from .tensors import LayerConfig

__all__ = ["KerasConfig", "parse_json", "read_model_config", "read_scalars", "snake_case"]

MAX_TEXT = 1 << 26
"""64 MiB: the largest public models' configurations are a few MB."""
MAX_NESTING = 40
MAX_EDGES = 1_000_000
MAX_SCALARS = 200
_ADVICE = "save the model anew"


@dataclass(frozen=True, slots=True)
class KerasConfig:
    """What a model's configuration says.

    Parameters
    ----------
    layers
        By name, in data-flow order.  Layers of nested models are called ``outer/inner``.
    paths
        Group that Keras 3 stores a layer's variables in -> name in ``layers``
        (``layers/functional/layers/dense_2`` -> ``encoder/dense_7``).
    class_name, name
        Of the model.
    """

    layers: Mapping[str, LayerConfig] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    class_name: str = ""
    name: str = ""


def parse_json(text: str | bytes, *, where: str) -> tuple[Any, tuple[Finding, ...]]:
    """Parse a stored configuration; None and a finding where it is none.

    Examples
    --------
    >>> value, findings = parse_json('{"rate": NaN}', where="m.keras:config.json")
    >>> findings[0].message
    'holds the number NaN, which is no JSON'
    """
    odd: dict[str, None] = {}

    def constant(token: str) -> float:
        odd[f"holds the number {token}, which is no JSON"] = None
        return float(token)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items) and len(odd) < 8:
            once: set[str] = set()
            twice = next(key for key, _ in items if key in once or once.add(key))  # type: ignore[func-returns-value]
            odd[f"says {twice[:80]!r} twice in one object"] = None
        return found

    def broken(message: str) -> tuple[None, tuple[Finding, ...]]:
        return None, (container_finding("CK005", Severity.ERROR, message, where=where),)

    if len(text) > MAX_TEXT:
        return broken(f"a configuration of {len(text)} bytes, at most {MAX_TEXT} are read")
    try:
        value = json.loads(text, parse_constant=constant, object_pairs_hook=pairs)
    except RecursionError:
        return broken("the configuration is nested deeper than any JSON reader follows")
    except (ValueError, OverflowError) as error:
        return broken(f"the configuration is no JSON: {str(error)[:120]}")
    return value, tuple(
        container_finding("CK005", Severity.WARNING, message, where=where) for message in odd
    )


def read_model_config(
    text: str | bytes, *, where: str, safe_mode: bool = True, bare: bool = False
) -> tuple[KerasConfig, Any, tuple[Finding, ...]]:
    """Parse a model's configuration and judge the code in it.

    Parameters
    ----------
    text
        JSON.
    where
        File and member, for the findings.
    safe_mode
        Whether the Keras that wrote it refuses Lambda bytecode by default.
    bare
        Call layers by their own name where it is the only one, as `.keras` files do, instead of
        ``outer/inner``.

    Returns
    -------
    config, document, findings
        The layers, the parsed JSON (None where it is none), and CK002 and CK005.
    """
    document, findings = parse_json(text, where=where)
    if document is None:
        return KerasConfig(), None, findings
    if not isinstance(document, dict):
        message = "expected the configuration to be a JSON object"
        broken = container_finding("CK005", Severity.ERROR, message, where=where)
        return KerasConfig(), document, (*findings, broken)
    findings += judge_code(document, where=where, safe_mode=safe_mode)
    flat = _Flattener()
    if not flat.model(document, (), "", ()):
        message = f"models nested deeper than {MAX_NESTING}: the layers are not listed"
        findings += (container_finding("CK005", Severity.WARNING, message, where=where),)
        flat = _Flattener()
    if bare:
        flat.rename(flat.bare_names())
    return (
        KerasConfig(
            layers=flat.ordered(),
            paths=flat.paths,
            class_name=_string(document.get("class_name")) or "",
            name=_string(_settings_of(document).get("name")) or "",
        ),
        document,
        findings,
    )


def read_scalars(document: object, prefix: str) -> dict[str, float | int]:
    """Plain numbers of an optimizer's configuration, by their path in the document.

    Examples
    --------
    >>> config = {"optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.1}}}
    >>> read_scalars(config, "compile_config")
    {'compile_config/optimizer/config/learning_rate': 0.1}
    """
    found: dict[str, float | int] = {}
    if not isinstance(document, dict):
        return found
    todo: list[tuple[str, object, int]] = [
        (f"{prefix}/{key}", document[key], 0)
        for key in ("optimizer", "optimizer_config")
        if key in document
    ]
    while todo and len(found) < MAX_SCALARS:
        path, value, depth = todo.pop()
        if isinstance(value, dict) and depth < 12:
            todo += reversed([(f"{path}/{key[:80]}", v, depth + 1) for key, v in value.items()])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[path] = value if isinstance(value, float) or abs(value) < 1 << 63 else math.inf
    return found


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


# --- layers --------------------------------------------------------------------------------------

_WRAPPED = ("layer", "forward_layer", "backward_layer")


class _Flattener:
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
        settings = _settings_of(document)
        names = [_layer_name(layer) for layer in layers]
        known = frozenset(names)
        functional = any("inbound_nodes" in layer for layer in layers)
        inputs = tuple(_histories(settings.get("input_layers"), known))
        counters: dict[str, int] = {}
        before: tuple[str, ...] = fed
        for layer, name in zip(layers, names, strict=True):
            full = "/".join((*outer, name))
            below = f"{group}layers/{_unique(snake_case(_class_of(layer)), counters)}"
            if functional:
                sources = tuple(_histories(layer.get("inbound_nodes"), known))
                feeding = self._resolve(outer, sources)
                if name in inputs or (not feeding and _class_of(layer) == "InputLayer"):
                    feeding = _pick(fed, inputs, name)
            else:
                feeding = before
            if not self._layer(layer, name, full, below, outer, feeding):
                return False
            before = self.outputs.get(full, (full,))
        ends = tuple(_histories(settings.get("output_layers"), known)) if functional else ()
        self.outputs["/".join(outer)] = self._resolve(outer, ends) or before
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
        settings = _settings_of(layer)
        for key in _WRAPPED:
            inner = settings.get(key)
            if not isinstance(inner, dict) or not _settings_of(inner):
                continue
            below = (*outer, name)
            if _layers_of(inner):
                if not self.model(inner, (*below, _layer_name(inner)), f"{group}/{key}/", feeding):
                    return False
                continue
            inside = "/".join((*below, _layer_name(inner)))
            self._add(inside, f"{group}/{key}", f"{name}/{_layer_name(inner)}", inner, feeding)
        return True

    def _add(
        self, full: str, group: str, short: str, layer: Mapping[str, Any], feeding: tuple[str, ...]
    ) -> None:
        self.layers[full] = _describe(layer, full, feeding)
        self.paths[group], self.short[full] = full, short

    def rename(self, names: Mapping[str, str]) -> None:
        """Call layers by other names."""
        self.layers = {
            names[full]: replace(
                layer, name=names[full], inputs=tuple(names[n] for n in layer.inputs if n in names)
            )
            for full, layer in self.layers.items()
        }
        self.paths = {group: names[full] for group, full in self.paths.items()}

    def bare_names(self) -> dict[str, str]:
        """Names without the models around, where that leaves them different."""
        counts = Counter(self.short.values())
        return {full: short if counts[short] == 1 else full for full, short in self.short.items()}

    def _resolve(self, outer: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
        """Full names of layers; a nested model stands for the layers it ends with."""
        found: dict[str, None] = {}
        for name in names:
            full = "/".join((*outer, name))
            ends = self.outputs.get(full, (full,))
            self.edges += len(ends)
            if self.edges > MAX_EDGES:
                break
            found.update(dict.fromkeys(ends))
        return tuple(found)

    def ordered(self) -> dict[str, LayerConfig]:
        """Layers so that each comes after what feeds it, otherwise as stored."""
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
        return {
            name: replace(layer, inputs=tuple(n for n in layer.inputs if n in self.layers))
            for name, layer in done.items()
        }


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


def _settings_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
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
    return (_string(layer.get("class_name")) or "").rpartition(">")[2]


def _layer_name(layer: Mapping[str, Any]) -> str:
    name = _string(layer.get("name")) or _string(_settings_of(layer).get("name"))
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


def _describe(layer: Mapping[str, Any], name: str, feeding: tuple[str, ...]) -> LayerConfig:
    settings = _settings_of(layer)
    own = ("name", "epsilon", "momentum", "activation", "dtype", "layers")
    plain = {key[:80]: _plain(value) for key, value in settings.items() if key not in own}
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


def _float(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return None


def _string(value: object) -> str | None:
    return value[:500] if isinstance(value, str) else None


def _named(value: object) -> str | None:
    """Read a name stored as a string, as an object with a name of its own, or as a class."""
    if not isinstance(value, dict):
        return _string(value)
    inner = value.get("config")
    if isinstance(inner, str):
        return inner[:500]
    if isinstance(inner, dict) and isinstance(inner.get("name"), str):
        return _string(inner["name"])
    return _string(value.get("class_name"))


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
        return _string(value.get("class_name"))
    return None
