"""What every checkpoint format implements, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..sources import FileSource
from ..tensors import TensorTable

__all__ = ["Adapter", "ReadOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a caller may choose about reading.

    Parameters
    ----------
    trust_hdf5
        Run HDF5's C library in this process instead of a limited child.
    """

    trust_hdf5: bool = False


class Adapter(Protocol):
    """One on-disk format.  Adapters know bytes; they know nothing of rules or repairs.

    An adapter is a module-level function pair wrapped in a small class without state.
    """

    name: str
    """What reports call the format, in kebab case; one adapter may yield several names."""
    spec: str
    """Where the format is defined."""
    summary: str
    """One line for ``ckptdoctor formats``: which files, written by what."""

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
