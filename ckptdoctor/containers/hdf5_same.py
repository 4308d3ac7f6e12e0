"""Whether two HDF5 files hold the same, whatever their bytes: the proof behind an edit.

Both are read in one guarded process, side by side: objects, links, attributes, types, properties,
and every element bit by bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FormatError, UnsupportedError
from ..sources import ByteSource, FileSource
from .hdf5_check import ADVICE, ground
from .hdf5_edit_process import File, Lost, run

if TYPE_CHECKING:
    from ..tensors import Array

    Edited = Mapping[tuple[str, ...], Array | None]

__all__ = ["same"]

_PIECE = 1 << 18


def same(
    one: ByteSource | Path,
    other: Path,
    edited: Edited,
    without: Sequence[str] = (),
    *,
    attributes: Collection[tuple[str, str]] = (),
    trust: bool = False,
) -> tuple[str, int]:
    """Compare two HDF5 files.

    Parameters
    ----------
    one, other
        The input, and what was made of it.
    edited
        Elements that may differ, by the path of their dataset: flat indices, ascending; None for
        all of them.
    without
        Paths of groups of ``one`` that must be gone in ``other``.
    attributes
        Those whose value may differ: path of the object, and name.

    Returns
    -------
    difference
        The first one found, in words; empty where there is none.
    datasets
        How many were compared before.

    Raises
    ------
    FormatError
        If HDF5 cannot read one of them, or the process died of it.
    UnsupportedError
        If something in them cannot be compared.
    """
    made = [FileSource(each) if isinstance(each, Path) else each for each in (one, other)]
    try:
        return _compare(made, edited, without, attributes, trust=trust)
    finally:
        for given, source in zip((one, other), made, strict=True):
            if isinstance(given, Path) and isinstance(source, FileSource):
                source.close()


def _compare(
    sources: Sequence[ByteSource],
    edited: Edited,
    without: Sequence[str],
    attributes: Collection[tuple[str, str]],
    *,
    trust: bool,
) -> tuple[str, int]:
    files = []
    for source in sources:
        file, base = ground(source)
        files.append(File(file.fd, file.name, base, source.size))
    listed, payload, room = [], [], 0
    for path, indices in edited.items():
        count = -1 if indices is None else len(indices)
        listed.append({"path": [*path], "count": count})
        if indices is not None:
            payload.append(_Part(indices))
            room += 8 * count
    job = {"edited": listed, "without": [*without], "attributes": [[*a] for a in attributes]}
    where = sources[-1].name
    try:
        answer = run("compare", files, job, payload, room=room, trust=trust)
    except Lost as error:
        message = f"the HDF5 process that compares {error}"
        raise FormatError(message, where=where, hint=ADVICE) from None
    done = answer.get("done")
    if "error" in answer or not isinstance(done, dict):
        reason = str(answer.get("error"))[:300]
        if answer.get("kind") == "unsupported":
            raise UnsupportedError(f"cannot be compared: {reason}", where=where)
        raise FormatError(f"HDF5 cannot read it: {reason}", where=where, hint=ADVICE)
    return str(done.get("difference", "?"))[:1000], int(done.get("datasets", 0))


class _Part:
    """Indices in pieces."""

    def __init__(self, indices: Array) -> None:
        self.indices = indices

    def __call__(self) -> Iterator[bytes]:
        for first in range(0, len(self.indices), _PIECE):
            yield self.indices[first : first + _PIECE].astype("<i8").tobytes()
