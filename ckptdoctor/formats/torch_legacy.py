"""torch.save before 1.6: a stream of pickles with raw storages behind, or (0.1) a tar archive."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from ..containers.pickle import Global, PDict, Persistent, PickleError, unpickle
from ..errors import FormatError, TruncatedError, UnknownFormatError
from ..findings import Severity, container_finding
from ..sources import FileSource
from ..tensors import ArrayDecoder, TensorTable
from .base import ReadOptions
from .torch_stream import PickleStream, Storages
from .torch_tar import is_tar, read_tar
from .torch_tree import TreeReader
from .torch_values import Resolver

__all__ = ["TorchLegacy", "class_or_storage"]

MAGIC: Final = 0x1950A86A20F9469CFC6C
PROTOCOL: Final = 1001
HEAD_BYTES: Final = 4096


class TorchLegacy:
    """Both forms, and bare pickles, which are refused with the names in them."""

    name = "torch-legacy"
    spec = "https://github.com/pytorch/pytorch/blob/main/torch/serialization.py"
    summary = "PyTorch before 1.6: the stream of pickles"
    names: ClassVar = {"torch-legacy-tar": "PyTorch 0.1: the tar form"}

    def sniff(self, head: bytes, source: FileSource) -> bool:
        if is_tar(head):
            return True
        return looks_like_pickle(head) and (head[8:9] != b"{" or _reads_on(source))

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:  # noqa: ARG002
        if is_tar(source.pread(0, min(512, source.size))):
            return read_tar(source)
        return _read_stream(source)


_FURTHER = (1 << 16, 1 << 20, 1 << 24)
"""Bytes; the longest headers of safetensors that are published have 10 MB."""


def looks_like_pickle(head: bytes) -> bool:
    """Whether bytes start like a pickle: a protocol mark, or opcodes that make sense in a row."""
    if len(head) > 2 and head[0] == 0x80 and head[1] <= 5:
        return True
    if len(head) < 4 or head[:1] not in (b"c", b"(", b"}", b"]"):
        return False
    # Protocols 0 and 1 have no mark.  Text gets no further than a few opcodes.
    try:
        return bool(unpickle(head, "").globals) or head[:1] != b"c"
    except PickleError as error:
        return isinstance(error.reason, TruncatedError) and len(head) >= HEAD_BYTES


def _reads_on(source: FileSource) -> bool:
    """Whether what starts like a pickle, and like safetensors too, is a pickle further on.

    The length of one safetensors header in 500 starts with ``(`` and an opcode that takes a line,
    whose end lies behind the header, among weights; there it turns out that it is none.
    """
    for length in _FURTHER:
        data = source.pread(0, min(length, source.size))
        try:
            return bool(unpickle(data, "").globals)
        except PickleError as error:
            if not isinstance(error.reason, TruncatedError) or len(data) == source.size:
                return False
    return True


def class_or_storage(pid: Any) -> Any:
    """Resolve a persistent id; old modules carried their class with its source code: the class stays."""
    if type(pid) is tuple and len(pid) == 4 and pid[0] == "module" and type(pid[1]) is Global:
        return pid[1]
    return Persistent(pid)


# The stream.


def _read_stream(source: FileSource) -> TensorTable:
    stream = PickleStream(source)
    magic = stream.next().value
    if type(magic) is not int or magic != MAGIC:
        raise _bare_pickle(stream)
    version = stream.next().value
    if type(version) is not int or version != PROTOCOL:
        error = FormatError(
            f"expected protocol version {PROTOCOL} behind the magic number, found another",
            where=f"{source.name}+{stream.pos}",
        )
        error.findings = tuple(stream.findings)
        raise error
    _check_machine(stream)
    root = stream.next(class_or_storage)
    storages = Storages(source)
    storages.declare(root.persistents)
    storages.read_stream(stream)
    tree = TreeReader(Resolver(storages.find), source.name, root.end).read(root.value)
    return TensorTable(
        path=source.name,
        format=TorchLegacy.name,
        infos=tree.infos,
        metadata={"framework": "torch"},
        scalars=tree.scalars,
        layers=tree.layers,
        findings=(*stream.findings, *storages.findings, *tree.findings),
        decoder=ArrayDecoder(tree.arrays) if tree.arrays else None,
        files=(source,),
    )


def _check_machine(stream: PickleStream) -> None:
    """Read sys_info: torch writes storages little-endian whatever the machine."""
    info = stream.next().value
    if isinstance(info, PDict) and info.get("little_endian") is False:
        message = "written on a big-endian machine: its values may be byte-swapped"
        where = stream.source.name
        stream.findings.append(container_finding("CK005", Severity.WARNING, message, where=where))


def _bare_pickle(stream: PickleStream) -> UnknownFormatError:
    """Refuse a pickle that is no torch file, with every name it would import."""
    for _ in range(16):
        head = stream.source.pread(stream.pos, min(16, stream.source.size - stream.pos))
        if not looks_like_pickle(head):
            break
        try:
            stream.next()
        except FormatError:
            break
    names = sorted({name for f in stream.findings for name in f.measured.get("globals", ())})
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    error = UnknownFormatError(
        "a bare pickle, no checkpoint of torch" + (f"; it names {shown[:400]}" if names else ""),
        where=stream.source.name,
        hint="do not unpickle it unless you trust who made it",
    )
    error.findings = tuple(stream.findings)
    return error
