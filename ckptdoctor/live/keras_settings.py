"""Configuration of a live Keras model's layers, read as that of a file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from ..keras.config import KerasConfig, read_model_config
from ..keras.layers import Flattener
from ..tensors import LayerConfig
from .keras_tree import Node, walk

__all__ = ["config_of", "stored_layers"]


def stored_layers(model: Any) -> dict[str, LayerConfig]:
    """Return the configuration by layer name, in data-flow order where the model knows it.

    A model without a configuration, as most subclassed ones, gives what each layer says of itself.
    """
    try:
        config, _, _ = read_model_config(model.to_json(), where=str(model.name))
    except Exception:  # noqa: BLE001  (get_config is the user's code)
        config = KerasConfig()
    if config.layers:
        # what is inside custom layers stays out: without inputs, it would pass for fed by the data
        return dict(config.layers)
    told = (_told(node) for node in walk(model) if node.layer is not model)
    return {layer.name: layer for layer in told if layer is not None}


def _told(node: Node) -> LayerConfig | None:
    """Read what a layer that no configuration lists says of itself."""
    config = config_of(node.layer)
    document = {"class_name": type(node.layer).__name__, "config": {**config, "name": node.name}}
    flat = Flattener()
    flat.model({"config": {"layers": [document]}}, (), "", ())
    found = flat.layers.get(node.name)
    if found is None:
        return None
    policy = getattr(node.layer, "dtype_policy", None)
    if found.dtype_policy is None and policy is not None:
        found = replace(found, dtype_policy=str(policy.name))
    return found


def config_of(held: Any) -> dict[str, Any]:
    """Return what a layer's or optimizer's ``get_config`` says, as JSON would hold it."""
    try:
        config = json.loads(json.dumps(held.get_config(), default=_plain))
    except Exception:  # noqa: BLE001  (get_config is the user's code)
        return {}
    return config if isinstance(config, dict) else {}


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return str(name) if name else str(value)[:200]
