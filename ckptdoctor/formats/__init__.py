"""Which format a file has, told from its content, and the adapter that reads it.

Adapters are imported when a file needs them: start-up is most of the time of a small inspection.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import CkptDoctorError, FormatError
from ..findings import Finding, Severity, container_finding
from ..sources import FileSource
from .base import Adapter, ReadOptions

if TYPE_CHECKING:
    from ..containers.zip import Archive
    from ..tensors import TensorTable

__all__ = ["ADAPTERS", "LazyAdapter", "detect", "open_path", "open_source"]

HEAD_BYTES = 4096
_HDF5_SIGN = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNS = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")


@dataclass(frozen=True, slots=True)
class LazyAdapter:
    """An adapter by the name of its module and class, with the cheap test that comes before it.

    Parameters
    ----------
    module, cls
        Where the adapter is, below this package.
    may_be
        Necessary for a file to have the format, from its first bytes; None for zip archives.
    holds
        The same from the members of a zip archive; None for all others.
    """

    module: str
    cls: str
    may_be: Callable[[bytes], bool] | None = None
    holds: Callable[[Archive], bool] | None = None

    def load(self) -> Adapter:
        """Import the module and make the adapter."""
        module = importlib.import_module(f".{self.module}", __name__)
        return cast("Adapter", getattr(module, self.cls)())

    @property
    def name(self) -> str:
        return self.load().name

    @property
    def spec(self) -> str:
        return self.load().spec

    @property
    def summary(self) -> str:
        return self.load().summary

    def sniff(self, head: bytes, source: FileSource) -> bool:
        """Ask the adapter, unless the first bytes say no already."""
        return self.may_be is not None and self.may_be(head) and self.load().sniff(head, source)

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:
        return self.load().read(source, options)

    def read_archive(
        self, archive: Archive, source: FileSource, options: ReadOptions
    ) -> TensorTable:
        """Read a zip whose directory is parsed already."""
        adapter = self.load()
        read = getattr(adapter, "read_archive", None)
        if read is None:
            return adapter.read(source, options)
        return cast("TensorTable", read(archive, source, options))


def _torch_top(archive: Archive) -> str | None:
    """Folder, with its slash, of the ``data.pkl`` that torch.load would look for."""
    for member in archive.members:
        if member.name.endswith("data.pkl"):
            folder, slash, name = member.name.rpartition("/")
            if name == "data.pkl" and "/" not in folder and folder != "__MACOSX":
                return folder + slash
    return None


def _is_torchscript(archive: Archive) -> bool:
    top = _torch_top(archive)
    return top is not None and archive.get(f"{top}constants.pkl") is not None


def _is_torch_zip(archive: Archive) -> bool:
    return _torch_top(archive) is not None and not _is_torchscript(archive)


def _is_keras_zip(archive: Archive) -> bool:
    weights = archive.get("model.weights.h5") or archive.get("model.weights.npz")
    config = archive.get("config.json")
    return bool(weights or (config and archive.get("metadata.json")))


def _is_npz(archive: Archive) -> bool:
    names = [m.name for m in archive.members if not m.name.startswith("__MACOSX/")]
    return bool(names) and all(name.endswith((".npy", "/")) for name in names)


ADAPTERS: tuple[LazyAdapter, ...] = (
    LazyAdapter("torch_zip", "TorchZip", holds=_is_torch_zip),
    LazyAdapter("torchscript", "TorchScript", holds=_is_torchscript),
    LazyAdapter(
        "safetensors", "Safetensors", lambda head: head[8:9] in (b"{", b"[", b"\xef", b" ")
    ),
    LazyAdapter("sharded", "Sharded", lambda head: head.lstrip()[:1] == b"{"),
    LazyAdapter("keras_zip", "KerasZip", holds=_is_keras_zip),
    LazyAdapter("keras_h5", "KerasH5", lambda head: _HDF5_SIGN in head),
    LazyAdapter("npz", "Npz", holds=_is_npz),
    LazyAdapter(
        "torch_legacy",
        "TorchLegacy",
        # Behind the protocol stands an opcode: a safetensors header of 640 bytes starts 80 02 00.
        lambda head: (
            (head[:1] == b"\x80" and head[2:3] > b" ")
            or head[:1] in (b"c", b"(", b"}", b"]")
            or head[257:262] == b"ustar"
        ),
    ),
)
"""Every format that can be read; a file belongs to the first that recognises it."""


def open_path(path: str | os.PathLike[str], options: ReadOptions | None = None) -> TensorTable:
    """Read a file, a folder that holds one checkpoint, or the index of a sharded one.

    Raises
    ------
    UsageError
        If there is no such path, or a folder does not hold exactly one checkpoint.
    FormatError
        If the file cannot be read or is no checkpoint.
    """
    path = os.fspath(path)
    notes: list[Finding] = []
    if Path(path).is_dir():
        from .folder import find_checkpoint  # noqa: PLC0415  (few calls name a folder)

        path, notes = find_checkpoint(path)
    source = FileSource(path)
    try:
        table = open_source(source, options or ReadOptions())
        return _add(table, notes)
    except BaseException:
        source.close()
        raise


def detect(source: FileSource) -> Adapter:
    """Adapter for a file.

    Raises
    ------
    FormatError
        If no adapter reads it, saying what it is and what to do where that is known.
    """
    return _find(source)[0].load()


def open_source(source: FileSource, options: ReadOptions) -> TensorTable:
    """Read a file that is open; raises as `open_path`."""
    collecting = gc.isenabled()
    gc.disable()  # a table of 100,000 tensors is built twice as fast, and nothing in it is garbage
    try:
        adapter, archive, findings = _find(source)
        if archive is None:
            table = adapter.read(source, options)
        else:
            table = _read_zip(adapter, archive, source, options)
    finally:
        if collecting:
            gc.enable()
    return _add(table, findings)


def _add(table: TensorTable, findings: Iterable[Finding]) -> TensorTable:
    """Table with the findings that it does not have yet."""
    new = tuple(finding for finding in findings if finding not in table.findings)
    return dataclasses.replace(table, findings=(*table.findings, *new)) if new else table


def _read_zip(
    adapter: LazyAdapter, archive: Archive, source: FileSource, options: ReadOptions
) -> TensorTable:
    """Read an archive; what it noticed, checksums of members included, reaches the table."""
    try:
        table = adapter.read_archive(archive, source, options)
    except CkptDoctorError as error:
        known = [finding for finding in archive.findings if finding not in error.findings]
        error.findings = (*error.findings, *known)
        raise
    return _add(table, archive.findings)


def _find(source: FileSource) -> tuple[LazyAdapter, Archive | None, list[Finding]]:
    """Adapter, the archive if the file is one, and findings about what else it claims to be."""
    head = source.pread(0, min(HEAD_BYTES, source.size))
    if head.startswith(_ZIP_SIGNS):
        return _find_in_zip(head, source)
    claims = [row for row in ADAPTERS if row.sniff(head, source)]
    behind = _has_zip_end(source)
    if not claims:
        if behind and not head.startswith(b"\x93NUMPY"):
            return _find_in_zip(head, source)  # bytes before the archive, which it reports
        from .refused import refusal  # noqa: PLC0415

        raise refusal(head, source)
    findings = []
    others = [row.name for row in claims[1:]] + (["a zip archive"] if behind else [])
    if others:
        message = f"reads as {claims[0].name}, but also as {', '.join(others)}: loaders disagree"
        findings.append(container_finding("CK005", Severity.ERROR, message, where=source.name))
    return claims[0], None, findings


def _find_in_zip(
    head: bytes, source: FileSource
) -> tuple[LazyAdapter, Archive | None, list[Finding]]:
    from ..containers.zip import read_archive  # noqa: PLC0415  (not for other formats)

    try:
        archive = read_archive(source)
    except FormatError as error:
        raise _mangled(head, source) or error from None
    if any(member.broken for member in archive.members):
        damage = _mangled(head, source)
        if damage is not None:
            raise damage
    claims = [row for row in ADAPTERS if row.holds is not None and row.holds(archive)]
    if not claims:
        from .refused import refused_zip  # noqa: PLC0415

        unknown = refused_zip(archive)
        unknown.findings = archive.findings
        raise unknown
    if len(claims) > 1:
        names = " and ".join(row.name for row in claims)
        message = f"the archive is {names} at once: which one is read depends on the loader"
        hint = "get the file again from where it came from"
        ambiguous = FormatError(message, where=source.name, hint=hint)
        ambiguous.findings = archive.findings
        raise ambiguous
    return claims[0], archive, _hidden_hdf5(head, archive)


def _mangled(head: bytes, source: FileSource) -> FormatError | None:
    from .refused import mangled  # noqa: PLC0415  (3 ms that a sound archive need not pay)

    return mangled(head, source)


def _hidden_hdf5(head: bytes, archive: Archive) -> list[Finding]:
    """HDF5's library also looks for its signature at 512, 1024, ...: there a zip can hide a file."""
    for at in (512, 1024, 2048):
        inside = any(m.offset <= at < m.offset + m.stored for m in archive.members)
        if head[at : at + 8] == _HDF5_SIGN and not inside:
            message = f"the archive also reads as HDF5, from offset {at}: loaders disagree"
            where = f"{archive.source.name}+{at}"
            return [container_finding("CK005", Severity.ERROR, message, where=where)]
    return []


def _has_zip_end(source: FileSource) -> bool:
    """Whether the file ends in a zip archive's directory, whatever it starts with."""
    take = min(source.size, 65_557)
    if take < 22 or source.pread(source.size - take, take).rfind(b"PK\5\6") < 0:
        return False
    from ..containers.zip_directory import Oddities, read_directory  # noqa: PLC0415

    try:  # the four bytes alone turn up in one of 65,000 files by chance
        return bool(read_directory(source, Oddities(source.name)).names)
    except FormatError:
        return False
