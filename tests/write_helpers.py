"""Checkpoints of every kind that is overwritten in place, random edits of them, what may change."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import patients
import torch_bytes as tb

from ckptdoctor.edits import Edit, RepairPlan
from ckptdoctor.formats import open_path
from ckptdoctor.formats.base import ReadOptions
from ckptdoctor.outcome import Written
from ckptdoctor.sources import WindowSource
from ckptdoctor.tensors import TensorInfo, TensorTable
from ckptdoctor.write.target import choose
from ckptdoctor.write.writer import begun, staged

TRUST = ReadOptions(trust_hdf5=True)
"""HDF5 in this process: a child for each example would take most of the time."""


def edit(tensor: str, values: Any, indices: Any = None, **more: Any) -> Edit:
    """Edit somebody asked for."""
    at = None if indices is None else np.asarray(indices, np.int64)
    said = {"remedy": "test", "kind": "destructive", "cures": (), "title": "test", **more}
    return Edit(tensor=tensor, indices=at, values=values, **said)


def plan_of(*changes: Any) -> RepairPlan:
    return RepairPlan(changes=changes)


def silent(what: str, done: int, total: int) -> None:
    """Hear of progress."""


def write(path: Path, changes: Sequence[Any], output: Path | None, **placing: Any) -> Written:
    """Open, write and publish changes, as `treat` does it."""
    with open_path(path, TRUST) as table:
        sharded = table.format.endswith("-sharded")
        inputs = tuple(file for file in table.files if not file.temporary)
        out = None if output is None else str(output)
        target = choose(str(path), inputs, out, folder=sharded, **placing)
        with (
            begun(table, target, silent) as draft,
            staged(draft, table, plan_of(*changes), target, silent, TRUST) as stage,
        ):
            return stage.publish()


def names(folder: Path | str) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in Path(folder).iterdir())


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# --- kinds of checkpoint --------------------------------------------------------------------------

RANDOM = np.random.default_rng(7)
STORAGES = {
    "0": RANDOM.standard_normal(600).astype("<f4").tobytes(),
    "1": RANDOM.standard_normal(5000).astype("<f2").tobytes(),
    "2": RANDOM.integers(0, 99, 7).astype("<i8").tobytes(),
    "3": RANDOM.integers(0, 2, 33).astype("?").tobytes(),
    "4": RANDOM.bytes(2 * 40),
    "5": RANDOM.standard_normal(64).astype("<c8").tobytes(),
}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def torch_value() -> dict[str, Any]:
    """State dict with every kind of view: tied, overlapping, transposed, with gaps, expanded."""
    where = tb.storage("0", "FloatStorage", 600)
    return {
        "whole": tb.tensor(where, (600,)),
        "tied": tb.tensor(where, (20, 30)),
        "transposed": tb.tensor(where, (30, 20), (1, 30)),
        "every third": tb.tensor(where, (100,), (3,), 60),
        "expanded": tb.tensor(where, (4, 5), (0, 1), 500),
        "scalar": tb.tensor(where, (), (), 599),
        "empty": tb.tensor(where, (0, 3)),
        "half": tb.tensor(tb.storage("1", "HalfStorage", 5000), (50, 100)),
        "steps": tb.tensor(tb.storage("2", "LongStorage", 7), (7,)),
        "mask": tb.tensor(tb.storage("3", "BoolStorage", 33), (3, 11)),
        "brain": tb.tensor(tb.storage("4", "BFloat16Storage", 40), (40,)),
        "complex": tb.tensor(tb.storage("5", "ComplexFloatStorage", 64), (8, 8), (1, 8)),
    }


class Unseekable(io.RawIOBase):
    """What makes zipfile write data descriptors."""

    def __init__(self) -> None:
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.held += data
        return len(data)


def zipped(members: dict[str, bytes], *, stream: bool = False, wide: bool = False) -> bytes:
    """Stored zip archive; ``stream`` for data descriptors, ``wide`` for zip64 local headers."""
    into: Any = Unseekable() if stream else io.BytesIO()
    with zipfile.ZipFile(into, "w") as out:
        for name, data in members.items():
            with out.open(zipfile.ZipInfo(name), "w", force_zip64=wide) as member:
                member.write(data)
    return bytes(into.held) if stream else bytes(into.getvalue())


def torch_members(**more: bytes) -> dict[str, bytes]:
    members = {"archive/data.pkl": tb.pickled(torch_value()), "archive/byteorder": b"little"}
    members |= {f"archive/data/{key}": data for key, data in STORAGES.items()}
    return members | {"archive/version": b"3\n"} | more


def torch_zip(path: Path, **how: bool) -> None:
    path.write_bytes(zipped(torch_members(), **how))


def unsigned(data: bytes) -> bytes:
    """The same archive with data descriptors that have no signature: all offsets move."""
    out, moved = bytearray(), {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            moved[info.header_offset] = len(out)
            length = 30 + len(info.filename.encode())
            head = data[info.header_offset : info.header_offset + length]
            stop = info.header_offset + length + info.compress_size
            assert data[stop : stop + 4] == b"PK\7\x08"
            out += head + data[stop - info.compress_size : stop] + data[stop + 4 : stop + 16]
        directory = bytearray(data[archive.start_dir :])
    at = 0
    for old, new in moved.items():
        assert struct.unpack_from("<I", directory, at + 42) == (old,)
        struct.pack_into("<I", directory, at + 42, new)
        at += 46 + sum(struct.unpack_from("<3H", directory, at + 28))
    struct.pack_into("<I", directory, at + 16, len(out))
    return bytes(out + directory)


def torch_unsigned(path: Path) -> None:
    path.write_bytes(unsigned(zipped(torch_members(), stream=True)))


def torch_with_a_wrong_crc(path: Path) -> None:
    """A flipped bit in storage 0, the one that tensors are edited in most."""
    data = bytearray(zipped(torch_members(), stream=True))
    data[data.index(STORAGES["0"]) + 77] ^= 4
    path.write_bytes(data)


def torch_without_crcs(path: Path) -> None:
    """As some writers leave it: 0 in every place for "not computed"."""
    data = bytearray(zipped(torch_members()))
    for at in crc_places(bytes(data)):
        data[at : at + 4] = bytes(4)
    path.write_bytes(data)


def torch_big_endian(path: Path) -> None:
    swapped = {
        "0": np.frombuffer(STORAGES["0"], "<f4").astype(">f4").tobytes(),
        "1": np.frombuffer(STORAGES["1"], "<f2").astype(">f2").tobytes(),
        "2": np.frombuffer(STORAGES["2"], "<i8").astype(">i8").tobytes(),
        "3": STORAGES["3"],
        "4": np.frombuffer(STORAGES["4"], "<u2").astype(">u2").tobytes(),
        "5": np.frombuffer(STORAGES["5"], "<c8").astype(">c8").tobytes(),
    }
    members = torch_members() | {f"archive/data/{key}": data for key, data in swapped.items()}
    path.write_bytes(zipped(members | {"archive/byteorder": b"big"}))


def torchscript(path: Path) -> None:
    weight = tb.tensor(tb.storage("0", "FloatStorage", 600), (20, 30))
    state = tb.item({"running_mean": weight, "training": False})
    norm = tb.name("__torch__.torch.nn.modules.batchnorm", "BatchNorm2d") + b")\x81" + state + b"b"
    net = tb.name("__torch__.net", "Net") + b")\x81" + tb.item({"bn1": norm}) + b"b"
    members = {
        "net/data.pkl": tb.pickled(net),
        "net/data/0": STORAGES["0"],
        "net/constants.pkl": tb.pickled((tb.tensor(tb.storage("0", "FloatStorage", 9), (9,)),)),
        "net/constants/0": STORAGES["0"][:36],
        "net/code/__torch__/net.py": b"class Net(Module): ...",
        "net/version": b"3\n",
    }
    path.write_bytes(zipped(members, stream=True))


def torch_legacy(path: Path) -> None:
    def storage(key: str, kind: str, numel: int) -> bytes:
        return tb.storage(key, kind, numel, None)

    where = storage("0", "FloatStorage", 600)
    value = {
        "whole": tb.tensor(where, (600,)),
        "transposed": tb.tensor(where, (30, 20), (1, 30)),
        "half": tb.tensor(storage("1", "HalfStorage", 5000), (5000,)),
    }
    path.write_bytes(tb.legacy(value, {"0": (600, STORAGES["0"]), "1": (5000, STORAGES["1"])}))


def torch_tar(path: Path) -> None:
    values = STORAGES["0"]
    storages = tb.pickled(1) + tb.pickled(("11", "cpu", tb.name("torch", "FloatStorage")))
    storages += struct.pack("<q", 600) + values
    tensors = tb.pickled(1) + tb.pickled((22, "11", tb.name("torch", "FloatTensor")))
    tensors += struct.pack("<i4x5q", 2, 30, 20, 1, 30, 0)
    members = {
        "sys_info": tb.pickled({}),
        "pickle": tb.pickled({"w": tb.item(22) + b"Q"}),
        "storages": storages,
        "tensors": tensors,
    }
    path.write_bytes(tb.tar(members))


CODES = {"float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL", "uint8": "U8"}


def safetensors(path: Path, arrays: dict[str, np.ndarray] | None = None, **more: Any) -> None:
    if arrays is None:
        arrays = {
            "a.weight": normal(30, 20).astype(np.float32),
            "a.half": normal(3000).astype(np.float16),
            "a.steps": np.arange(5),
            "a.mask": np.array([True, False, True]),
            "a.empty": np.zeros((0, 2), np.float32),
            "a.scalar": np.array(1.5, np.float32),
        }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        spans = [at, at + array.nbytes]
        header[name] = {
            "dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": spans
        }  # fmt: skip
        at += array.nbytes
    text = json.dumps(header | more).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def npz(path: Path) -> None:
    arrays: dict[str, Any] = {
        "plain": normal(7, 9),
        "big": normal(50).astype(">f4"),
        "fortran": np.asfortranarray(normal(6, 5).astype(np.float32)),
        "counts": np.arange(9, dtype=">i8"),
        "mask": np.array([True, False]),
        "pairs": normal(8).astype(">c8"),
    }
    np.savez(path.with_suffix(".npz"), **arrays)
    path.with_suffix(".npz").rename(path)


def keras_2(path: Path) -> None:
    patients.save_keras(path, patients.keras_state(), scaled=True)


def keras_3(path: Path) -> None:
    """Whole model of Keras 3: as Keras 2, without ``:0``."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "3.5.0", "tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {}})
        group = file.create_group("model_weights")
        state = patients.keras_state()
        group.attrs["layer_names"] = [name.encode() for name in state]
        for layer, weights in state.items():
            for part, value in weights.items():
                group[f"{layer}/{part}"] = value


def keras_weights_only(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.15.0", "tensorflow"
        state = patients.keras_state()
        file.attrs["layer_names"] = [name.encode() for name in state]
        for layer, weights in state.items():
            file.create_group(layer).attrs["weight_names"] = [
                f"{layer}/{part}:0".encode() for part in weights
            ]
            for part, value in weights.items():
                file[f"{layer}/{layer}/{part}:0"] = value


def weights_h5(into: Any) -> None:
    with h5py.File(into, "w") as file:
        for number, (layer, weights) in enumerate(patients.keras_state().items()):
            group = file.create_group(f"layers/layer_{number}/vars")
            group.attrs["name"] = layer
            for i, value in enumerate(weights.values()):
                group[str(i)] = value


def keras_zip(path: Path, **how: bool) -> None:
    buffer = io.BytesIO()
    weights_h5(buffer)
    members = {
        "metadata.json": json.dumps({"keras_version": "3.5.0"}).encode(),
        "config.json": json.dumps({"class_name": "Sequential", "config": {}}).encode(),
        "model.weights.h5": buffer.getvalue(),
    }
    path.write_bytes(zipped(members, **how))


def keras_zip_of_npz(path: Path) -> None:
    """An archive in the archive: its checksums lie under the checksum of the whole."""
    inner = io.BytesIO()
    np.savez(inner, **{"layers/dense/vars/0": normal(8, 9).astype("f4")})
    members = {
        "metadata.json": json.dumps({"keras_version": "3.5.0"}).encode(),
        "config.json": json.dumps({"class_name": "Sequential", "config": {}}).encode(),
        "model.weights.npz": inner.getvalue(),
    }
    path.write_bytes(zipped(members))


def hdf5_with_userblock(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=1024, libver="latest") as file:
        file["big"] = normal(12, 5).astype(">f8")
        file["little"] = normal(40).astype("<f4")
        file["group/half"] = normal(11).astype("<f2")
        file["second name"] = file["little"]
    data = path.read_bytes()
    path.write_bytes(b"# notes of whoever made this file\n".ljust(512) + data[512:])


KINDS: dict[str, Callable[[Path], None]] = {
    "torch zip": torch_zip,
    "torch zip with data descriptors": lambda path: torch_zip(path, stream=True),
    "torch zip with unsigned descriptors": torch_unsigned,
    "torch zip64": lambda path: torch_zip(path, wide=True),
    "torch zip64 with data descriptors": lambda path: torch_zip(path, stream=True, wide=True),
    "torch zip with a wrong CRC": torch_with_a_wrong_crc,
    "torch zip without CRCs": torch_without_crcs,
    "torch zip, big-endian": torch_big_endian,
    "TorchScript": torchscript,
    "torch legacy": torch_legacy,
    "torch tar": torch_tar,
    "safetensors": safetensors,
    "npz": npz,
    "Keras 2 h5": keras_2,
    "Keras 3 h5": keras_3,
    "Keras weights-only h5": keras_weights_only,
    "weights.h5": weights_h5,
    "keras": keras_zip,
    "keras with data descriptors": lambda path: keras_zip(path, stream=True),
    "keras of npz": keras_zip_of_npz,
    "HDF5 with a user block": hdf5_with_userblock,
}


def sharded(folder: Path, *, torch: bool = False) -> Path:
    """Write two shards, an index and what lies beside them; returns the index."""
    folder.mkdir()
    names = [f"model-0000{n}-of-00002.{'bin' if torch else 'safetensors'}" for n in (1, 2)]
    held = (
        {"a.weight": values("a", (9, 5)), "a.bias": values("b", (9,))},
        {"b.weight": values("c", (300,)), "b.bias": values("d", (3,))},
    )
    for name, arrays in zip(names, held, strict=True):
        if torch:
            patients.save_torch(folder / name, arrays)
        else:
            safetensors(folder / name, arrays)
    weight_map = {key: name for name, arrays in zip(names, held, strict=True) for key in arrays}
    stem = "pytorch_model.bin" if torch else "model.safetensors"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"\0\1\2")
    (folder / "LICENSE").write_text("as it is")
    return index


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return patients.values(name, shape)


# --- random edits ---------------------------------------------------------------------------------


def bits(random: np.random.Generator, info: TensorInfo, count: int) -> np.ndarray:
    """Elements of any bits: NaN of every payload, infinities, subnormals."""
    dtype = info.kind.numpy
    if info.dtype == "bool":
        return random.integers(0, 2, count).astype(bool)
    return np.frombuffer(random.bytes(count * dtype.itemsize), dtype)


def some_indices(random: np.random.Generator, size: int) -> np.ndarray | None:
    """All elements, a few, a run, or many far apart."""
    how = random.integers(0, 4)
    if how == 0:
        return None
    if how == 1:
        start = int(random.integers(0, size))
        return np.arange(start, min(size, start + int(random.integers(1, 40))))
    count = int(random.integers(1, max(2, size // (1 if how == 2 else 50) + 1)))
    return np.sort(random.choice(size, min(size, count), replace=False))


def random_edits(random: np.random.Generator, table: TensorTable) -> list[Edit]:
    """Edits of tensors that share no bytes; at times two of one tensor, one between the other."""
    names = [name for name, info in table.infos.items() if info.size]
    made: list[Edit] = []
    taken: list[set[int]] = []
    for name in random.permutation(names).tolist()[: int(random.integers(1, 5))]:
        info = table[name]
        places = byte_places(info, None).tolist()
        mine = set(places)
        if len(mine) < len(places) or any(mine & other for other in taken):
            continue
        taken.append(mine)
        at = some_indices(random, info.size)
        count = info.size if at is None else at.size
        fresh = bits(random, info, count)
        if at is not None and count > 2 and random.integers(0, 2):
            pick = random.integers(0, 2, count).astype(bool)
            made += [edit(name, fresh[pick], at[pick]), edit(name, fresh[~pick], at[~pick])]
        else:
            made.append(edit(name, fresh, at))
    random.shuffle(made)  # type: ignore[arg-type]
    return made


def byte_places(info: TensorInfo, indices: np.ndarray | None) -> np.ndarray:
    """Offsets in the file of all bytes of some elements, worked out by NumPy's own strides."""
    assert info.extent is not None
    source, start = info.extent.source, info.extent.offset
    while isinstance(source, WindowSource):
        source, start = source.below, start + source.offset
    width = info.kind.numpy.itemsize
    span = np.arange(info.extent.length // width, dtype=np.int64)
    steps = info.strides
    if steps is not None and info.size:
        strides = tuple(step * span.itemsize for step in steps)
        span = np.lib.stride_tricks.as_strided(span, info.shape, strides).reshape(-1)
    picked = span if indices is None else span[indices]
    return (start + picked[:, None] * width + np.arange(width)).reshape(-1)


# --- what may change ------------------------------------------------------------------------------


def crc_places(data: bytes, base: int = 0) -> Iterator[int]:
    """Offsets of every CRC-32 field of a stored archive, archives in it included."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.start_dir
        for info in archive.infolist():
            yield base + at + 16
            at += 46 + sum(struct.unpack_from("<3H", data, at + 28))
            head = info.header_offset
            flags = struct.unpack_from("<H", data, head + 6)[0]
            names = sum(struct.unpack_from("<2H", data, head + 26))
            start = head + 30 + names
            stop = start + info.compress_size
            if flags & 8:
                yield base + stop + (4 if data[stop : stop + 4] == b"PK\7\x08" else 0)
            else:
                yield base + head + 14
            if info.filename.endswith(".npz"):
                yield from crc_places(data[start:stop], base + start)


def apart(data: bytes) -> list[tuple[str, int, set[int]]]:
    """By how much each member's CRC-32 is wrong in the directory, and what all fields state."""
    places = iter(crc_places(data))
    found = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            stated = {struct.unpack_from("<I", data, next(places))[0] for _ in range(2)}
            info_at = data[info.header_offset + 26 : info.header_offset + 30]
            start = info.header_offset + 30 + sum(struct.unpack("<2H", info_at))
            held = data[start : start + info.compress_size]
            if info.filename.endswith(".npz"):
                found += apart(held)
                for _ in crc_places(held):
                    next(places)
            stated = {crc ^ zlib.crc32(held) if crc else -1 for crc in stated}
            found.append((info.filename, info.CRC and info.CRC ^ zlib.crc32(held), stated))
    return found


def dead_process() -> int:
    """Number of a process that ran and is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
