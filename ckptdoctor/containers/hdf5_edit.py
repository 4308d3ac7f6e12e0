"""Changes to an HDF5 file that have to go through HDF5's own library: the parent's side.

Contiguous data is patched by its offset and needs none of this.  Everything here works on a draft,
a copy that nobody else sees yet, in a process that may touch nothing else; a draft that an error
left behind is of no use and has to be thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CkptDoctorError, FormatError, UnsupportedError, UsageError, WriteError
from ..sources import FileSource
from .hdf5 import read_hdf5
from .hdf5_check import ADVICE, MAX_RATIO
from .hdf5_edit_files import copy_tail, end_of_data, kept_tail, opened_file
from .hdf5_edit_process import File, Lost, Payload, run
from .json_number import with_number

if TYPE_CHECKING:
    from ..tensors import Array

    Values = Array | Callable[[], Array]
    Edits = Mapping[tuple[str, ...], Sequence[tuple[Array | None, Values]]]

__all__ = ["overwrite", "remove", "set_attribute", "set_number"]

PIECE = 1 << 18
"""Elements sent at a time; `hdf5_edit_values` reads as many."""
SLACK = 1 << 28
"""Bytes that a file may grow beyond twice what there is: two chunks, the largest that are read."""
_TRUST = "if you trust the file, repair it with --trust-hdf5"


def overwrite(draft: Path, edits: Edits, *, trust: bool = False) -> None:
    """Set elements of datasets that are chunked, compressed, checksummed or compact.

    Parameters
    ----------
    draft
        A complete HDF5 file, changed in place.
    edits
        By the path of a dataset, one after the other: flat indices in row-major order,
        ascending (None for every element), and as many new values in the tensor's own dtype,
        or what makes them.

    Raises
    ------
    UnsupportedError
        If a filter of the dataset loses information or cannot be run, or the values do not fit
        the dataset.
    FormatError
        If HDF5 cannot read the draft, or there is no such dataset.
    WriteError
        If the file system takes no more, or the process was ended.
    """
    listed, payload = [], []
    size, unknown = 0, False
    for path, changes in edits.items():
        for indices, values in changes:
            if callable(values):
                unknown = True
            else:
                size += values.nbytes
            listed.append({"path": [*path], "sparse": indices is not None})
            payload.append(_Part(f"{draft}:{'/'.join(path)[:200]}", indices, values))
    with opened_file(draft) as file, kept_tail(file):
        limit = 2 * (file.size + size) + SLACK + (MAX_RATIO * file.size if unknown else 0)
        _run("overwrite", [file], {"edits": listed}, payload, limit=limit, trust=trust)


class _Part:
    """What is sent for one edit: width and number of the values, then both in pieces."""

    def __init__(self, where: str, indices: Array | None, values: Values) -> None:
        self.where, self.indices, self.values = where, indices, values

    def __call__(self) -> Iterator[bytes]:
        import numpy as np  # noqa: PLC0415

        made = np.asarray(self.values() if callable(self.values) else self.values).reshape(-1)
        made = np.ascontiguousarray(made.astype(made.dtype.newbyteorder("="), copy=False))
        indices = self.indices
        if indices is not None and len(indices) != len(made):
            message = f"expected {len(indices)} new values, found {len(made)}"
            raise UsageError(message, where=self.where)
        yield made.itemsize.to_bytes(8, "little") + len(made).to_bytes(8, "little")
        for first in range(0, len(made), PIECE):
            if indices is not None:
                yield np.asarray(indices[first : first + PIECE], "<i8").tobytes()
            yield made[first : first + PIECE].tobytes()


def remove(draft: Path, output: Path, groups: Sequence[str], *, trust: bool = False) -> None:
    """Write everything but some groups to a new file.

    Attributes, properties, filters, the order of things and links stay, two names of one dataset
    stay one dataset, and bytes before and behind the HDF5 data are copied.

    Parameters
    ----------
    draft
        A complete HDF5 file; it is only read.
    output
        Is overwritten.
    groups
        Paths of what is left out: ``optimizer_weights``.

    Raises
    ------
    UnsupportedError
        If something refers to other objects in a way that cannot be kept.
    FormatError, WriteError
        As for `overwrite`.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with (
        opened_file(draft, os.O_RDONLY) as source,
        opened_file(output, flags, empty=True) as target,
    ):
        end_of_data(source.path)
        limit = 2 * source.size + SLACK
        _run("remove", [source, target], {"without": [*groups]}, limit=limit, trust=trust)
        copy_tail(source, target.fd, target.path)


def set_attribute(draft: Path, group: str, name: str, text: str, *, trust: bool = False) -> None:
    """Replace the text of a string attribute, and keep the way it is stored.

    Parameters
    ----------
    group
        Path of the object that has it; empty for the root.

    Raises
    ------
    UnsupportedError
        If it is no single string, or holds bytes that are no text.
    FormatError, WriteError
        As for `overwrite`.
    """
    data = text.encode()
    job = {"path": group.split("/") if group else [], "name": name}
    with opened_file(draft) as file, kept_tail(file):
        limit = 2 * (file.size + len(data)) + SLACK
        part = [len(data).to_bytes(8, "little") + data]
        _run("set_attribute", [file], job, [lambda: part], limit=limit, trust=trust)


def set_number(draft: Path, name: str, value: float, *, trust: bool = False) -> None:
    """Replace a number of the configuration in the file's root attributes.

    Parameters
    ----------
    name
        As the table's ``scalars`` have it: ``training_config/optimizer_config/config/lr``.

    Raises
    ------
    UsageError
        If there is no such number.
    UnsupportedError, FormatError, WriteError
        As for `set_attribute`.
    """
    attribute, _, path = name.partition("/")
    source = FileSource(draft)
    try:
        contents = read_hdf5(source, trust=trust)
    finally:
        source.close()
    if contents.decoder is not None:
        contents.decoder.close()
    text = contents.attributes.get("", {}).get(attribute)
    if not isinstance(text, str):
        raise UsageError(f"no configuration {attribute[:200]!r}", where=str(draft))
    set_attribute(draft, "", attribute, with_number(text, path, value), trust=trust)


# --- the process, and what it says ---------------------------------------------------------------


def _run(
    verb: str,
    files: Sequence[File],
    job: Mapping[str, Any],
    payload: Payload = (),
    *,
    limit: int,
    trust: bool,
) -> None:
    where, target = files[0].path, files[-1].path
    try:
        answer = run(verb, files, job, payload, limit=limit, trust=trust)
    except Lost as error:
        message = f"the HDF5 writer process {error}; nothing was changed"
        raise WriteError(message, where=target, hint=_TRUST) from None
    if "error" in answer:
        raise _error(answer, target if answer.get("kind") == "write" else where)


def _error(answer: Mapping[str, Any], where: str) -> CkptDoctorError:
    reason = str(answer["error"])[:300]
    kind = answer.get("kind")
    if kind == "write":
        message = f"cannot be written: {reason}; nothing was changed"
        return WriteError(
            message, where=where, hint="free some space, or name another place with -o"
        )
    if kind == "unsupported":
        return UnsupportedError(reason, where=where)
    if kind == "missing":
        return FormatError(reason, where=where)
    return FormatError(f"HDF5 cannot change it: {reason}", where=where, hint=ADVICE)
