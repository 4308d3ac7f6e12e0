"""The tar form of torch 0.1: members ``storages``, ``tensors`` and ``pickle``, each a row of pickles."""

from __future__ import annotations

import struct
import tarfile
from typing import Any

from ..containers.pickle import Call, Global, Persistent
from ..containers.pickle_policy import scan_pickles
from ..dtypes import DTYPES
from ..errors import FormatError, TruncatedError
from ..sources import Extent, FileSource, WindowSource
from ..tensors import TensorTable
from .torch_stream import PickleStream, Storages, key_of
from .torch_tree import TreeReader
from .torch_values import Refusal, Resolver, storage_dtype

__all__ = ["is_tar", "read_tar"]

_MEMBERS = ("pickle", "storages", "tensors")
_REBUILD = Global("torch._utils", "_rebuild_tensor", 0)


def is_tar(head: bytes) -> bool:
    """Whether a file starts with one of the members of the tar form."""
    name = head[:100].rstrip(b"\0").removeprefix(b"./").decode("ascii", "replace")
    return len(head) >= 512 and name in (*_MEMBERS, "sys_info")


def read_tar(source: FileSource) -> TensorTable:
    """Read the three members; `tensors` gives each object of the pickle its shape and storage."""
    members = _members(source)
    missing = [name for name in _MEMBERS if name not in members]
    if missing:
        raise FormatError(f"the tar archive has no member {missing[0]!r}", where=source.name)
    storages, objects = Storages(source), PickleStream(members["pickle"])
    listed, described = PickleStream(members["storages"]), PickleStream(members["tensors"])
    references = _read_storages(listed, storages)
    tensors = _read_tensors(described, references)
    known = {**references, **tensors}
    root = objects.next(lambda pid: known.get(key_of(pid), Persistent(pid)))
    others = [
        finding
        for name, start in (("pickle", objects.pos), ("sys_info", 0))
        if name in members
        for finding in scan_pickles(
            members[name].pread(start, members[name].size - start), members[name].name, start
        )
    ]
    tree = TreeReader(Resolver(storages.find), source.name, root.end).read(root.value)
    findings = (*listed.findings, *described.findings, *objects.findings)
    return TensorTable(
        path=source.name,
        format="torch-legacy-tar",
        infos=tree.infos,
        metadata={"framework": "torch"},
        scalars=tree.scalars,
        layers=tree.layers,
        findings=(*findings, *storages.findings, *tree.findings, *others),
        files=(source,),
    )


def _members(source: FileSource) -> dict[str, WindowSource]:
    found: dict[str, WindowSource] = {}
    try:
        with (
            open(source.fd, "rb", closefd=False) as file,
            tarfile.open(fileobj=file, mode="r:") as archive,
        ):
            file.seek(0)
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in (*_MEMBERS, "sys_info"):
                    continue
                if name in found or not member.isreg() or member.issparse():
                    hint = "get the file again from where it came from"
                    message = f"member {name!r} stands there twice, or is no plain file"
                    raise FormatError(message, where=source.name, hint=hint)
                label = f"{source.name}:{name}"
                found[name] = WindowSource(label, source, member.offset_data, member.size)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        raise FormatError(f"the tar archive cannot be read: {error}", where=source.name) from None
    return found


def _count(stream: PickleStream) -> int:
    count = stream.next().value
    if type(count) is not int or not 0 <= count <= stream.source.size:
        raise FormatError("expected a count, found something else", where=stream.source.name)
    return count


def _read_storages(stream: PickleStream, storages: Storages) -> dict[str, Any]:
    """Read a count, then for each storage (key, location, type), its length and bytes."""
    references: dict[str, Any] = {}
    for _ in range(_count(stream)):
        entry = stream.next().value
        if type(entry) is not tuple or len(entry) != 3:
            raise FormatError("expected (key, location, type)", where=stream.source.name)
        key, location, kind = entry
        try:
            dtype = storage_dtype(kind) or "uint8"
        except Refusal as refusal:
            raise FormatError(f"storage: {refusal}", where=stream.source.name) from None
        numel = stream.int64()
        length = DTYPES[dtype].nbytes(numel) if numel >= 0 else -1
        if length < 0 or length > stream.source.size - stream.pos:
            message = f"storage {key_of(key)!r:.60} needs {length} bytes"
            raise TruncatedError(message, where=f"{stream.source.name}+{stream.pos}")
        storages.add(key_of(key), dtype, Extent(stream.source, stream.pos, length))
        references[key_of(key)] = Persistent(("storage", kind, key, location, numel))
        stream.pos += length
    return references


def _read_tensors(stream: PickleStream, references: dict[str, Any]) -> dict[str, Any]:
    """Read a count, then for each tensor (key, storage, type), its sizes, strides, offset."""
    tensors: dict[str, Any] = {}
    for _ in range(_count(stream)):
        entry = stream.next().value
        if type(entry) is not tuple or len(entry) != 3:
            raise FormatError("expected (key, storage, type)", where=stream.source.name)
        key, storage, _ = entry
        (ndim,) = struct.unpack("<i4x", stream.source.pread(stream.pos, 8))
        if not 0 <= ndim <= 64:
            raise FormatError(f"a tensor of {ndim} dimensions", where=stream.source.name)
        raw = stream.source.pread(stream.pos + 8, 8 * (2 * ndim + 1))
        numbers = struct.unpack(f"<{2 * ndim + 1}q", raw)
        stream.pos += 8 + len(raw)
        shape, strides, offset = numbers[:ndim], numbers[ndim:-1], numbers[-1]
        reference = references.get(key_of(storage))
        tensors[key_of(key)] = Call(_REBUILD, (reference, offset, shape, strides))
    return tensors
