"""A Python number in a torch pickle, changed in its place: learning rates, loss scales, counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from ..containers.pickle import Unpickled, size_limit, unpickle
from ..containers.zip import read_archive
from ..errors import CkptDoctorError, UnsupportedError, UsageError
from ..formats.torch_legacy import class_or_storage
from ..formats.torch_stream import PickleStream
from ..formats.torch_tree import numbers_in
from ..formats.zip_kinds import find_top
from ..tensors import TensorTable
from .pickle_number_bytes import (
    FLOATS,
    HOLDING,
    INTEGERS,
    TRUTHS,
    Holder,
    alike,
    holders,
    range_of,
    rewritten,
)
from .pickle_trace import steps

__all__ = ["NumberPatch", "Scalars", "TreePickle", "number_patch", "scalars_reader", "tree_pickle"]

Scalars = Callable[[bytes], Mapping[str, float | int]]
"""Reads the numbers of a pickle by name, as `TensorTable.scalars` has them."""

ADVICE: Final = "load the checkpoint with its framework, set the number, and save it anew"
MAX_READS: Final = 200
"""Finding one of a million takes 20; more only where numbers in question are keys as well."""


MAX_OPCODE: Final = 300
"""Bytes of an opcode that holds a number: a LONG1 has 257 at most."""


class NumberPatch(NamedTuple):
    """Bytes to put over those of a pickle, as many as stand there.

    Parameters
    ----------
    offset
        In the pickle, of the opcode.
    data
        The opcode and its argument.
    changed_names
        Every number that changes by it: the one asked for, and those that are the same object.
    value
        What is read afterwards (a float32 scalar rounds).
    """

    offset: int
    data: bytes
    changed_names: tuple[str, ...]
    value: float | int


class TreePickle(NamedTuple):
    """The pickle that holds a torch checkpoint's structure.

    Parameters
    ----------
    data
        Its bytes.
    member
        Name of the archive's member that holds it, and nothing else; empty in a legacy file.
    offset
        Of its first byte in the file; -1 where the member is compressed.
    """

    data: bytes
    member: str
    offset: int


def tree_pickle(table: TensorTable) -> TreePickle:
    """Find the pickle that holds the numbers of a torch checkpoint.

    Raises
    ------
    UnsupportedError
        If the format has no such pickle.
    """
    if table.format not in _READ or len(table.files) != 1:
        message = f"numbers of a {table.format} file cannot be changed"
        raise UnsupportedError(message, where=table.path, hint=ADVICE)
    source = table.files[0]
    if table.format == "torch-legacy":
        stream = PickleStream(source)
        for _ in range(3):  # magic number, protocol version, machine
            stream.next()
        start = stream.pos
        stream.next(class_or_storage)
        return TreePickle(source.pread(start, stream.pos - start), "", start)
    archive = read_archive(source)
    top = find_top(archive)
    member = None if top is None else archive.get(f"{top}data.pkl")
    if member is None:
        raise UnsupportedError("expected a data.pkl in the archive, found none", where=table.path)
    data = archive.read(member, size_limit(member.stored))
    return TreePickle(data, member.name, -1 if member.method else member.offset)


def scalars_reader(table: TensorTable) -> Scalars:
    """Make what reads the numbers of this checkpoint's pickle, whatever is changed in it."""
    read = _READ.get(table.format, _read_zip)
    return lambda data: numbers_in(read(data, table.path))


def _read_zip(data: bytes, where: str) -> Unpickled:
    return unpickle(data, where)


def _read_legacy(data: bytes, where: str) -> Unpickled:
    return unpickle(data, where, persistent_load=class_or_storage)


_READ: Final = {"torch-zip": _read_zip, "torchscript": _read_zip, "torch-legacy": _read_legacy}


def number_patch(pickle: bytes, name: str, value: float, scalars: Scalars) -> NumberPatch:
    """Find the opcode that holds a number, and the bytes that make it hold another.

    Opcodes that hold the present value are changed by halves, and the numbers read again, until
    one is left; then it alone is changed, and nothing else may have moved.

    Parameters
    ----------
    pickle
        Bytes that ``scalars`` reads.
    name
        As ``scalars`` calls the number.
    value
        A whole number for one that is stored as such; either kind for a floating-point number.
    scalars
        Reads the numbers of a changed pickle; called about log2(opcodes of this value) + 3 times, or
        once for each of them where some are keys.

    Raises
    ------
    UsageError
        If there is no number of this name.
    UnsupportedError
        If the value does not fit the bytes that are there.

    Examples
    --------
    >>> import pickle
    >>> data = pickle.dumps({"lr": 0.1, "eps": 0.1})
    >>> patch = number_patch(data, "eps", 0.5, pickle.loads)
    >>> end = patch.offset + len(patch.data)
    >>> pickle.loads(data[: patch.offset] + patch.data + data[end:]), patch.changed_names
    ({'lr': 0.1, 'eps': 0.5}, ('eps',))
    """
    search = _Search(pickle, name, scalars)
    wanted = _checked(value, search.now, name)
    holder, changed = search.find()
    data = rewritten(holder, wanted)
    if data is None:
        room = range_of(holder)
        message = (
            f"{name!r:.200} is stored in {len(holder.raw)} bytes, which cannot hold {_shown(value)}"
        )
        hint = f"give a value from {room[0]} to {room[1]}" if room else ADVICE
        raise UnsupportedError(message, hint=hint)
    after = search.read([(holder, data)])
    if after is None or after.keys() != search.before.keys():
        raise search.lost()
    stored = after[name]
    for other in after:
        expected = stored if other in changed else search.before[other]
        if not alike(after[other], expected):
            raise search.lost()
    if isinstance(stored, int) and stored != wanted:
        raise search.lost()
    return NumberPatch(holder.start, data, changed, stored)


def _checked(value: float, now: float, name: str) -> float | int:
    """Return the value as the kind of number that is stored."""
    if isinstance(now, bool) or isinstance(value, bool):
        if isinstance(now, bool) and value in (0, 1):
            return bool(value)
        message = f"{name!r:.200} is {_shown(now)}, which {_shown(value)} cannot replace"
        raise UnsupportedError(message, hint="give a value of the same kind")
    if not isinstance(now, int):
        try:
            return float(value)
        except OverflowError:
            message = f"the value for {name!r:.200} is beyond the range of a float"
            raise UnsupportedError(message) from None
    if not isinstance(value, int):
        message = (
            f"{name!r:.200} is stored as a whole number ({_shown(now)}), found {_shown(value)}"
        )
        raise UnsupportedError(message, hint="give a value without a decimal point")
    return value


def _shown(value: float) -> str:
    if isinstance(value, int) and value.bit_length() >= 256:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.40}"


class _Search:
    """The search for one number's opcode."""

    def __init__(self, pickle: bytes, name: str, scalars: Scalars) -> None:
        self.pickle, self.name, self.scalars = pickle, name, scalars
        self.before = scalars(pickle)
        self.reads = 0
        if name not in self.before:
            last = name.rpartition(".")[2]
            like = [n for n in self.before if n.rpartition(".")[2] == last][:3]
            hint = f"it has {', '.join(f'{n!r:.100}' for n in like)}" if like else ""
            raise UsageError(f"no number {name!r:.200} in the checkpoint", hint=hint)
        self.now = self.before[name]

    def find(self) -> tuple[Holder, tuple[str, ...]]:
        """Give the opcode that holds the number, and the names of all numbers that it holds.

        Raises
        ------
        UnsupportedError
            If there is none.
        """
        found = [h for h in self._candidates() if self._other(h) is not None]
        likely = self._narrow(found, certain=True) if found else None
        # Keys that equal the number mislead the halving; then it is one after the other.
        for holder in found if likely is None else (likely, *found):
            changed = self._changed_by(holder)
            if self.name in changed:
                return holder, changed
        raise self.lost()

    def _candidates(self) -> Iterator[Holder]:
        kinds = TRUTHS if isinstance(self.now, bool) else INTEGERS
        kinds = FLOATS if isinstance(self.now, float) else kinds
        for at, code, machine in steps(self.pickle, "pickle"):
            if code in HOLDING and machine.pos - at <= MAX_OPCODE:
                raw = self.pickle[at : machine.pos]
                yield from holders(kinds, at, raw, machine.stack[-1], self.now)

    def _narrow(self, group: Sequence[Holder], *, certain: bool) -> Holder | None:
        """Find the number among these opcodes; ``certain`` where it must be one of them."""
        if len(group) == 1:
            return group[0] if certain or self._holds(group) else None
        half = len(group) // 2
        held = self._holds(group[:half])
        if held:
            return self._narrow(group[:half], certain=True)
        if held is None:
            found = self._narrow(group[:half], certain=False)
            if found is not None:
                return found
        return self._narrow(group[half:], certain=certain)

    def _holds(self, group: Sequence[Holder]) -> bool | None:
        """Whether changing all of these changes the number; None where its name is gone then."""
        after = self.read([(holder, self._other(holder) or b"") for holder in group])
        if after is None or self.name not in after:
            return None
        return not alike(after[self.name], self.now)

    def _changed_by(self, holder: Holder) -> tuple[str, ...]:
        """Names of all numbers that change when this opcode does; none where names change."""
        after = self.read([(holder, self._other(holder) or b"")])
        if after is None or after.keys() != self.before.keys():
            return ()
        return tuple(n for n in self.before if not alike(self.before[n], after[n]))

    def _other(self, holder: Holder) -> bytes | None:
        """Bytes by which an opcode holds some other number; None where there are none."""
        now = holder.value
        if isinstance(now, bool):
            return rewritten(holder, not now)
        if not isinstance(now, int):
            others: tuple[float | int, ...] = (1.5, 2.5, 1e-05, 0.125, 10.25)
            others += (float("inf"), -1.5, 0.5, 12345.5)
        else:
            others = (now ^ 1, now + 1, now - 1)
        made = (rewritten(holder, other) for other in others if not alike(other, now))
        return next((data for data in made if data is not None), None)

    def read(self, changes: Sequence[tuple[Holder, bytes]]) -> Mapping[str, float | int] | None:
        """Read the numbers of the pickle with other bytes in it; None if it cannot be read so."""
        self.reads += 1
        if self.reads > MAX_READS:
            raise self.lost()
        data = bytearray(self.pickle)
        for holder, new in changes:
            data[holder.start : holder.start + len(new)] = new
        try:
            return self.scalars(bytes(data))
        except CkptDoctorError:
            return None

    def lost(self) -> UnsupportedError:
        """Make the refusal to change a number that cannot be told from the rest of the pickle."""
        message = f"{self.name!r:.200} cannot be changed in place: no bytes hold it alone"
        return UnsupportedError(message, hint=ADVICE)
