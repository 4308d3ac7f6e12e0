"""Changes that move bytes: compressed data, numbers of a stored configuration, parts that go.

The file is written anew from a draft in which everything that has a place of its own is changed
already; then both are compared, tensor by tensor and member by member.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ..containers.hdf5_edit import overwrite, remove, set_number
from ..containers.hdf5_same import same
from ..containers.inflate import InflatingSource
from ..containers.json_number import with_number
from ..containers.zip import Archive, Member, read_archive
from ..edits import Change, Edit, NumberEdit, Removal, RepairPlan
from ..errors import CkptDoctorError, UnsupportedError, UsageError, WriteError
from ..formats.base import ReadOptions
from ..sources import ByteSource, FileSource, WindowSource
from ..tensors import Array, TensorTable
from .draft import Draft
from .legacy_rewrite import rewrite_legacy
from .numbers import number_windows, stands_in_pickle
from .pickle_numbers import tree_pickle
from .pickle_removal import without_keys
from .windows import in_place, windows_of_all
from .zip_rewrite import Content, rewrite

__all__ = ["Moving", "moving", "restructure", "unwritable"]

_BLOCK = 1 << 20
_H5, _KERAS, _NPZ = ("keras-h5", "keras-weights-h5", "hdf5"), "keras-zip", "npz"
_TORCH = ("torch-zip", "torchscript")
_CONFIG, _WEIGHTS = "config.json", ("model.weights.h5", "model.weights.npz")


class Moving:
    """What of a plan moves bytes.

    Parameters
    ----------
    table
        The checkpoint.
    plan
        All changes.
    """

    def __init__(self, table: TensorTable, plan: RepairPlan) -> None:
        self.edits = tuple(e for e in plan.edits if in_place(table[e.tensor]) is None)
        numbers = tuple(c for c in plan.changes if isinstance(c, NumberEdit))
        self.numbers = numbers if numbers and not stands_in_pickle(table) else ()
        self.gone = tuple(name for c in plan.changes if isinstance(c, Removal) for name in c.names)

    def __bool__(self) -> bool:
        return bool(self.edits or self.numbers or self.gone)

    @property
    def why(self) -> str:
        """Why bytes move, in words."""
        reasons = []
        if self.edits:
            reasons.append("data that is compressed, chunked or compact was encoded anew")
        if self.numbers:
            reasons.append("the stored configuration was written anew")
        if self.gone:
            reasons.append(f"{', '.join(self.gone)[:200]} was left out")
        return "; ".join(reasons)


def moving(table: TensorTable, plan: RepairPlan) -> Moving:
    """Tell what of a plan moves bytes; false where nothing does."""
    return Moving(table, plan)


def unwritable(table: TensorTable, change: Change) -> str:
    """Reason why a change cannot be written to this file; empty where it can."""
    sharded = table.format.endswith("-sharded")
    if isinstance(change, Edit):
        if sharded and in_place(table[change.tensor]) is None:
            return "its values are compressed, in a set of shards: repair the shard by itself"
        return ""
    if sharded:
        return "that cannot be written to a set of shards: repair the shard by itself"
    if isinstance(change, NumberEdit):
        return _unwritable_number(table, change)
    if isinstance(change, Removal) and table.format not in (*_H5, *_TORCH, "torch-legacy", _KERAS):
        return f"parts of {table.format} files cannot be left out"
    return ""


def _unwritable_number(table: TensorTable, change: NumberEdit) -> str:
    if table.format in (*_H5, _KERAS):
        return ""
    try:
        number_windows(table, [change])
    except (UnsupportedError, UsageError) as error:
        return "; ".join(filter(None, (error.message, error.hint)))
    return "" if stands_in_pickle(table) else "the numbers of this file are compressed"


def restructure(table: TensorTable, parts: Moving, target: Path, options: ReadOptions) -> None:
    """Write a checkpoint anew with its moving changes.

    Parameters
    ----------
    table
        Open, with every change that moves nothing made already.
    parts
        What is left to do.
    target
        An empty file beside the output.

    Raises
    ------
    UnsupportedError
        If the format knows no such change.
    WriteError
        If the disk takes no more, or the result holds anything else.
    """
    if table.format in _H5:
        _hdf5(table.files[0], target, parts, table, options)
    elif table.format == "torch-legacy" and parts.gone and not (parts.edits or parts.numbers):
        _legacy(table, parts, target)
    elif table.format in ("torch-zip", "torchscript", _NPZ, _KERAS):
        _archive(table, parts, target, options)
    else:
        message = f"{parts.why}: that cannot be written to {table.format} files"
        hint = "load it with its framework, and save it anew"
        raise UnsupportedError(message, where=table.path, hint=hint)


# --- HDF5 ---------------------------------------------------------------------------------------


def _hdf5(
    source: FileSource, target: Path, parts: Moving, table: TensorTable, options: ReadOptions
) -> None:
    """One HDF5 file: a copy without what goes, then changed by HDF5's library."""
    trust = options.trust_hdf5
    if parts.gone:
        remove(Path(source.name), target, parts.gone, trust=trust)
    else:
        _copy_out(source, target)
    paths: dict[tuple[str, ...], list[Edit]] = {}
    for edit in parts.edits:
        paths.setdefault(table[edit.tensor].path, []).append(edit)
    if paths:
        values = {p: [(e.indices, e.values) for e in edits] for p, edits in paths.items()}
        overwrite(target, values, trust=trust)
    for number in parts.numbers:
        set_number(target, number.name, number.value, trust=trust)
    edited = {p: _indices(edits) for p, edits in paths.items()}
    configured = [("", n.name.partition("/")[0]) for n in parts.numbers]
    difference, _ = same(source, target, edited, parts.gone, attributes=configured, trust=trust)
    if difference:
        raise _differs(table, difference)


def _indices(edits: Sequence[Edit]) -> Array | None:
    indices = [edit.indices for edit in edits if edit.indices is not None]
    return np.unique(np.concatenate(indices)) if len(indices) == len(edits) else None


# --- archives -----------------------------------------------------------------------------------


def _archive(table: TensorTable, parts: Moving, target: Path, options: ReadOptions) -> None:
    """Write a zip archive with other data in the members that change."""
    archive = read_archive(table.files[0])
    with _contents(table, archive, parts, options, target) as (replace, drop):
        with target.open("wb") as file:
            rewrite(archive, file, replace=replace, drop=drop)
        again = FileSource(target)
        try:
            _check_members(table, archive, read_archive(again), replace, drop)
        except WriteError:
            raise
        except CkptDoctorError as error:  # what this wrote cannot be read
            raise _differs(table, error.message) from None
        finally:
            again.close()


@contextmanager
def _contents(
    table: TensorTable, archive: Archive, parts: Moving, options: ReadOptions, target: Path
) -> Iterator[tuple[dict[str, Content], tuple[str, ...]]]:
    """Give new data of members, and the members that go."""
    if table.format == _KERAS:
        with _keras_contents(table, archive, parts, options, target) as inside:
            yield inside, ()
        return
    replace: dict[str, Content] = {}
    drop: tuple[str, ...] = ()
    if parts.numbers:
        message = "its numbers are compressed, which leaves no bytes of theirs to be changed"
        hint = "load it with its framework, set the number, and save it anew"
        raise UnsupportedError(message, where=table.path, hint=hint)
    if parts.gone:
        tree = tree_pickle(table)
        shortened = without_keys(tree.data, parts.gone, table.path)
        replace[tree.member] = shortened.data
        top = tree.member.removesuffix("data.pkl")
        names = (f"{top}data/{key}" for key in shortened.released)
        drop = tuple(name for name in names if archive.get(name) is not None)
    for member, edits in _by_member(table, archive, parts.edits).items():
        replace[member.name] = _overlaid(table, archive, member, edits)
    yield replace, drop


def _by_member(
    table: TensorTable, archive: Archive, edits: Sequence[Edit]
) -> dict[Member, list[Edit]]:
    """Edits by the deflated member that holds their tensor."""
    places = {member.offset: member for member in archive.members}
    found: dict[Member, list[Edit]] = {}
    for edit in edits:
        extent = table[edit.tensor].extent
        source = extent.source if extent is not None else None
        member = places.get(source.offset) if isinstance(source, InflatingSource) else None
        if member is None:
            message = f"the values of {edit.tensor!r:.200} have no bytes of their own"
            raise UnsupportedError(message, where=table.path)
        found.setdefault(member, []).append(edit)
    return found


def _overlaid(
    table: TensorTable, archive: Archive, member: Member, edits: Sequence[Edit]
) -> Callable[[], Iterator[bytes]]:
    """Give the data of a deflated member with the edits in it, in blocks."""

    def blocks() -> Iterator[bytes]:
        source, at = archive.open(member), 0
        pairs = [(table[edit.tensor], edit) for edit in edits]
        for window in windows_of_all(pairs, ground=_itself):
            yield from _run(source, at, window.offset)
            yield window.new
            at = window.offset + len(window.new)
        yield from _run(source, at, source.size)

    return blocks


def _itself(source: ByteSource, offset: int) -> tuple[ByteSource, int]:
    return source, offset


def _run(source: ByteSource, start: int, stop: int) -> Iterator[bytes]:
    for at in range(start, stop, _BLOCK):
        yield source.pread(at, min(_BLOCK, stop - at))


@contextmanager
def _keras_contents(
    table: TensorTable, archive: Archive, parts: Moving, options: ReadOptions, target: Path
) -> Iterator[dict[str, Content]]:
    replace: dict[str, Content] = {}
    if parts.numbers:
        member = archive.last(_CONFIG)
        if member is None:
            raise UnsupportedError(f"no member {_CONFIG}", where=table.path)
        data = archive.read(member, 1 << 26)
        spelling = json.detect_encoding(data), "surrogatepass"  # as `json.loads` takes it
        text = data.decode(*spelling)
        for number in parts.numbers:
            text = with_number(text, number.name, number.value)
        replace[_CONFIG] = text.encode(*spelling)
    inner = next((m for n in _WEIGHTS if (m := archive.last(n)) is not None), None)
    if inner is None or not (parts.edits or parts.gone):
        yield replace
        return
    if inner.name != _WEIGHTS[0]:
        raise UnsupportedError("its npz weights are compressed", where=table.path)
    output = _output_of(target)
    with Draft(output) as before, Draft(output) as after:
        source, at = archive.open(inner), 0
        for block in _run(source, 0, source.size):
            before.write(at, block)
            at += len(block)
        inside = _Inner(parts)
        _with_source(before.path, lambda file: _hdf5(file, after.path, inside, table, options))
        replace[inner.name] = lambda: _file_blocks(after.path)
        yield replace


def _output_of(draft: Path) -> Path:
    """Name of the output, from that of its draft: leftovers of a killed process go by it."""
    return draft.with_name(draft.name[1:].rsplit(".", 2)[0])


class _Inner(Moving):
    """The part of a `.keras` file's changes that concerns its weights."""

    def __init__(self, parts: Moving) -> None:
        self.edits, self.numbers, self.gone = parts.edits, (), parts.gone


def _with_source(path: Path, call: Callable[[FileSource], None]) -> None:
    file = FileSource(path)
    try:
        call(file)
    finally:
        file.close()


def _file_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _check_members(
    table: TensorTable,
    before: Archive,
    after: Archive,
    replace: Mapping[str, Content],
    gone: Sequence[str],
) -> None:
    """Compare the data of all members with the input, or with what was to take its place."""
    kept = [member for member in before.members if member.name not in gone]
    if [member.name for member in kept] != [member.name for member in after.members]:
        raise _differs(table, "members are not those of the input")
    for one, other in zip(kept, after.members, strict=True):
        content = replace.get(one.name)
        if content is not None:
            same = _holds(after.open(other), content)
        else:  # deflated data was copied as it is
            raw = WindowSource(one.name, after.source, other.offset, other.stored)
            held = partial(_run, before.source, one.offset, one.offset + one.stored)
            same = _data_of(one) == _data_of(other) and _holds(raw, held)
        if not same:
            raise _differs(table, f"member {one.name!r:.200}")


def _data_of(member: Member) -> tuple[object, ...]:
    return member.stored, member.size, member.method, member.crc32


def _holds(source: ByteSource, content: Content) -> bool:
    """Whether a source holds some data, and nothing behind it; an error where it is shorter."""
    at = 0
    for block in content() if callable(content) else (content,):
        if source.pread(at, len(block)) != block:
            return False
        at += len(block)
    return at == source.size


def _legacy(table: TensorTable, parts: Moving, target: Path) -> None:
    tree = tree_pickle(table)
    shortened = without_keys(tree.data, parts.gone, table.path)
    with target.open("wb") as file:
        rewrite_legacy(table.files[0], file, tree=shortened.data, drop=shortened.released)


def _copy_out(source: FileSource, target: Path) -> None:
    with target.open("r+b") as file:
        for block in _run(source, 0, source.size):
            file.write(block)


def _differs(table: TensorTable, difference: str) -> WriteError:
    message = f"what was written anew is not the same: {difference}; nothing was changed"
    return WriteError(message, where=table.path)
