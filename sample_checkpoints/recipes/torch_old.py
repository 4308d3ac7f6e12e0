"""Samples in torch's other containers: before 1.6, the tar before that, TorchScript, big-endian."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import tarfile
import warnings
from pathlib import Path

import torch

from . import sample
from .networks import tiny_net, tiny_state, trained, uniform
from .torch_files import overflowed_resnet, rewrite, training_state

LEGACY_PICKLES = 4  # magic number, protocol, system information, the object


def save_legacy(value: object, path: Path) -> None:
    """Write with ``torch.save`` of before 1.6, storages in the order the object names them.

    torch names storages by their address and writes them sorted by it, so that no two files are
    alike; here they are renamed ``0``, ``1`` ... which loads just as well.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()

    widths: dict[str, int] = {}

    class Addresses(pickle.Unpickler):
        def persistent_load(self, pid: tuple[object, ...]) -> object:
            _, storage_type, key, _, numel, _ = pid
            widths[str(key)] = storage_type(0).element_size()  # type: ignore[operator]
            storage = torch.UntypedStorage(numel * widths[str(key)])
            return torch.storage.TypedStorage(
                wrap_storage=storage, dtype=storage_type.dtype, _internal=True
            )

    stream = io.BytesIO(data)
    for _ in range(LEGACY_PICKLES):
        with warnings.catch_warnings(action="ignore"):
            Addresses(stream).load()
    head = data[: stream.tell()]
    storages = {}
    for key in pickle.load(stream):
        start = stream.tell()
        (numel,) = struct.unpack("<q", stream.read(8))
        stream.seek(numel * widths[key], io.SEEK_CUR)
        storages[key] = data[start : stream.tell()]
    if stream.tell() != len(data):
        raise AssertionError("torch writes something behind the storages")

    new = {key: str(index) for index, key in enumerate(widths)}
    for key, name in new.items():
        head = head.replace(_unicode(key), _unicode(name))
    keys = pickle.dumps(list(new.values()), protocol=2)
    path.write_bytes(head + keys + b"".join(storages[key] for key in new))


def _unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def save_tar(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write the tar form of torch 0.1, which no torch since has written but all can read."""
    tensors, storages = io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), tensors, protocol=2)
    pickle.dump(len(state), storages, protocol=2)
    for index, tensor in enumerate(state.values()):
        kind = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}[tensor.dtype]
        storage_key, tensor_key = 2 * index, 2 * index + 1
        pickle.dump((storage_key, "cpu", kind), storages, protocol=2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        tensor_type = {torch.FloatStorage: torch.FloatTensor, torch.LongStorage: torch.LongTensor}
        pickle.dump((tensor_key, storage_key, tensor_type[kind]), tensors, protocol=2)
        shape, stride = tuple(tensor.shape), tensor.contiguous().stride()
        layout = struct.pack(f"<ii{2 * len(shape)}qq", len(shape), 0, *shape, *stride, 0)
        tensors.write(layout)
    pickle.dump([], storages, protocol=2)  # views of storages

    class TensorNumbers(pickle.Pickler):
        def persistent_id(self, value: object) -> str | None:
            return str(value.number) if isinstance(value, _Number) else None

    objects = io.BytesIO()
    numbered = collections.OrderedDict(
        (name, _Number(2 * index + 1)) for index, name in enumerate(state)
    )
    TensorNumbers(objects, protocol=2).dump(numbered)
    system = pickle.dumps({"protocol_version": 1000, "little_endian": True}, protocol=2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("sys_info", system),
            ("pickle", objects.getvalue()),
            ("tensors", tensors.getvalue()),
            ("storages", storages.getvalue()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


class _Number:
    def __init__(self, number: int) -> None:
        self.number = number


def save_script(script: torch.jit.ScriptModule, path: Path) -> None:
    """Write TorchScript without its debug records: they hold this file's path and line numbers."""
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    path.write_bytes(
        rewrite(buffer.getvalue(), lambda name, data: None if name.endswith(".debug_pkl") else data)
    )


@sample("healthy/legacy-stream.pth", "torch before 1.6: several pickles, then the storages")
def legacy_stream(path: Path) -> None:
    save_legacy(training_state(), path)


@sample("healthy/legacy-tar.pth", "torch 0.1: a tar that no torch has written for years")
def legacy_tar(path: Path) -> None:
    save_tar(tiny_state(), path)


@sample("healthy/torchscript-scripted.pt", "TorchScript from `torch.jit.script`")
def scripted(path: Path) -> None:
    save_script(torch.jit.script(tiny_net()), path)


@sample("healthy/torchscript-traced.pt", "TorchScript from `torch.jit.trace`, with a constant")
def traced(path: Path) -> None:
    net = tiny_net()
    constant = torch.from_numpy(uniform("constant", (4,), -1, 1))
    images = torch.zeros(1, 3, 8, 8)

    class WithConstant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images) + constant

    save_script(torch.jit.trace(WithConstant().eval(), images), path)


@sample("healthy/big-endian.pt", "Written on a big-endian machine: its `byteorder` says so")
def big_endian(path: Path) -> None:
    state = {"w": torch.from_numpy(trained("w", (4, 3))), "steps": torch.arange(5)}
    swapped = {name: torch.from_numpy(tensor.numpy().byteswap()) for name, tensor in state.items()}
    buffer = io.BytesIO()
    torch.save(swapped, buffer)
    path.write_bytes(
        rewrite(buffer.getvalue(), lambda name, data: b"big" if name == "byteorder" else data)
    )


@sample("sick/bn001-legacy-overflow.pth", "The founding case's torch twin, from torch before 1.6")
def legacy_overflow(path: Path) -> None:
    save_legacy(overflowed_resnet(), path)


@sample("sick/nf002-legacy-tar.pth", "torch 0.1: a weight that overflowed, in the tar of its time")
def overflowed_tar(path: Path) -> None:
    state = tiny_state()
    state["conv1.weight"][5, 0] = float("inf")
    save_tar(state, path)


@sample("sick/bn001-torchscript-scripted.pt", "Exported after the overflow: NaN in its statistics")
def overflowed_script(path: Path) -> None:
    net = tiny_net()
    net.bn1.running_mean.fill_(float("nan"))
    net.bn1.running_var.fill_(float("nan"))
    save_script(torch.jit.script(net), path)
