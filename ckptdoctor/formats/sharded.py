"""Checkpoints of several files: an ``index.json`` that says which tensor lies in which shard.

Only plain file names inside the folder of the index are followed, and the links that a Hugging
Face cache makes of them: an index is data from elsewhere, and ``../../etc/passwd`` is a name too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..errors import (
    BombError,
    CkptDoctorError,
    FormatError,
    TruncatedError,
    UnsupportedError,
    UsageError,
)
from ..findings import Finding, Severity, container_finding
from ..sources import FileSource
from ..tensors import Array, Decoder, TensorInfo, TensorTable
from .base import ReadOptions
from .folder import SHARD
from .repeated_keys import keep_last

__all__ = ["Sharded"]

MAX_INDEX = 1 << 28
"""256 MiB: the index of a model of 100,000 tensors has 10."""
MAX_SHARDS = 1000
"""Each is an open file; the largest published models have 200."""

_OTHER_FILES = 256
"""What else a process has open: the caller's files, pipes of children, libraries."""

_BLOB = re.compile(r"(\.\./)+blobs/[0-9a-f]{40,64}")
_CACHE = re.compile(r".*[/\\]models--[^/\\]+[/\\]blobs[/\\][0-9a-f]{40,64}")


class Sharded:
    """Sets of safetensors or PyTorch files beside an ``index.json``."""

    name = "safetensors-sharded"
    spec = "https://huggingface.co/docs/huggingface_hub/package_reference/serialization"
    summary = "sharded safetensors: model.safetensors.index.json, or its folder"
    names: ClassVar = {
        "torch-sharded": "sharded PyTorch: pytorch_model.bin.index.json, or its folder"
    }

    def sniff(self, head: bytes, source: FileSource) -> bool:
        if b'"weight_map"' in head:
            return True
        return b'"weight_map"' in source.pread(0, min(source.size, 1 << 16))

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:
        """Read the index and every shard that is there.

        Raises
        ------
        FormatError
            If the index is no index, or no shard can be read.
        """
        merged = _Merge(source, _read_index(source))
        _allow_open_files(len(merged.index.names))
        try:
            for shard in merged.shards():
                merged.add(shard, options)
            return merged.table()
        except BaseException:
            merged.close()
            raise


@dataclass(frozen=True, slots=True)
class _Index:
    """``names`` are the tensors of each shard, shards in the order the index first names them."""

    names: Mapping[str, tuple[str, ...]]
    total_size: int | None
    metadata: Mapping[str, str]
    findings: tuple[Finding, ...]


def _read_index(source: FileSource) -> _Index:
    if source.size > MAX_INDEX:
        message = f"expected an index of at most {MAX_INDEX:,} bytes, found {source.size:,}"
        raise BombError(message, where=source.name)
    findings: list[Finding] = []
    repeated: set[str] = set()
    hook = keep_last(repeated)
    try:
        index = json.loads(source.pread(0, source.size).decode(), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        message = f"the index is not JSON that can be read: {str(error)[:100]}"
        raise FormatError(message, where=source.name, hint="download it again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        message = "expected a weight_map of tensor names and file names in the index"
        raise FormatError(message, where=source.name)
    names: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            message = f"tensor {tensor!r:.100}: expected a file name, found {shard!r:.100}"
            raise FormatError(message, where=source.name)
        names.setdefault(shard, []).append(tensor)
    if repeated:
        message = f"the index gives keys twice, first {min(repeated)!r:.100}: loaders disagree"
        findings.append(container_finding("CK005", Severity.ERROR, message, where=source.name))
    metadata = index.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    total: Any = metadata.get("total_size")
    return _Index(
        {shard: tuple(held) for shard, held in names.items()},
        int(total) if type(total) in (int, float) and 0 <= total < 1 << 62 else None,
        {key: value for key, value in metadata.items() if isinstance(value, str)},
        tuple(findings),
    )


@dataclass(slots=True)
class _Merge:
    """One table out of many; findings are gathered on the way."""

    source: FileSource
    index: _Index
    tables: dict[str, TensorTable] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    first_error: CkptDoctorError | None = None

    @property
    def folder(self) -> str:
        """Of the index, as the caller named it."""
        return str(Path(self.source.name).parent)

    def find(self, code: str, severity: Severity, message: str, **measured: Any) -> None:
        """Add a finding about the set."""
        finding = container_finding(code, severity, message, where=self.source.name, **measured)
        self.findings.append(finding)

    def close(self) -> None:
        """Close every shard."""
        for table in self.tables.values():
            table.close()

    def shards(self) -> Iterator[str]:
        """Names of the shards that may be opened and are there."""
        self.findings += self.index.findings
        if len(self.index.names) > MAX_SHARDS:
            message = f"expected at most {MAX_SHARDS:,} shards, found {len(self.index.names):,}"
            raise UnsupportedError(message, where=self.source.name)
        outside = []
        for shard in self.index.names:
            path = os.path.join(self.folder, shard)  # noqa: PTH118  (Path would tidy the name)
            if not _is_plain(shard) or not _stays(path):
                outside.append(shard)
            elif not os.path.lexists(path):
                self.missing.append(shard)
            else:
                yield shard
        if outside:
            message = (
                f"{len(outside)} names of the index lead out of its folder and were not followed, "
                f"first {outside[0]!r:.120}"
            )
            self.find("CK006", Severity.ERROR, message, names=outside[:100])

    def add(self, shard: str, options: ReadOptions) -> None:
        """Read one shard; a damaged one leaves its tensors missing.

        Raises
        ------
        CkptDoctorError
            If the machine will not give its bytes, or they change: that says nothing about it.
        """
        from . import open_source  # noqa: PLC0415  (which imports this module)

        path = os.path.join(self.folder, shard)  # noqa: PTH118
        source = None
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
                raise FormatError("is not a regular file", where=path)
            source = FileSource(path)
            if source.pread(0, min(64, source.size)).lstrip()[:1] == b"{":
                message = "expected a shard with tensors, found JSON text"
                raise FormatError(message, where=path)
            self.tables[shard] = open_source(source, options)
        except CkptDoctorError as error:
            if source is not None:
                source.close()
            if not isinstance(error, (FormatError, UsageError)):
                raise
            self.first_error = self.first_error or error
            self.findings += error.findings
            code = "CK004" if isinstance(error, TruncatedError) else "CK003"
            self.find(code, Severity.ERROR, f"shard {shard!r:.120} cannot be read: {error.message}")

    def table(self) -> TensorTable:
        """Check the set against the index and put it together."""
        if not self.tables:
            raise self._nothing()
        if self.missing:
            message = (
                f"{len(self.missing)} of {len(self.index.names)} shards are missing, "
                f"first {self.missing[0]!r:.120}"
            )
            self.find("CK003", Severity.ERROR, message, missing=self.missing[:100])
        infos, decoders = self._infos()
        self._judge_keys()
        self._judge_files()
        self._judge_size(infos.values())
        tables = self.tables.values()
        formats = {table.format for table in tables}
        metadata: dict[str, str] = {**self.index.metadata}
        for table in tables:
            metadata = {**table.metadata, **metadata}
        return TensorTable(
            path=self.source.name,
            format=Sharded.name if formats == {"safetensors"} else "torch-sharded",
            infos=infos,
            metadata=metadata,
            scalars={name: value for table in tables for name, value in table.scalars.items()},
            layers={name: layer for table in tables for name, layer in table.layers.items()},
            findings=(*self.findings, *(f for table in tables for f in table.findings)),
            checksums=tuple(c for table in tables for c in table.checksums),
            decoder=_Decoders(decoders),
            files=(self.source, *(file for table in tables for file in table.files)),
        )

    def _nothing(self) -> CkptDoctorError:
        """Say why there is not a single tensor."""
        if self.first_error is not None:
            self.first_error.findings = tuple(self.findings)
            return self.first_error
        names = list(self.index.names)
        message = f"none of the {len(names)} shards that the index names is in its folder"
        hint = f"download them beside it, first {names[0]!r:.120}"
        error = FormatError(message, where=self.source.name, hint=hint)
        error.findings = tuple(self.findings)
        return error

    def _infos(self) -> tuple[dict[str, TensorInfo], dict[str, Decoder]]:
        """Tensors in the order of the index; of two of one name the shard that the index means."""
        infos: dict[str, TensorInfo] = {}
        decoders: dict[str, Decoder] = {}
        twice = []
        for shard, table in self.tables.items():
            meant = set(self.index.names[shard])
            for name, info in table.infos.items():
                if name in infos:
                    twice.append(name)
                    if name not in meant:
                        continue
                own = info._replace(storage=f"{shard}:{info.storage}") if info.storage else info
                infos[name] = own
                decoders.pop(name, None)
                if info.extent is None and table.decoder is not None:
                    decoders[name] = table.decoder
        if twice:
            message = f"{len(twice)} tensors are in several shards, first {twice[0]!r:.120}"
            self.find("CK005", Severity.ERROR, f"{message}: loaders disagree", tensors=twice[:100])
        return infos, decoders

    def _judge_keys(self) -> None:
        """Compare what each shard holds with what the index says."""
        absent, surplus = [], []
        for shard, table in self.tables.items():
            meant = self.index.names[shard]
            # A key may also stand for a number, or for an object of several tensors.
            held = {*table.infos, *table.scalars, *(i.path[0] for i in table.infos.values())}
            absent += [name for name in meant if name not in held]
            known = set(meant)
            surplus += [name for name in table.infos if name not in known]
        if absent:
            message = f"{len(absent)} tensors of the index are not in their shards"
            message += f", first {absent[0]!r:.120}"
            self.find("CK003", Severity.ERROR, message, missing=absent[:100])
        if surplus:
            message = f"{len(surplus)} tensors of the shards are not in the index"
            message += f", first {surplus[0]!r:.120}"
            self.find("CK003", Severity.WARNING, message, surplus=surplus[:100])

    def _judge_files(self) -> None:
        """Look for shards of the same family that the index does not name."""
        known = set(self.index.names)
        families = {(m[1], m[4]) for m in map(SHARD.fullmatch, known) if m}
        try:
            beside = sorted(os.listdir(self.folder))  # noqa: PTH208  (names, no paths)
        except OSError:
            return
        surplus = []
        for name in beside:
            match = SHARD.fullmatch(name)
            if match and name not in known and (match[1], match[4]) in families:
                surplus.append(name)
        if surplus:
            message = f"{len(surplus)} shards beside the index are not in it"
            message += f", first {surplus[0]!r:.120}"
            self.find("CK003", Severity.WARNING, message, surplus=surplus[:100])

    def _judge_size(self, infos: Iterable[TensorInfo]) -> None:
        stated = self.index.total_size
        if stated is None or len(self.tables) < len(self.index.names):
            return
        total = sum(info.nbytes for info in infos)
        if total != stated:
            message = f"the index states {stated:,} bytes of tensors, the shards hold {total:,}"
            self.find("CK003", Severity.NOTE, message, stated=stated, found=total)


def _allow_open_files(shards: int) -> None:
    """Raise this process' own limit of open files where a set has more shards than it allows.

    It is 1,024 on most Linux systems and 256 on macOS, and any process may raise it up to the
    limit that the administrator set.
    """
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = shards + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then opening the next one says so
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _is_plain(name: str) -> bool:
    """Whether a name can only mean a file in the folder itself, on every platform."""
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)


def _stays(path: str) -> bool:
    """Whether a path is no link, or one that stays in the folder or the cache it belongs to."""
    if not os.path.islink(path):  # noqa: PTH114
        return True
    folder = os.path.realpath(os.path.dirname(path))  # noqa: PTH120  (the name as it is)
    real = os.path.realpath(path)
    if os.path.dirname(real) == folder:  # noqa: PTH120
        return True
    target = os.readlink(path)  # noqa: PTH115
    blobs = os.path.realpath(os.path.join(folder, os.path.dirname(target)))  # noqa: PTH118, PTH120
    beside = bool(_BLOB.fullmatch(target)) and os.path.dirname(real) == blobs  # noqa: PTH120
    return beside or bool(_CACHE.fullmatch(real))


@dataclass(frozen=True, slots=True)
class _Decoders:
    """The decoder of each tensor that needs one."""

    by_name: Mapping[str, Decoder]

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        return self.by_name[info.name].blocks(info)

    def close(self) -> None:
        for decoder in {id(d): d for d in self.by_name.values()}.values():
            close = getattr(decoder, "close", None)
            if close is not None:
                close()
