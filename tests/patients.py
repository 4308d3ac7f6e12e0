"""Small checkpoints to fall ill: a network with three BatchNorms as torch and as Keras write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch_bytes as tb

KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
WIDTHS = (3, 8, 16, 16)


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values such as training leaves for a tensor of this name."""
    random = np.random.default_rng(sum(map(ord, name)) * 7919 + len(name))
    last = name.replace("/", ".").rpartition(".")[2]
    if last in ("running_var", "moving_variance"):
        made = random.uniform(0.2, 1.2, shape)
    elif last in ("running_mean", "moving_mean"):
        made = random.uniform(-0.4, 0.4, shape)
    elif last == "gamma" or (last == "weight" and len(shape) == 1):
        made = random.uniform(0.6, 1.4, shape)
    elif last in ("beta", "bias"):
        made = random.uniform(-0.2, 0.2, shape)
    else:
        fan = int(np.prod(shape)) // max(shape[0], 1)
        # a trained kernel: heavier tails than any initialiser has
        made = random.standard_t(5, shape) * (1.2 / fan) ** 0.5
    return made.astype(np.float32)


def state() -> dict[str, np.ndarray]:
    """State dict of a convolutional network, in the order in which data flows."""
    made: dict[str, np.ndarray] = {}
    for i in (1, 2, 3):
        shapes = {
            f"conv{i}.weight": (WIDTHS[i], WIDTHS[i - 1], 3, 3),
            f"bn{i}.weight": (WIDTHS[i],),
            f"bn{i}.bias": (WIDTHS[i],),
            f"bn{i}.running_mean": (WIDTHS[i],),
            f"bn{i}.running_var": (WIDTHS[i],),
        }
        made |= {name: values(name, shape) for name, shape in shapes.items()}
        made[f"bn{i}.num_batches_tracked"] = np.array(1200, np.int64)
    made["fc.weight"], made["fc.bias"] = values("fc.weight", (4, 16)), values("fc.bias", (4,))
    return made


def parameters(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What an optimizer trains of a state dict."""
    words = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in weights.items() if not name.endswith(words)}


def adam(weights: Mapping[str, np.ndarray], **group: Any) -> dict[str, Any]:
    """Adam's state for the trained parameters, as torch stores it."""
    trained = parameters(weights)
    entries = {
        i: {
            "step": 1200.0,
            "exp_avg": values(f"m.{name}", value.shape) * 1e-3,
            "exp_avg_sq": np.square(values(f"v.{name}", value.shape)) * 1e-4 + 1e-8,
        }
        for i, (name, value) in enumerate(trained.items())
    }
    settings = {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **group}
    return {"state": entries, "param_groups": [{**settings, "params": list(range(len(entries)))}]}


def save_torch(path: Path, tree: Mapping[Any, Any]) -> Path:
    """Write nested dictionaries of arrays and numbers as ``torch.save`` does."""
    storages: dict[str, bytes] = {}

    def converted(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: converted(item) for key, item in value.items()}
        if isinstance(value, list):
            return [converted(item) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        key = str(len(storages))
        storages[key] = value.tobytes()
        where = tb.storage(key, KINDS[value.dtype.name], value.size)
        return tb.tensor(where, value.shape)

    path.write_bytes(tb.archive(converted(tree), storages))
    return path


BN = ("gamma", "beta", "moving_mean", "moving_variance")


def keras_state() -> dict[str, dict[str, np.ndarray]]:
    """Weights by layer of the same network as Keras names and lays them out."""
    made: dict[str, dict[str, np.ndarray]] = {}
    for i in (1, 2, 3):
        shape = (3, 3, WIDTHS[i - 1], WIDTHS[i])
        made[f"conv{i}"] = {"kernel": values(f"conv{i}/kernel", shape[::-1]).transpose(2, 3, 1, 0)}
        made[f"bn{i}"] = {part: values(f"bn{i}/{part}", (WIDTHS[i],)) for part in BN}
    made["head"] = {"kernel": values("head/kernel", (16, 4)), "bias": values("head/bias", (4,))}
    return made


def save_keras(
    path: Path,
    layers: Mapping[str, Mapping[str, np.ndarray]],
    *,
    policy: str = "float32",
    scaled: bool = False,
    momentum: float = 0.99,
) -> Path:
    """Write a whole model as Keras 2 does; ``scaled`` compiles it with a LossScaleOptimizer."""
    stored = []
    for name, weights in layers.items():
        config: dict[str, Any] = {
            "name": name,
            "dtype": {"class_name": "Policy", "config": {"name": policy}},
        }
        kind = "BatchNormalization" if "moving_mean" in weights else "Dense"
        if kind == "BatchNormalization":
            config |= {"epsilon": 1.001e-5, "momentum": momentum, "axis": [3]}
        elif weights["kernel"].ndim == 4:
            kind = "Conv2D"
        stored.append({"class_name": kind, "config": config})
    model = {"class_name": "Sequential", "config": {"name": "net", "layers": stored}}
    optimizer: dict[str, Any] = {"class_name": "SGD", "config": {"learning_rate": 0.01}}
    if scaled:
        inner = {
            "initial_scale": 32768.0,
            "dynamic_growth_steps": 2000,
            "inner_optimizer": optimizer,
        }
        optimizer = {"class_name": "LossScaleOptimizer", "config": inner}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        file.attrs["model_config"] = json.dumps(model)
        file.attrs["training_config"] = json.dumps({"optimizer_config": optimizer})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for name, weights in layers.items():
            made = group.create_group(name)
            made.attrs["weight_names"] = [f"{name}/{part}:0".encode() for part in weights]
            for part, value in weights.items():
                made[f"{name}/{part}:0"] = value
        if scaled:
            scale = file.create_group("optimizer_weights/loss_scale_optimizer")
            scale["dynamic_scale"], scale["step_counter"] = np.float32(8192), np.int64(41)
            scale["iteration"] = np.int64(461)
    return path
