"""What every checkpoint format implements, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..sources import FileSource
from ..tensors import TensorTable

if TYPE_CHECKING:
    from ..containers.zip import Archive

__all__ = ["Adapter", "ArchiveAdapter", "Described", "ReadOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a caller may choose about reading.

    Parameters
    ----------
    trust_hdf5
        Run HDF5's C library in this process instead of a limited child.
    """

    trust_hdf5: bool = False


class Described(Protocol):
    """One on-disk format.  Adapters know bytes; they know nothing of rules or repairs.

    An adapter is a small class without state.  One whose tables have other names too lists them,
    each with a line of its own, in ``names: Mapping[str, str]``.
    """

    name: str
    """What reports call the format, in kebab case."""
    spec: str
    """Where the format is defined."""
    summary: str
    """One line for ``ckptdoctor formats``: which files, written by what."""


class Adapter(Described, Protocol):
    """A format that is told from the file's bytes."""

    def sniff(self, head: bytes, source: FileSource) -> bool:
        """Tell from the content (first 4096 bytes, more if it must) whether the file is this."""

    def read(self, source: FileSource, options: ReadOptions) -> TensorTable:
        """Read and check the structure, not the values.

        Raises
        ------
        FormatError
            If the bytes break the format.  Nothing of the file is executed, and nothing is
            allocated that the file's own size does not justify.
        """


class ArchiveAdapter(Described, Protocol):
    """A format inside a zip archive, told from its members: `ckptdoctor.formats.zip_kinds`."""

    def read_archive(
        self, archive: Archive, source: FileSource, options: ReadOptions
    ) -> TensorTable:
        """Read a zip whose directory is parsed already; raises as `Adapter.read`."""
