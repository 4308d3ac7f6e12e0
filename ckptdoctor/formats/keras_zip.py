"""Keras 3 archives (``.keras``): a zip of configuration, metadata and one file of weights.

The weights are HDF5 (read in place where the archive stores them, from an anonymous temporary file
where it deflates them) or ``.npz``.  Names are those of the inner file.
"""

from __future__ import annotations

import os
import threading
import zlib
from typing import TYPE_CHECKING, Any

from ..containers.hdf5 import read_hdf5
from ..containers.zip import Archive, Member, read_archive
from ..errors import BombError, CkptDoctorError, FormatError, ReadError
from ..findings import Finding, Severity, container_finding
from ..keras.config import KerasConfig, parse_json, read_model_config, read_scalars
from ..sources import ByteSource, FileSource, Identity
from ..tensors import ArrayDecoder, Checksum, TensorInfo, TensorTable
from .keras_h5 import missing_variables, name_layers, tensor_rows

if TYPE_CHECKING:
    from ..tensors import Decoder
    from .base import ReadOptions

__all__ = ["KerasZip"]

CONFIG, METADATA = "config.json", "metadata.json"
WEIGHTS_H5, WEIGHTS_NPZ = "model.weights.h5", "model.weights.npz"
MAX_JSON = 1 << 26
SPOOL_FREELY = 1 << 28
"""256 MiB may be inflated to disk whatever the ratio; more, only up to `SPOOL_RATIO`."""
SPOOL_RATIO = 20
_BLOCK = 1 << 20


class KerasZip:
    """Adapter for ``.keras`` archives."""

    name = "keras-zip"
    spec = "https://keras.io/guides/serialization_and_saving/"
    summary = "Keras 3 and tf_keras .keras archives, with HDF5 or npz weights"

    def read_archive(
        self, archive: Archive, source: FileSource, options: ReadOptions
    ) -> TensorTable:
        """Read the configuration and the weights inside.

        Raises
        ------
        FormatError
            If the weights break their format.
        """
        read = _Read(archive, source)
        try:
            config = read.config()
            read.weights(config, trust=options.trust_hdf5)
        except BaseException as error:
            for file in read.files:
                file.close()
            if isinstance(error, CkptDoctorError):
                error.findings = (*archive.findings, *read.findings, *error.findings)
            raise
        return TensorTable(
            path=source.name,
            format=self.name,
            infos={info.name: info for info in read.infos},
            metadata={key: value for key, value in read.metadata.items() if value},
            scalars=read.scalars,
            layers=config.layers,
            findings=(*archive.findings, *read.findings),
            checksums=tuple(read.checksums),
            enclosing=tuple(read.enclosing),
            decoder=read.decoder,
            files=(source, *read.files),
        )


class _Read:
    """The table as it comes together."""

    def __init__(self, archive: Archive, source: FileSource) -> None:
        self.archive, self.source = archive, source
        self.infos: list[TensorInfo] = []
        self.metadata = {"framework": "keras", "layout": "whole model"}
        self.scalars: dict[str, float | int] = {}
        self.findings: list[Finding] = []
        self.checksums: list[Checksum] = []
        self.enclosing: list[Checksum] = []
        self.decoder: Decoder | None = None
        self.files: list[FileSource] = []

    def note(self, code: str, severity: Severity, message: str, member: str = "") -> None:
        where = f"{self.source.name}:{member}" if member else self.source.name
        self.findings.append(container_finding(code, severity, message, where=where))

    def config(self) -> KerasConfig:
        """Read ``metadata.json`` and ``config.json``."""
        stated = self._json(METADATA)
        version = stated.get("keras_version") if isinstance(stated, dict) else None
        self.metadata["framework_version"] = str(version or "")[:40]
        text = self._member(CONFIG, Severity.ERROR)
        if text is None:
            return KerasConfig()
        where = f"{self.source.name}:{CONFIG}"
        # Every Keras that writes this format refuses Lambda bytecode by default.
        config, document, findings = read_model_config(text, where=where, bare=True)
        self.findings += findings
        self.metadata |= {"model_class": config.class_name, "model_name": config.name}
        if isinstance(document, dict):
            self.scalars = read_scalars(document.get("compile_config"), "compile_config")
        return config

    def _json(self, name: str) -> Any:
        text = self._member(name, Severity.WARNING)
        if text is None:
            return None
        value, findings = parse_json(text, where=f"{self.source.name}:{name}")
        self.findings += findings
        return value

    def _member(self, name: str, severity: Severity) -> bytes | None:
        member = self.archive.last(name)
        if member is None:
            self.note("CK003", severity, f"no member {name}")
            return None
        try:
            return self.archive.read(member, MAX_JSON)
        except CkptDoctorError as error:
            self.note("CK005", Severity.ERROR, f"cannot be read: {error.message}"[:300], name)
            return None

    def weights(self, config: KerasConfig, *, trust: bool) -> None:
        """Read the weights that Keras would load: of two members of one name, the last."""
        members = [m for m in self.archive.members if m.name == WEIGHTS_H5]
        members = members or [m for m in self.archive.members if m.name == WEIGHTS_NPZ]
        if not members:
            text = f"no member {WEIGHTS_H5}: the model has no weights"
            self.note("CK003", Severity.ERROR, text)
            return
        try:
            self._read_weights(members[-1], config, trust=trust)
        except FormatError as error:
            if len(members) == 1:
                raise
            text = f"the last of {len(members)} members of this name, which Keras would load, is "
            text += f"not readable ({error.message[:200]}); the first is shown"
            self.note("CK005", Severity.ERROR, text, members[-1].name)
            self._read_weights(members[0], config, trust=trust)

    def _read_weights(self, member: Member, config: KerasConfig, *, trust: bool) -> None:
        if member.name == WEIGHTS_H5:
            self.hdf5(member, config, trust=trust)
        else:
            self.npz(member, config)

    def hdf5(self, member: Member, config: KerasConfig, *, trust: bool) -> None:
        """Read HDF5 weights."""
        contents = read_hdf5(self._weights(member), trust=trust)
        try:
            infos = name_layers(tensor_rows(contents), contents.attributes, config)
            missing = missing_variables(infos, self.source)
        except BaseException:
            if contents.decoder is not None:
                contents.decoder.close()  # or its process lives on
            raise
        self.infos, self.decoder = infos, contents.decoder
        self.findings += [*contents.findings, *missing]

    def npz(self, member: Member, config: KerasConfig) -> None:
        """Read npz weights: an archive in the archive, with checksums of its own."""
        from .npz import read_npz  # noqa: PLC0415

        outer = len(self.checksums)
        inner = read_archive(self._weights(member))
        contents = read_npz(inner, keras=True)
        self.enclosing = self.checksums[outer:]
        del self.checksums[outer:]  # the inner checksums cover the same bytes
        self.infos = name_layers(contents.infos.values(), {}, config)
        self.checksums += contents.checksums
        self.findings += [*inner.findings, *contents.findings]
        self.decoder = ArrayDecoder(contents.arrays) if contents.arrays else None

    def _weights(self, member: Member) -> ByteSource:
        """Random access to a member: in place, or inflated to a temporary file."""
        inner = self.archive.open(member)
        if inner.sequential:
            return _spool(self.archive, member, self)
        checksum = self.archive.checksum(member)
        if checksum is not None:
            self.checksums.append(checksum)
        return inner


class _Spool(FileSource):
    """An anonymous temporary file: gone with its descriptor, even if the process is killed."""

    temporary = True

    def __init__(self, fd: int, name: str) -> None:
        self.name, self.fd = name, fd
        found = os.fstat(fd)
        self.identity = Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        self.size = found.st_size
        self._lock = threading.Lock()

    def check_unchanged(self) -> None:
        """Do nothing: no path leads to this file, so nobody else can have changed it."""


def _spool(archive: Archive, member: Member, read: _Read) -> _Spool:
    """Inflate a member to a file, since HDF5 reads here and there; its checksum is checked.

    Raises
    ------
    BombError
        If the member declares far more than its stored bytes justify.
    ReadError
        If there is no room for it.
    """
    import tempfile  # noqa: PLC0415

    source = archive.open(member)
    if member.size > max(SPOOL_FREELY, SPOOL_RATIO * member.stored):
        message = f"{member.stored} bytes that inflate to {member.size} are not weights"
        raise BombError(message, where=source.name)
    if hasattr(source, "crc32"):
        source.crc32 = None  # a difference is a finding below, not an exception
    crc = 0
    try:
        with tempfile.TemporaryFile() as file:
            for start in range(0, member.size, _BLOCK):
                block = source.pread(start, min(_BLOCK, member.size - start))
                crc = zlib.crc32(block, crc)
                file.write(block)
            file.flush()
            spool = _Spool(os.dup(file.fileno()), source.name)
    except OSError as error:
        hint = "set TMPDIR to a folder with more room"
        message = f"cannot be inflated to a temporary file: {error.strerror}"
        raise ReadError(message, where=source.name, hint=hint) from None
    read.files.append(spool)
    if member.crc32 is not None and crc != member.crc32:
        message = f"CRC-32 of the data is {crc:#010x}, the archive states {member.crc32:#010x}"
        read.note("CK001", Severity.ERROR, message, member.name)
    return spool
