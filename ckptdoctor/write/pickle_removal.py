"""Keys cut out of a pickled dictionary; not a byte of what stays is pickled anew."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from ..containers.pickle import Call, PDict, Persistent, unpickle
from ..errors import InternalError, UnsupportedError, UsageError
from ..formats.torch_values import is_plain_dict
from .pickle_same import same_without
from .pickle_trace import FRAME, GETS, MEMOIZE, Memo, Trace, trace

__all__ = ["Shortened", "outermost_keys", "without_keys"]

ADVICE: Final = "load it with its framework, delete the key, and save it anew"
SHOWN: Final = 8


class Shortened(NamedTuple):
    """A pickle without some of its keys.

    Parameters
    ----------
    data
        The pickle; what followed its end still follows.
    released
        Keys of the storages (``pid[2]``) that it referred to and no longer does, in order.
    """

    data: bytes
    released: tuple[str, ...]


def outermost_keys(pickle: bytes, where: str = "pickle") -> tuple[str, ...]:
    """Text keys of the dictionary that a pickle holds; none where it holds something else.

    Raises
    ------
    FormatError
        If the bytes are no pickle.

    Examples
    --------
    >>> import pickle
    >>> outermost_keys(pickle.dumps({"model": {}, 7: 1, "epoch": 3}))
    ('model', 'epoch')
    """
    return tuple(key for key, _ in _pairs(unpickle(pickle, where).value) if type(key) is str)


def without_keys(pickle: bytes, keys: Sequence[str], where: str = "pickle") -> Shortened:
    """Cut keys and their values out of the outermost dictionary of a pickle.

    The bytes of everything else stay as they are, with three exceptions: a value that was first
    spelled out in what goes is spelled out where it is next needed; the indices of protocol 4's
    memo count anew; frames are as long as what is left in them.  The result is read again and
    compared with the original, shared objects included.

    Parameters
    ----------
    pickle
        Protocol 0 to 5.
    keys
        What to remove; each must be there.
    where
        Name of the file or member for messages.

    Raises
    ------
    UsageError
        If a key is not there.
    UnsupportedError
        If the pickle is written in a way that cannot be cut safely.
    FormatError
        If the bytes are no pickle.

    Examples
    --------
    >>> import pickle
    >>> cut = without_keys(pickle.dumps({"a": "x" * 9, "optimizer": [1], "b": 2}), ["optimizer"])
    >>> pickle.loads(cut.data)
    {'a': 'xxxxxxxxx', 'b': 2}
    """
    before = unpickle(pickle, where)
    missing = [key for key in keys if key not in {held for held, _ in _texts(before.value)}]
    if missing:
        shown = ", ".join(f"{held!r:.60}" for held, _ in _texts(before.value)[:SHOWN])
        message = (
            f"no key {missing[0]!r:.200} in the outermost dictionary; it has {shown or 'none'}"
        )
        raise UsageError(message, where=where)
    traced = trace(pickle, where)
    cuts = _cuts(traced, before.value, frozenset(keys), where)
    data = _Surgery(pickle, traced, cuts, where).run() + pickle[traced.stop :]
    after = unpickle(data, where)
    if not same_without(before.value, after.value, frozenset(keys)):
        raise InternalError("cutting keys changed what stays; nothing is written", where=where)
    kept = set(_storage_keys(after.persistents))
    released = dict.fromkeys(key for key in _storage_keys(before.persistents) if key not in kept)
    return Shortened(data, tuple(released))


def _pairs(root: Any) -> Sequence[tuple[Any, Any]]:
    if type(root) is PDict or (type(root) is Call and is_plain_dict(root)):
        return root.pairs
    return ()


def _texts(root: Any) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in _pairs(root) if type(key) is str]


def _storage_keys(references: Sequence[Persistent]) -> list[str]:
    pids = (reference.pid for reference in references)
    return [
        str(pid[2])
        for pid in pids
        if type(pid) is tuple
        and len(pid) > 2
        and pid[0] == "storage"
        and type(pid[2]) in (str, int)
    ]


def _cuts(traced: Trace, root: Any, keys: Collection[str], where: str) -> list[tuple[int, int]]:
    """Find the runs of bytes to leave out, ascending."""
    if sum(len(batch.pairs) for batch in traced.batches) != len(_pairs(root)):
        raise _refused("its outermost dictionary is not written as torch does", where)
    cuts: list[tuple[int, int]] = []
    for batch in traced.batches:
        gone = [type(key) is str and key in keys for key, _, _ in batch.pairs]
        if batch.whole and gone and all(gone):
            cuts.append((batch.start, batch.stop))
            continue
        cuts += [pair[1:] for pair, goes in zip(batch.pairs, gone, strict=True) if goes]
    return cuts


def _refused(reason: str, where: str) -> UnsupportedError:
    return UnsupportedError(f"the key cannot be cut out: {reason}", where=where, hint=ADVICE)


class _Surgery:
    """One copy of a pickle without its cuts.

    What is copied is interrupted at points: memo opcodes, frames, DUP, and where a value starts
    that stands in a cut and has a slot in the memo.
    """

    def __init__(
        self, pickle: bytes, traced: Trace, cuts: Sequence[tuple[int, int]], where: str
    ) -> None:
        self.pickle, self.traced, self.cuts, self.where = pickle, traced, cuts, where
        self.out = bytearray()
        self.memos = {memo.start: memo for memo in traced.memos}
        self.defined: dict[int, Memo] = {}
        self.starts: dict[int, list[Memo]] = {}
        self.frames = dict(traced.frames)
        self.copies = set(traced.copies)
        self.numbers: dict[int, int] = {}
        """Slot in the memo -> the one it has in the copy; only what was copied already."""
        self.begun: set[int] = set()
        self.frame = self.frame_end = -1
        self.counted = any(memo.code == MEMOIZE for memo in traced.memos)
        for memo in traced.memos:
            if memo.code not in GETS:
                self._define(memo)
        self.points = sorted(
            {*self.memos, *self.starts, *self.frames, *self.frames.values(), *self.copies}
        )

    def _define(self, memo: Memo) -> None:
        if memo.slot in self.defined or (self.counted and memo.code != MEMOIZE):
            raise self._no("its memo is written in an unusual way")
        self.defined[memo.slot] = memo
        if self._cut_at(memo.start) is not None:
            self.starts.setdefault(memo.span.start, []).append(memo)

    def _cut_at(self, at: int) -> tuple[int, int] | None:
        i = bisect_right(self.cuts, (at, len(self.pickle))) - 1
        return self.cuts[i] if i >= 0 and at < self.cuts[i][1] else None

    def _no(self, reason: str) -> UnsupportedError:
        return _refused(reason, self.where)

    def run(self) -> bytes:
        if any(self._cut_at(at) for at in self.traced.mutations):
            raise self._no("it changes objects that stand outside of it")
        at = 0
        for start, stop in self.cuts:
            self._copy(at, start)
            at = stop
        self._copy(at, self.traced.stop)
        self._close_frame()
        return bytes(self.out)

    def _copy(self, at: int, stop: int) -> None:
        """Copy what stays; a stack of its own, because what is moved can need more moved."""
        todo = [(at, stop, False)]
        while todo:
            at, stop, moved = todo.pop()
            while at < stop:
                if not moved and at >= self.frame_end:
                    self._close_frame()
                known = self._known(at, stop) if moved else None
                if known is not None:
                    self._get(known.slot, ord("h"))
                    at = known.span.stop
                    continue
                memo = self.memos.get(at)
                if memo is not None and memo.code in GETS and memo.slot not in self.numbers:
                    span = self._movable(memo.slot)
                    todo += [(memo.stop, stop, moved), (*span, True)]
                    break
                at = self._step(at, stop, memo, moved)

    def _step(self, at: int, stop: int, memo: Memo | None, moved: bool) -> int:
        """Copy up to the next point; gives where that is."""
        if memo is not None:
            if memo.code in GETS:
                self._get(memo.slot, memo.code, self.pickle[at : memo.stop])
            else:
                if memo.slot in self.numbers:  # a tuple that holds itself
                    raise self._no("what it shares with the rest holds itself")
                self.numbers[memo.slot] = len(self.numbers) if self.counted else memo.slot
                self.out += self.pickle[at : memo.stop]
            return memo.stop
        if at in self.frames:
            if not moved:
                self.frame, self.frame_end = len(self.out), self.frames[at]
                self.out += self.pickle[at : at + 9]
            return at + 9
        if moved and at in self.copies:
            raise self._no("what it shares with the rest is spelled in an unusual way")
        i = bisect_right(self.points, at)
        end = min(stop, self.points[i]) if i < len(self.points) else stop
        self.out += self.pickle[at:end]
        return end

    def _known(self, at: int, stop: int) -> Memo | None:
        """Longest value that starts here and was copied already: the other mentions it."""
        found = [
            memo
            for memo in self.starts.get(at, ())
            if memo.slot in self.numbers and memo.span.stop <= stop
        ]
        return max(found, key=lambda memo: memo.span.stop) if found else None

    def _movable(self, slot: int) -> tuple[int, int]:
        """Bytes that spell a value which went with a cut and is needed behind it."""
        if slot in self.begun:  # so that this ends, whatever the bytes are
            raise self._no("what it shares with the rest cannot be moved there")
        self.begun.add(slot)
        span = self.defined[slot].span
        return span.start, span.stop

    def _get(self, slot: int, code: int, raw: bytes = b"") -> None:
        number = self.numbers[slot]
        if raw and number == slot:
            self.out += raw
        elif code == ord("h") and number < 256:
            self.out += b"h" + bytes([number])
        else:
            self.out += b"j" + struct.pack("<I", number)

    def _close_frame(self) -> None:
        if self.frame >= 0:
            assert self.out[self.frame] == FRAME
            struct.pack_into("<Q", self.out, self.frame + 1, len(self.out) - self.frame - 9)
        self.frame = self.frame_end = -1
