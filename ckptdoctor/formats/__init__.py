"""Which format a file has, told from its content, and the adapter that reads it.

Adapters are imported when a file needs them: start-up is most of the time of a small inspection.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..containers.hdf5_process import MAGIC, magic_offset
from ..errors import CkptDoctorError, FormatError
from ..findings import Finding, Severity, container_finding
from ..sources import FileSource
from .base import ReadOptions
from .zip_kinds import is_keras_zip, is_npz, is_torch_zip, is_torchscript

if TYPE_CHECKING:
    from ..containers.zip import Archive
    from ..tensors import TensorTable
    from .base import Adapter, ArchiveAdapter, Described

__all__ = ["ADAPTERS", "LazyAdapter", "LazyArchiveAdapter", "open_path", "open_source"]

HEAD_BYTES = 4096
_ZIP_SIGNS = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")


@dataclass(frozen=True, slots=True)
class _Lazy:
    """A format by the name of its module, below this package, and class."""

    module: str
    cls: str

    def _make(self) -> Any:
        module = importlib.import_module(f".{self.module}", __name__)
        return getattr(module, self.cls)()

    @property
    def name(self) -> str:
        return cast("Described", self._make()).name

    @property
    def spec(self) -> str:
        return cast("Described", self._make()).spec

    @property
    def summary(self) -> str:
        return cast("Described", self._make()).summary

    @property
    def names(self) -> dict[str, str]:
        """Every format name that its tables may have, the adapter's own first, with one line each."""
        made = self._make()
        return {made.name: made.summary, **getattr(made, "names", {})}


@dataclass(frozen=True, slots=True)
class LazyAdapter(_Lazy):
    """An adapter, with the cheap test that comes before its import.

    Parameters
    ----------
    may_be
        Necessary for a file to have the format: from its first bytes, and from others if it must.
    """

    may_be: Callable[[bytes, FileSource], bool]

    def sniff(self, head: bytes, source: FileSource) -> bool:
        """Ask the adapter, unless the cheap test says no already."""
        return self.may_be(head, source) and cast("Adapter", self._make()).sniff(head, source)

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:
        return cast("Adapter", self._make()).read(source, options)


@dataclass(frozen=True, slots=True)
class LazyArchiveAdapter(_Lazy):
    """An adapter of a kind of zip archive.

    Parameters
    ----------
    holds
        Tell from the archive's members.
    """

    holds: Callable[[Archive], bool]

    def read_archive(
        self, archive: Archive, source: FileSource, options: ReadOptions
    ) -> TensorTable:
        return cast("ArchiveAdapter", self._make()).read_archive(archive, source, options)


def _may_be_legacy(head: bytes, _: FileSource) -> bool:
    # Behind the protocol stands an opcode: a safetensors header of 640 bytes starts 80 02 00.
    pickled = head[:1] == b"\x80" and head[2:3] > b" "
    return pickled or head[:1] in (b"c", b"(", b"}", b"]") or head[257:262] == b"ustar"


ADAPTERS: tuple[LazyAdapter | LazyArchiveAdapter, ...] = (
    LazyArchiveAdapter("torch_zip", "TorchZip", is_torch_zip),
    LazyArchiveAdapter("torchscript", "TorchScript", is_torchscript),
    LazyAdapter(
        "safetensors", "Safetensors", lambda head, _: head[8:9] in (b"{", b"[", b"\xef", b" ")
    ),
    LazyAdapter("sharded", "Sharded", lambda head, _: head.lstrip()[:1] == b"{"),
    LazyArchiveAdapter("keras_zip", "KerasZip", is_keras_zip),
    LazyAdapter(
        "keras_h5",
        "KerasH5",
        lambda head, source: magic_offset(head, source.pread, source.size) >= 0,
    ),
    LazyArchiveAdapter("npz", "Npz", is_npz),
    LazyAdapter("torch_legacy", "TorchLegacy", _may_be_legacy),
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
        return _add(table, [*notes, *_nothing_in(table)])
    except BaseException:
        source.close()
        raise


def open_source(source: FileSource, options: ReadOptions) -> TensorTable:
    """Read a file that is open, maybe one of several of a checkpoint; raises as `open_path`."""
    read, findings = _find(source)
    table = read(options)
    return _add(table, findings)


def _add(table: TensorTable, findings: Iterable[Finding]) -> TensorTable:
    """Table with the findings that it does not have yet."""
    new = tuple(finding for finding in findings if finding not in table.findings)
    return dataclasses.replace(table, findings=(*table.findings, *new)) if new else table


def _nothing_in(table: TensorTable) -> list[Finding]:
    """Say so where there is nothing to judge, which is not the same as nothing to find."""
    if table.infos:
        return []
    message = "it holds no tensors"
    return [container_finding("CK003", Severity.WARNING, message, where=table.path)]


def _read_zip(
    adapter: LazyArchiveAdapter, archive: Archive, source: FileSource, options: ReadOptions
) -> TensorTable:
    """Read an archive; what it noticed, checksums of members included, reaches the table."""
    try:
        table = adapter.read_archive(archive, source, options)
    except CkptDoctorError as error:
        known = [finding for finding in archive.findings if finding not in error.findings]
        error.findings = (*error.findings, *known)
        raise
    return _add(table, archive.findings)


_Read = Callable[[ReadOptions], "TensorTable"]


def _find(source: FileSource) -> tuple[_Read, list[Finding]]:
    """How to read a file, and findings about what else it claims to be."""
    head = source.pread(0, min(HEAD_BYTES, source.size))
    if head.startswith(_ZIP_SIGNS):
        return _find_in_zip(head, source)
    claims = [row for row in ADAPTERS if isinstance(row, LazyAdapter) and row.sniff(head, source)]
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
    return partial(claims[0].read, source), findings


def _find_in_zip(head: bytes, source: FileSource) -> tuple[_Read, list[Finding]]:
    from ..containers.zip import read_archive  # noqa: PLC0415  (not for other formats)

    try:
        archive = read_archive(source)
    except FormatError as error:
        raise _mangled(head, source) or error from None
    if any(member.broken for member in archive.members):
        damage = _mangled(head, source)
        if damage is not None:
            raise damage
    claims = [row for row in ADAPTERS if isinstance(row, LazyArchiveAdapter) and row.holds(archive)]
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
    return partial(_read_zip, claims[0], archive, source), _hidden_hdf5(archive)


def _mangled(head: bytes, source: FileSource) -> FormatError | None:
    from .refused import mangled  # noqa: PLC0415  (3 ms that a sound archive need not pay)

    return mangled(head, source)


def _hidden_hdf5(archive: Archive) -> list[Finding]:
    """HDF5's library also looks for its signature at 512, 1024, ...: there a zip can hide a file."""
    source, at = archive.source, 512
    while at + len(MAGIC) <= source.size:
        if source.pread(at, len(MAGIC)) == MAGIC and not any(
            m.offset <= at < m.offset + m.stored for m in archive.members
        ):
            message = f"the archive also reads as HDF5, from offset {at}: loaders disagree"
            where = f"{source.name}+{at}"
            return [container_finding("CK005", Severity.ERROR, message, where=where)]
        at *= 2
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
