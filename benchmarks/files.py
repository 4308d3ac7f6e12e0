"""Checkpoints of any size to measure on: ``python -m benchmarks.files KIND PATH BYTES``.

A process of its own, so that the memory it takes is not counted against those that are measured.
Values repeat every 64 MiB; what is read does not become faster by that.
"""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

TENSORS = 32
MANY = 100_000
SMALL_SHAPE = (100,)
PERIOD = 1 << 26

Array = np.ndarray[Any, Any]


def values(kind: str, count: int) -> Array:
    """Weights as a network has them, ``count`` of them, stored as ``kind``."""
    block = np.random.default_rng(0).standard_normal(min(count, PERIOD // 4), np.float32) * 0.02
    if kind == "f16":
        block = block.astype(np.float16)
    elif kind == "bf16":
        block = (block.view(np.uint32) >> 16).astype(np.uint16)
    elif kind == "nan":
        block[np.random.default_rng(1).random(block.size) < 0.5] = np.nan
    return np.resize(block, count)


def split(kind: str, nbytes: int) -> tuple[tuple[int, ...], Iterator[Array]]:
    """Shape of every tensor, and the tensors of a file of ``nbytes`` bytes."""
    width = 2 if kind in ("f16", "bf16") else 4
    side = nbytes // TENSORS // width // 256
    flat = values(kind, side * 256)
    return (side, 256), (flat for _ in range(TENSORS))


CODES = {"f32": "F32", "nan": "F32", "f16": "F16", "bf16": "BF16"}


def safetensors(path: Path, kind: str, nbytes: int, norm: dict[str, Array] | None = None) -> None:
    """Write a single safetensors file, with a BatchNorm where one is given."""
    shape, tensors = split(kind, nbytes)
    header, start = {}, 0
    width = 2 if kind in ("f16", "bf16") else 4
    size = shape[0] * shape[1] * width
    for i in range(TENSORS):
        offsets = [start, start + size]
        header[f"layers.{i}.weight"] = {
            "dtype": CODES[kind],
            "shape": shape,
            "data_offsets": offsets,
        }
        start += size
    for name, array in (norm or {}).items():
        offsets = [start, start + array.nbytes]
        header[f"bn.{name}"] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        start += array.nbytes
    with path.open("wb") as file:
        write_header(file, header)
        for tensor in (*tensors, *(norm or {}).values()):
            file.write(tensor.data)


BN = (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.2), ("running_var", 0.5))


def resnet(path: Path, nbytes: int) -> None:
    """Write blocks of a 3x3 convolution and the BatchNorm behind it, as wide as 512 channels."""
    width = 512 if nbytes > PERIOD else 64
    kernel = values("f32", width * width * 9)
    parts: list[tuple[str, tuple[int, ...], Array]] = []
    for i in range(max(1, nbytes // (kernel.nbytes + 16 * width))):
        parts.append((f"layer{i}.conv1.weight", (width, width, 3, 3), kernel))
        spread = np.random.default_rng(i).uniform(0.5, 1.5, width).astype(np.float32)
        parts += [(f"layer{i}.bn1.{name}", (width,), spread * at) for name, at in BN]
    header, start = {}, 0
    for name, shape, array in parts:
        offsets = [start, start + array.nbytes]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        start += array.nbytes
    with path.open("wb") as file:
        write_header(file, header)
        for _, _, array in parts:
            file.write(array.data)


def write_header(file: BinaryIO, header: dict[str, Any]) -> None:
    """Write length and JSON, padded to 8 bytes as the official writer does."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def many_safetensors(path: Path, count: int) -> None:
    """Write ``count`` tensors of 100 floats."""
    size = 4 * SMALL_SHAPE[0]
    header = {
        f"encoder.block.{i}.layer.weight": {
            "dtype": "F32",
            "shape": SMALL_SHAPE,
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i in range(count)
    }
    with path.open("wb") as file:
        write_header(file, header)
        file.write(values("f32", count * SMALL_SHAPE[0]).data)


def sick_norm() -> dict[str, Array]:
    """BatchNorm of 512 channels whose statistics, 4 KiB, are NaN."""
    fine, lost = np.linspace(0.5, 1.5, 512, dtype=np.float32), np.full(512, np.nan, np.float32)
    return {"weight": fine, "bias": fine, "running_mean": lost, "running_var": lost}


KERAS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
         "running_var": "moving_variance"}  # fmt: skip


def hdf5(path: Path, nbytes: int, *, sick: bool = False) -> None:
    """Write plain datasets in groups, as Keras lays weights out."""
    import h5py

    shape, tensors = split("f32", nbytes)
    with h5py.File(path, "w") as file:
        names = [f"dense_{i}" for i in range(TENSORS)]
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"3.15.1"
        for name, tensor in zip(names, tensors, strict=True):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel".encode()]
            group.create_dataset(f"{name}/kernel", data=tensor.reshape(shape))
        for name, array in sick_norm().items() if sick else ():
            file.create_dataset(f"bn/bn/{KERAS[name]}", data=array)


def torch_zip(path: Path, arrays: Iterator[tuple[str, Array]]) -> None:
    """Write a state dict by ``torch.save``, or in its layout where torch is not installed."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays}, path)
        return
    storages: list[Array] = []
    state = {}
    rebuild, storage_type = stand_ins()
    for name, array in arrays:
        state[name] = _Tensor(rebuild, (_Storage(storage_type, len(storages), array), array.shape))
        storages.append(array)
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", b"3\n")


def stand_ins() -> tuple[Callable[..., None], type]:
    """Objects that pickle as torch's own; only their names end up in the file."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild() -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    storage = type("FloatStorage", (), {"__module__": "torch"})
    utils._rebuild_tensor_v2, torch.FloatStorage = rebuild, storage  # type: ignore[attr-defined]
    sys.modules |= {"torch": torch, "torch._utils": utils}
    return rebuild, storage


class _Storage:
    def __init__(self, kind: type, key: int, array: Array) -> None:
        self.persistent = ("storage", kind, str(key), "cpu", array.size)


class _Tensor:
    def __init__(self, rebuild: Callable[..., None], content: tuple[Any, Any]) -> None:
        self.rebuild, self.content = rebuild, content

    def __reduce__(self) -> tuple[Any, ...]:
        storage, shape = self.content
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        return self.rebuild, (storage, 0, shape, strides, False, {})


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> Any:
        return obj.persistent if isinstance(obj, _Storage) else None


def main(kind: str, target: str, size: str) -> None:
    """Write one file; ``size`` counts bytes, or tensors for the ``many`` kinds."""
    path, amount = Path(target), int(size)
    if kind in ("h5", "sick-h5"):
        hdf5(path, amount, sick=kind != "h5")
    elif kind in ("pt", "sick-pt"):
        shape, tensors = split("f32", amount)
        named = [(f"layers.{i}.weight", t.reshape(shape)) for i, t in enumerate(tensors)]
        norm = [(f"bn.{name}", array) for name, array in sick_norm().items()]
        torch_zip(path, iter(named if kind == "pt" else [*named, *norm]))
    elif kind == "resnet":
        resnet(path, amount)
    elif kind == "many":
        many_safetensors(path, amount)
    elif kind == "many-pt":
        row = values("f32", SMALL_SHAPE[0])
        torch_zip(path, ((f"encoder.block.{i}.layer.weight", row) for i in range(amount)))
    elif kind == "sick-f32":
        safetensors(path, "f32", amount, sick_norm())
    else:
        safetensors(path, kind, amount)


if __name__ == "__main__":
    main(*sys.argv[1:])
