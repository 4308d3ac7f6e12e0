"""Pickles as data: an abstract machine that builds inert values, imports nothing, calls nothing.

Every opcode of protocols 0 to 5 is interpreted, but a name becomes a `Global`, a call becomes a
`Call`, a dictionary a `PDict` that never hashes its keys, and a persistent id a `Persistent`.  What
they would have meant to Python is for the caller to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..errors import FormatError
from . import pickle_opcodes as _opcodes  # noqa: F401  (fills the machine's table)
from .pickle_machine import Call, Global, Machine, PDict, Persistent, PSet, Unpickled

__all__ = [
    "MAX_PICKLE",
    "Call",
    "Global",
    "PDict",
    "PSet",
    "Persistent",
    "PickleError",
    "Unpickled",
    "size_limit",
    "unpickle",
]


MAX_PICKLE: Final = 1 << 29
"""512 MiB: a pickle of references to a million tensors has 200; it is held in memory."""

MAX_RATIO: Final = 100
"""A pickle of 100,000 tensors deflates to a tenth; to a thousandth is a bomb."""


def size_limit(stored: int) -> int:
    """Bytes that a pickle may have which a file stores in so many: what compressing real ones gains.

    Examples
    --------
    >>> size_limit(100), size_limit(1 << 20), size_limit(1 << 40)
    (1048576, 104857600, 536870912)
    """
    return min(MAX_PICKLE, max(1 << 20, MAX_RATIO * stored))


def unpickle(
    data: bytes,
    where: str,
    *,
    base: int = 0,
    start: int = 0,
    total: int | None = None,
    persistent_load: Callable[[Any], Any] = Persistent,
) -> Unpickled:
    r"""Interpret the pickle at ``start`` of ``data``.

    Parameters
    ----------
    data
        The bytes, or the first of them.
    where
        Name of the file or member for messages.
    base
        Offset of ``data`` in it, for messages.
    start
        Offset of the first opcode in ``data``.
    total
        Bytes that the file has from the start of ``data`` when ``data`` is only its beginning.
    persistent_load
        What a persistent id becomes on the stack.

    Raises
    ------
    TruncatedError
        If ``data`` ends before STOP.
    FormatError
        If the bytes are no pickle.
    BombError
        If it takes more than `MAX_OPCODES` steps.

    Examples
    --------
    >>> import pickle
    >>> unpickle(pickle.dumps({"a": (1, 2.5)}), "x").value.get("a")
    (1, 2.5)
    >>> unpickle(b"cos\nsystem\n(S'ls'\ntR.", "x").globals[0].dotted
    'os.system'
    """
    machine = Machine(data, where, base, len(data) if total is None else total)
    machine.persistent_load, machine.pos = persistent_load, start
    try:
        value = machine.run()
    except FormatError as error:
        raise PickleError(error, machine.seen(None)) from None
    return machine.seen(value)


class PickleError(FormatError):
    """A pickle that cannot be finished.

    ``reason`` is the error proper; ``seen`` what was gathered before it broke.
    """

    def __init__(self, reason: FormatError, seen: Unpickled) -> None:
        super().__init__(reason.message, where=reason.where, hint=reason.hint)
        self.reason = reason
        self.seen = seen
