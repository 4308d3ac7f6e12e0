"""Which bytes of a pickle make which value: the machine run once more, with a ruler beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..containers.pickle import unpickle
from ..containers.pickle_machine import DISPATCH, Machine, Stop

__all__ = ["FRAME", "GETS", "MEMOIZE", "PUTS", "Batch", "Memo", "Span", "Trace", "steps", "trace"]

PUTS: Final = b"qrp"
GETS: Final = b"hjg"
MEMOIZE: Final = 0x94
FRAME: Final = 0x95
_DUP: Final = ord("2")
_MUTATORS: Final = frozenset(b"suaeb\x90")
"""SETITEM, SETITEMS, APPEND, APPENDS, BUILD, ADDITEMS."""


@dataclass(slots=True, eq=False)
class Span:
    """A value on the stack, and the bytes that make it, whatever is put into it later included.

    ``fetched`` says that a GET made it: it is the same object as another one.
    """

    start: int
    stop: int
    value: Any
    fetched: bool = False


class Memo(NamedTuple):
    """A PUT, MEMOIZE or GET: the opcode's bytes, its slot in the memo, and the value."""

    start: int
    stop: int
    code: int
    slot: int
    span: Span


class Batch(NamedTuple):
    """Pairs that one opcode sets on the outermost value.

    ``start`` and ``stop`` are all of its bytes, the mark and the opcode included; ``pairs`` holds
    (key, start, stop) of each; ``whole`` says that the opcode may go when all of its pairs do.
    """

    start: int
    stop: int
    pairs: tuple[tuple[Any, int, int], ...]
    whole: bool


@dataclass(slots=True)
class Trace:
    """What a run looked like from outside; all offsets are in the pickle.

    ``memos`` are in order, ``frames`` start and end of each frame (its opcode included),
    ``copies`` where DUP repeats the top of the stack, ``mutations`` where something is put into
    an object that was fetched from the memo, ``stop`` is the first byte behind the pickle.
    """

    stop: int = 0
    memos: list[Memo] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    mutations: list[int] = field(default_factory=list)


def steps(pickle: bytes, where: str) -> Iterator[tuple[int, int, Machine]]:
    """Run a pickle; gives each opcode's offset, its byte, and the machine behind it.

    Raises
    ------
    FormatError
        If the bytes are no pickle; before the first step.
    """
    unpickle(pickle, where)  # after that, nothing below can fail
    machine = Machine(pickle, where, 0, len(pickle))
    while True:
        at = machine.pos
        handler = DISPATCH[pickle[at]]
        machine.pos = at + 1
        assert handler is not None
        try:
            handler(machine)
        except Stop:
            return
        yield at, pickle[at], machine


def trace(pickle: bytes, where: str) -> Trace:
    r"""Run a pickle and note which bytes make which value.

    Raises
    ------
    FormatError
        If the bytes are no pickle.

    Examples
    --------
    >>> trace(b"}(X\x01\x00\x00\x00aK\x01u.", "x").batches[0].pairs
    (('a', 2, 10),)
    """
    found = Trace()
    below: list[tuple[int, list[Span]]] = []  # by mark: its offset, the values under it
    spans: list[Span] = []
    for at, code, machine in steps(pickle, where):
        stop, stack, start = machine.pos, machine.stack, at
        if code in _SETTERS:
            batch = _batch(at, stop, code, below, spans)
            if batch is not None:
                found.batches.append(batch)
        if len(machine.marks) > len(below):
            below.append((at, spans))
            spans = []
            continue
        if len(machine.marks) < len(below):
            start, spans = below.pop()
        del spans[len(stack) :]
        if len(stack) > len(spans):
            spans.append(Span(start, stop, stack[-1], code in GETS))
        elif spans and spans[-1].value is stack[-1]:
            spans[-1].stop = stop
        elif spans:
            spans[-1] = Span(spans[-1].start, stop, stack[-1])
        _note(found, pickle, at, stop, code, machine, spans)
        found.stop = stop + 1  # STOP is one byte
    return found


_SETTERS: Final = frozenset(b"sud")


def _batch(
    at: int, stop: int, code: int, below: list[tuple[int, list[Span]]], spans: list[Span]
) -> Batch | None:
    """Pairs that SETITEM, SETITEMS or DICT is about to set on the value at the stack's bottom."""
    if code == ord("s"):
        if below or len(spans) != 3:
            return None
        return Batch(spans[1].start, stop, ((spans[1].value, spans[1].start, stop),), True)
    if len(below) != 1 or len(below[0][1]) != (code == ord("u")):
        return None
    keys = spans[::2]
    ends = [key.start for key in keys[1:]] + [at]
    pairs = ((key.value, key.start, end) for key, end in zip(keys, ends, strict=False))
    return Batch(below[0][0], stop, tuple(pairs), code == ord("u"))


def _note(
    found: Trace, pickle: bytes, at: int, stop: int, code: int, machine: Machine, spans: list[Span]
) -> None:
    if code == MEMOIZE:
        found.memos.append(Memo(at, stop, code, len(machine.memo) - 1, spans[-1]))
    elif code in PUTS or code in GETS:
        raw = pickle[at + 1 : stop]
        slot = int(raw) if code in b"pg" else int.from_bytes(raw, "little")
        found.memos.append(Memo(at, stop, code, slot, spans[-1]))
    elif code == FRAME:
        found.frames.append((at, stop + int.from_bytes(pickle[at + 1 : stop], "little")))
    elif code == _DUP:
        found.copies.append(at)
    elif code in _MUTATORS and spans[-1].fetched:
        found.mutations.append(at)
