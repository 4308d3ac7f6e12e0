"""Checkpoints for preflight: fit, unfit, suspect, unsafe, in one file and in shards, quickly written."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch_bytes as tb
from patients import save_torch, state


def save_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    kinds = {"float32": "F32", "int64": "I64"}
    header, start = {}, 0
    for name, array in arrays.items():
        offsets = [start, start + array.nbytes]
        kind = kinds[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        start += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def save_set(folder: Path, arrays: Mapping[str, np.ndarray], shards: int = 2) -> Path:
    """Folder of a sharded checkpoint."""
    folder.mkdir()
    names = list(arrays)
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        mine = names[number::shards]
        save_safetensors(folder / shard, {name: arrays[name] for name in mine})
        weight_map |= dict.fromkeys(mine, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def fit_state() -> dict[str, np.ndarray]:
    return state()


def unfit_state() -> dict[str, np.ndarray]:
    """BatchNorm statistics are lost in one layer."""
    made = state()
    made["bn3.running_var"][:] = np.nan
    return made


def suspect_state() -> dict[str, np.ndarray]:
    """Every gamma of a layer is zero: a warning."""
    made = state()
    made["bn2.weight"][:] = 0
    return made


def unsafe(path: Path) -> Path:
    """State dict whose pickle calls os.system."""
    values = np.ones(6, np.float32)
    tree = {"w": tb.tensor(tb.storage("0"), (2, 3)), "x": tb.call("os", "system", "true")}
    path.write_bytes(tb.archive(tree, {"0": values.tobytes()}))
    return path


def fit(path: Path) -> Path:
    return (save_torch if path.suffix == ".pt" else save_safetensors)(path, fit_state())


def unfit(path: Path) -> Path:
    return (save_torch if path.suffix == ".pt" else save_safetensors)(path, unfit_state())


def suspect(path: Path) -> Path:
    return (save_torch if path.suffix == ".pt" else save_safetensors)(path, suspect_state())
