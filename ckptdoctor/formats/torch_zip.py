"""torch zip archives (torch.save since 1.6): a pickle of references, a member per storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..containers.pickle import Persistent, PickleError, Unpickled, size_limit, unpickle
from ..containers.pickle_policy import findings_about, scan_pickles
from ..containers.zip import STORED, Archive, Member
from ..dtypes import DTYPES
from ..errors import FormatError
from ..findings import Finding, Severity, container_finding
from ..sources import Extent, FileSource
from ..tensors import ArrayDecoder, Checksum, TensorTable
from .base import ReadOptions
from .torch_tree import Tree, TreeReader
from .torch_values import Refusal, Resolver, Storage, storage_dtype
from .zip_kinds import find_top

__all__ = ["TorchArchive", "TorchZip"]


class TorchZip:
    """``torch.save`` since PyTorch 1.6: state dicts, training checkpoints, whole modules."""

    name = "torch-zip"
    spec = "https://docs.pytorch.org/docs/stable/notes/serialization.html"
    summary = "PyTorch .pt .pth .bin .ckpt (torch.save since 1.6), Lightning, Hugging Face"

    def read_archive(
        self,
        archive: Archive,
        source: FileSource,
        options: ReadOptions,  # noqa: ARG002
    ) -> TensorTable:
        """Read a zip whose directory is known already."""
        torch = TorchArchive(archive, source.name)
        unpickled = torch.unpickle("data.pkl")
        tree = torch.tree(unpickled, "data.pkl")
        return torch.table(source, self.name, tree, _advice_about_top(torch))


def _advice_about_top(torch: TorchArchive) -> list[Finding]:
    found = []
    tops = {m.name.partition("/")[0] for m in torch.archive.members if "/" in m.name}
    tops.discard("__MACOSX")  # the archive's reader reports it
    if len(tops) > 1 and torch.top:
        message = (
            f"{len(tops)} folders at the top: torch takes that of the first member, or refuses"
        )
        found.append(torch.finding("CK005", Severity.ERROR, message))
    if not torch.top:
        message = "its members stand at the top of the archive, not in a folder as torch.load wants"
        found.append(torch.finding("CK005", Severity.WARNING, message))
    version = torch.text("version")
    if version is None:
        message = "the archive has no version member; torch.save always writes one"
        found.append(torch.finding("CK003", Severity.WARNING, message))
    elif not version.isdigit() or not 1 <= int(version) <= 10:
        message = f"archive version {version[:20]!r}: torch writes 3, and reads up to 10"
        found.append(torch.finding("CK005", Severity.WARNING, message))
    return found


class TorchArchive:
    """The parts that torch.save archives and TorchScript share.

    Parameters
    ----------
    archive
        The zip.
    path
        The file as the caller named it.
    own
        Prefix of modules that the archive itself defines; their names bring nothing in.
    """

    def __init__(self, archive: Archive, path: str, own: str | None = None) -> None:
        top = find_top(archive)
        if top is None:
            raise FormatError("expected a data.pkl in the archive, found none", where=path)
        self.archive, self.path, self.top, self.own = archive, path, top, own
        self.findings: list[Finding] = list(archive.findings)
        self.big_endian = self.text("byteorder") == "big"
        self._read: set[str] = set()
        self._persistents: list[Persistent] = []
        self._storages: dict[tuple[str, str, str | None], Storage] = {}

    def finding(self, code: str, severity: Severity, message: str, name: str = "") -> Finding:
        """Make a finding about a member."""
        where = f"{self.path}:{self.top}{name}" if name else self.path
        return container_finding(code, severity, message, where=where)

    def text(self, name: str) -> str | None:
        """Return a small text member; None without it."""
        member = self.archive.get(self.top + name)
        if member is None or member.broken or member.size > 100:
            return None
        return self.archive.read(member, 100).decode("ascii", "replace").strip()

    def unpickle(self, name: str) -> Unpickled:
        """Interpret a pickle of the archive and judge the names in it."""
        member = self.archive.get(self.top + name)
        where = f"{self.path}:{self.top}{name}"
        if member is None:
            raise FormatError("the archive has no such member", where=where)
        data = self.archive.read(member, size_limit(member.stored))
        self._read.add(member.name)
        try:
            unpickled = unpickle(data, where)
        except PickleError as error:
            error.findings = (*self.findings, *self._judged(error.seen, where))
            raise
        self.findings += self._judged(unpickled, where)
        self._persistents += unpickled.persistents
        if unpickled.end != len(data):
            rest = data[unpickled.end :]
            message = f"{len(rest)} bytes follow the end of the pickle; torch never reads them"
            self.findings.append(container_finding("CK005", Severity.WARNING, message, where=where))
            self.findings += scan_pickles(rest, where, unpickled.end)
        return unpickled

    def _judged(self, seen: Unpickled, where: str) -> tuple[Finding, ...]:
        names = seen.globals
        if self.own is not None:
            names = tuple(used for used in names if not used.module.startswith(self.own))
        return findings_about(names, seen.computed, where, seen.endless)

    def tree(self, unpickled: Unpickled, name: str, folder: str = "data", **more: Any) -> Tree:
        """Name the tensors of an unpickled object; ``folder`` holds its storages."""
        resolver = Resolver(lambda pid: self._storage(pid, folder))
        reader = TreeReader(resolver, f"{self.path}:{self.top}{name}", unpickled.end)
        return reader.read(unpickled.value, **more)

    def _storage(self, pid: Any, folder: str) -> Storage:
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            raise Refusal("its storage is not referenced as torch does it")
        _, kind, key, _, numel = pid[:5]
        if type(key) not in (str, int) or type(numel) is not int:
            raise Refusal("its storage is not referenced as torch does it")
        dtype = storage_dtype(kind)
        known = (folder, str(key)[:80], dtype)
        if known not in self._storages:
            self._storages[known] = self._open_storage(folder, str(key)[:80], dtype, numel)
        return self._storages[known]

    def _open_storage(self, folder: str, key: str, dtype: str | None, numel: int) -> Storage:
        name = f"{self.top}{folder}/{key}"
        member = self.archive.get(name)
        if member is None:
            raise Refusal(f"its storage {name!r:.120} is not in the archive", code="CK003")
        if member.broken:
            raise Refusal(f"its storage {name!r:.120} cannot be had: {member.broken}")
        if member.method == STORED:
            extent = self.archive.extent(member)
        else:
            extent = Extent(self.archive.open(member), 0, member.size)
        expected = DTYPES[dtype or "uint8"].nbytes(max(0, numel))
        if expected != extent.length and DTYPES[dtype or "uint8"].bits >= 8:
            message = f"storage {name!r:.120} should have {expected} bytes, the archive holds"
            message += f" {extent.length}"
            self.findings.append(
                self.finding("CK005", Severity.WARNING, message, f"{folder}/{key}")
            )
        return Storage(f"{folder}/{key}", dtype, extent, self.big_endian)

    def table(
        self, source: FileSource, name: str, tree: Tree, more: Iterable[Finding] = ()
    ) -> TensorTable:
        """Put the table together: everything found, and the checksums nobody looked at yet."""
        extra = [*self._surplus(), *self._other_pickles()]
        return TensorTable(
            path=self.path,
            format=name,
            infos=tree.infos,
            metadata={"framework": "torch"},
            scalars=tree.scalars,
            layers=tree.layers,
            findings=(*self.findings, *tree.findings, *more, *extra),
            checksums=self._checksums(),
            decoder=ArrayDecoder(tree.arrays) if tree.arrays else None,
            files=(source,),
        )

    def _checksums(self) -> tuple[Checksum, ...]:
        found = (self.archive.checksum(m) for m in self.archive.members if m.name not in self._read)
        return tuple(c for c in found if c is not None)

    def _surplus(self) -> Iterable[Finding]:
        """Storages that no reference of the pickle names."""
        used = {
            str(p.pid[2])[:80]
            for p in self._persistents
            if type(p.pid) is tuple and len(p.pid) > 2 and type(p.pid[2]) in (str, int)
        }
        folder = f"{self.top}data/"
        surplus = [
            m.name
            for m in self.archive.members
            if m.name.startswith(folder) and m.name[len(folder) :] not in used
        ]
        if surplus:
            message = (
                f"{len(surplus)} storages belong to no tensor, the first is {surplus[0]!r:.120}"
            )
            yield self.finding("CK003", Severity.WARNING, message)

    def _other_pickles(self) -> Iterable[Finding]:
        """Names in pickles that torch.load never looks at, but other tools might."""
        for member in self.archive.members:
            # By identity: of two members of one name, torch reads the first and others the last.
            read = member.name in self._read and self.archive.get(member.name) is member
            if read or member.broken or not _may_be_pickle(member):
                continue
            where = f"{self.path}:{member.name}"
            data = self.archive.read(member, size_limit(member.stored))
            yield from scan_pickles(data, where, 0)


def _may_be_pickle(member: Member) -> bool:
    return member.name.lower().endswith((".pkl", ".pickle", ".p", ".pk", ".joblib"))
