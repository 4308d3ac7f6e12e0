"""Stored Keras configuration as data: layers, what feeds them, their settings, optimizer numbers.

No Keras object is ever built.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..findings import Finding, Severity, container_finding
from ..tensors import LayerConfig
from .code import judge_code
from .layers import MAX_NESTING, Flattener, renamed, settings_of, string_of

__all__ = ["KerasConfig", "parse_json", "read_model_config", "read_scalars"]

MAX_TEXT = 1 << 26
"""64 MiB: the largest public models' configurations are a few MB."""
MAX_SCALARS = 200


class KerasConfig(NamedTuple):
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

    layers: Mapping[str, LayerConfig] = MappingProxyType({})
    paths: Mapping[str, str] = MappingProxyType({})
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
    flat = Flattener()
    if not flat.model(document, (), "", ()):
        message = f"models nested deeper than {MAX_NESTING}: the layers are not listed"
        findings += (container_finding("CK005", Severity.WARNING, message, where=where),)
        flat = Flattener()
    layers = flat.ordered()
    paths = flat.paths
    if bare:
        names = flat.bare_names()
        layers = renamed(layers, names)
        paths = {group: names[name] for group, name in paths.items()}
    return (
        KerasConfig(
            layers=layers,
            paths=paths,
            class_name=string_of(document.get("class_name")) or "",
            name=string_of(settings_of(document).get("name")) or "",
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
