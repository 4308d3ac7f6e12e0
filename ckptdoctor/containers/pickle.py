"""An abstract machine for pickles: builds inert values, imports nothing, calls nothing.

Every opcode of protocols 0 to 5 is interpreted, but a name becomes a `Global`, a call becomes a
`Call`, a dictionary a `PDict` that never hashes its keys, and a persistent id a `Persistent`.  What
they would have meant to Python is for the caller to decide.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import BombError, FormatError, TruncatedError, UnsupportedError

__all__ = [
    "MAX_OPCODES",
    "Call",
    "Global",
    "PDict",
    "PSet",
    "Persistent",
    "PickleError",
    "Unpickled",
    "unpickle",
]

MAX_OPCODES: Final = 16_000_000
"""About 450,000 tensors; the machine then has spent some 5 seconds and 2 GB at the very most."""

MAX_LINE: Final = 65_536
MAX_NAME: Final = 1_000


@dataclass(slots=True, eq=False)
class Global:
    """A name that the pickle would import.

    ``called`` says that REDUCE, OBJ or INST calls it; ``built`` that NEWOBJ instantiates it;
    ``largest`` is the largest integer it is called with (what a constructor would allocate);
    ``indirect`` says that it is called on the result of another call.
    """

    module: str
    name: str
    offset: int
    computed: bool = False
    called: bool = False
    built: bool = False
    largest: int = 0
    indirect: bool = False

    @property
    def dotted(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """An object that the pickle would make by calling ``callee``, and what was put into it.

    The three lists are made when something is put into them: half of all calls are tensors, and
    three empty lists each made reading them half as slow again.
    """

    callee: Any
    args: Any
    state: list[Any] | tuple[()] = ()
    pairs: list[tuple[Any, Any]] | tuple[()] = ()
    elements: list[Any] | tuple[()] = ()


@dataclass(slots=True, eq=False)
class PDict:
    """A dictionary as its key-value pairs, in order; keys are never hashed or compared."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """Value of the last pair whose key is this string; None without one."""
        for held, value in reversed(self.pairs):
            if type(held) is str and held == key:
                return value
        return None


@dataclass(slots=True, eq=False)
class PSet:
    """A set or frozenset as its elements."""

    elements: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Persistent:
    """A reference to something outside the pickle."""

    pid: Any


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What one pickle holds.

    ``end`` is the offset in the data behind its STOP; ``globals`` every name it mentions, in order;
    ``computed`` the offsets of calls whose callee is itself the result of a call; ``persistents``
    all references to the outside.
    """

    value: Any
    end: int
    globals: tuple[Global, ...]
    computed: tuple[int, ...]
    persistents: tuple[Persistent, ...]


class _Stop(Exception):
    pass


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
    machine = _Machine(data, where, base, len(data) if total is None else total)
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


_Handler = Callable[["_Machine"], None]
_DISPATCH: list[_Handler | None] = [None] * 256


def _opcode(*codes: bytes) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        for code in codes:
            _DISPATCH[code[0]] = handler
        return handler

    return register


class _Machine:
    """Stack, marks and memo of one run; `globals` and `computed` survive an error."""

    __slots__ = (
        *("base", "computed", "data", "globals", "limit", "marks", "memo", "persistent_load"),
        *("persistents", "pos", "stack", "where"),
    )

    def __init__(self, data: bytes, where: str, base: int, limit: int) -> None:
        self.data, self.pos, self.where, self.base, self.limit = data, 0, where, base, limit
        self.persistent_load: Callable[[Any], Any] = Persistent
        self.persistents: list[Persistent] = []
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str, bool], Global] = {}
        self.computed: list[int] = []

    def seen(self, value: Any) -> Unpickled:
        return Unpickled(
            value,
            self.pos,
            tuple(self.globals.values()),
            tuple(self.computed),
            tuple(self.persistents),
        )

    def run(self) -> Any:
        data, dispatch = self.data, _DISPATCH
        at = self.pos
        try:
            for _ in range(MAX_OPCODES):
                at = self.pos
                handler = dispatch[data[at]]
                self.pos = at + 1
                if handler is None:
                    raise self.bad(f"byte 0x{data[at]:02x} is no pickle opcode")
                handler(self)
        except _Stop:
            return self.stack.pop() if self.stack else None
        except IndexError:
            if at >= len(data):
                raise self.short(at, 1) from None
            raise self.bad("the pickle takes more from its stack than it put there") from None
        except (ValueError, OverflowError) as error:
            raise self.bad(f"malformed pickle argument ({type(error).__name__})") from None
        raise BombError(
            f"expected at most {MAX_OPCODES:,} pickle opcodes, found more",
            where=self.place(self.pos),
        )

    def place(self, at: int) -> str:
        return f"{self.where}+{self.base + at}"

    def bad(self, message: str) -> FormatError:
        return FormatError(message, where=self.place(max(0, self.pos - 1)))

    def short(self, at: int, length: int) -> TruncatedError:
        message = f"pickle ends early: expected {length} more bytes, {self.limit - at} are left"
        return TruncatedError(message, where=self.place(at))

    def take(self, length: int) -> bytes:
        start, end = self.pos, self.pos + length
        if length < 0:
            raise self.bad(f"negative length {length}")
        if end > len(self.data):
            raise self.short(start, length)
        self.pos = end
        return self.data[start:end]

    def uint(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.pos, self.pos + MAX_LINE)
        if end < 0:
            if self.pos + MAX_LINE >= len(self.data):
                raise self.short(self.pos, 1)
            raise self.bad(f"a text argument is longer than {MAX_LINE} bytes")
        raw = self.data[self.pos : end]
        self.pos = end + 1
        return raw

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def find_global(self, module: Any, name: Any, at: int) -> Global:
        """Record a name; one that is not a plain string was computed by the pickle itself."""
        plain = type(module) is str and type(name) is str
        module, name = (
            part[:MAX_NAME] if type(part) is str else f"<{type(part).__name__}>"
            for part in (module, name)
        )
        key = (module, name, plain)
        found = self.globals.get(key)
        if found is None:
            found = Global(module, name, self.base + at, computed=not plain)
            self.globals[key] = found
        return found

    def call(self, callee: Any, args: Any) -> Call:
        if type(callee) is Global:
            callee.called = True
            if callee.module not in _QUIET:
                self._note_arguments(callee, args)
        else:
            self.computed.append(self.base + self.pos - 1)
        return Call(callee, args)

    @staticmethod
    def _note_arguments(callee: Global, args: Any) -> None:
        if type(args) is not tuple:
            return
        for arg in args:
            if type(arg) is int and arg > callee.largest:
                callee.largest = arg
            elif type(arg) is Call:
                callee.indirect = True


_QUIET = frozenset({"torch._utils", "collections"})
"""Modules whose calls are too many to look into, and whose functions allocate nothing by size."""


@_opcode(b"\x80")
def _proto(m: _Machine) -> None:
    version = m.uint(1)
    if version > 5:
        raise UnsupportedError(
            f"expected pickle protocol 0 to 5, found {version}", where=m.place(m.pos - 2)
        )


@_opcode(b"\x95")
def _frame(m: _Machine) -> None:
    length = m.uint(8)
    if m.pos + length > m.limit:
        raise m.short(m.pos, length)


@_opcode(b".")
def _stop(m: _Machine) -> None:
    if not m.stack:
        raise m.bad("the pickle stops without a value")
    raise _Stop


@_opcode(b"(")
def _mark(m: _Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


@_opcode(b"0")
def _pop(m: _Machine) -> None:
    if m.stack:
        del m.stack[-1]
    else:
        m.pop_mark()


@_opcode(b"1")
def _pop_mark(m: _Machine) -> None:
    m.pop_mark()


@_opcode(b"2")
def _dup(m: _Machine) -> None:
    m.stack.append(m.stack[-1])


# Memo.


@_opcode(b"q")
def _binput(m: _Machine) -> None:
    pos = m.pos
    m.memo[m.data[pos]] = m.stack[-1]
    m.pos = pos + 1


@_opcode(b"r")
def _long_binput(m: _Machine) -> None:
    data, pos = m.data, m.pos  # indexed, not sliced: a third of a large pickle is this opcode
    index = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16 | data[pos + 3] << 24
    m.memo[index] = m.stack[-1]
    m.pos = pos + 4


@_opcode(b"p")
def _put(m: _Machine) -> None:
    m.memo[int(m.line())] = m.stack[-1]


@_opcode(b"\x94")
def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _recall(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise m.bad(f"memo entry {index} is used before it is set")
    m.stack.append(m.memo[index])


@_opcode(b"h")
def _binget(m: _Machine) -> None:
    pos = m.pos
    m.pos = pos + 1
    index = m.data[pos]
    if index not in m.memo:
        _recall(m, index)
    m.stack.append(m.memo[index])


@_opcode(b"j")
def _long_binget(m: _Machine) -> None:
    _recall(m, m.uint(4))


@_opcode(b"g")
def _get(m: _Machine) -> None:
    _recall(m, int(m.line()))


# Numbers.


@_opcode(b"N")
def _none(m: _Machine) -> None:
    m.stack.append(None)


@_opcode(b"\x88")
def _true(m: _Machine) -> None:
    m.stack.append(True)


@_opcode(b"\x89")
def _false(m: _Machine) -> None:
    m.stack.append(False)


@_opcode(b"K")
def _binint1(m: _Machine) -> None:
    pos = m.pos
    m.stack.append(m.data[pos])
    m.pos = pos + 1


@_opcode(b"M")
def _binint2(m: _Machine) -> None:
    data, pos = m.data, m.pos
    m.stack.append(data[pos] | data[pos + 1] << 8)
    m.pos = pos + 2


@_opcode(b"J")
def _binint(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(4), "little", signed=True))


@_opcode(b"I")
def _int(m: _Machine) -> None:
    text = m.line()
    m.stack.append(text == b"01" if text in (b"00", b"01") else int(text))


@_opcode(b"L")
def _long(m: _Machine) -> None:
    m.stack.append(int(m.line().removesuffix(b"L")))


@_opcode(b"\x8a")
def _long1(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(m.uint(1)), "little", signed=True))


@_opcode(b"\x8b")
def _long4(m: _Machine) -> None:
    length = int.from_bytes(m.take(4), "little", signed=True)
    m.stack.append(int.from_bytes(m.take(length), "little", signed=True))


@_opcode(b"G")
def _binfloat(m: _Machine) -> None:
    m.stack.append(struct.unpack(">d", m.take(8))[0])


@_opcode(b"F")
def _float(m: _Machine) -> None:
    m.stack.append(float(m.line()))


# Strings and bytes.


@_opcode(b"X")
def _binunicode(m: _Machine) -> None:
    data, pos = m.data, m.pos
    length = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16 | data[pos + 3] << 24
    m.pos = pos = pos + 4
    if pos + length > len(data):
        raise m.short(pos, length)
    m.pos = pos + length
    m.stack.append(data[pos : pos + length].decode("utf-8", "surrogatepass"))


@_opcode(b"\x8c")
def _short_binunicode(m: _Machine) -> None:
    m.stack.append(m.take(m.uint(1)).decode("utf-8", "surrogatepass"))


@_opcode(b"\x8d")
def _binunicode8(m: _Machine) -> None:
    m.stack.append(m.take(m.uint(8)).decode("utf-8", "surrogatepass"))


@_opcode(b"V")
def _unicode(m: _Machine) -> None:
    m.stack.append(m.line().decode("raw-unicode-escape"))


def _python2_text(raw: bytes) -> str | bytes:
    """Decode a Python 2 str: text when it is ASCII, bytes otherwise."""
    return raw.decode("ascii") if raw.isascii() else raw


@_opcode(b"U")
def _short_binstring(m: _Machine) -> None:
    m.stack.append(_python2_text(m.take(m.uint(1))))


@_opcode(b"T")
def _binstring(m: _Machine) -> None:
    length = int.from_bytes(m.take(4), "little", signed=True)
    m.stack.append(_python2_text(m.take(length)))


@_opcode(b"S")
def _string(m: _Machine) -> None:
    raw = m.line()
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in b"'\"":
        raise m.bad("a text string without its quotes")
    m.stack.append(_python2_text(codecs.escape_decode(raw[1:-1])[0]))


@_opcode(b"C")
def _short_binbytes(m: _Machine) -> None:
    m.stack.append(m.take(m.uint(1)))


@_opcode(b"B")
def _binbytes(m: _Machine) -> None:
    m.stack.append(m.take(m.uint(4)))


@_opcode(b"\x8e", b"\x96")
def _binbytes8(m: _Machine) -> None:
    m.stack.append(m.take(m.uint(8)))


@_opcode(b"\x97", b"\x98")
def _out_of_band(m: _Machine) -> None:
    raise m.bad("the pickle refers to a buffer outside the file")


# Containers.


@_opcode(b")")
def _empty_tuple(m: _Machine) -> None:
    m.stack.append(())


@_opcode(b"t")
def _tuple(m: _Machine) -> None:
    items = tuple(m.stack)
    m.stack = m.marks.pop()
    m.stack.append(items)


@_opcode(b"\x85")
def _tuple1(m: _Machine) -> None:
    m.stack[-1] = (m.stack[-1],)


@_opcode(b"\x86")
def _tuple2(m: _Machine) -> None:
    second = m.stack.pop()
    m.stack[-1] = (m.stack[-1], second)


@_opcode(b"\x87")
def _tuple3(m: _Machine) -> None:
    third, second = m.stack.pop(), m.stack.pop()
    m.stack[-1] = (m.stack[-1], second, third)


@_opcode(b"]")
def _empty_list(m: _Machine) -> None:
    m.stack.append([])


@_opcode(b"l")
def _list(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(items)


@_opcode(b"}")
def _empty_dict(m: _Machine) -> None:
    m.stack.append(PDict())


def _pairs(m: _Machine, items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise m.bad("a dictionary with a key but no value")
    return list(zip(items[::2], items[1::2], strict=True))


@_opcode(b"d")
def _dict(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(PDict(_pairs(m, items)))


@_opcode(b"\x8f")
def _empty_set(m: _Machine) -> None:
    m.stack.append(PSet())


@_opcode(b"\x91")
def _frozenset(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(PSet(items))


@_opcode(b"a")
def _append(m: _Machine) -> None:
    item = m.stack.pop()
    _extend(m, [item])


@_opcode(b"e")
def _appends(m: _Machine) -> None:
    items = m.pop_mark()
    _extend(m, items)


@_opcode(b"\x90")
def _additems(m: _Machine) -> None:
    items = m.pop_mark()
    _extend(m, items)


def _extend(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if type(target) is list:
        target.extend(items)
    elif type(target) is PSet:
        target.elements.extend(items)
    elif type(target) is Call:
        target.elements = target.elements or []
        target.elements.extend(items)
    else:
        raise m.bad(f"elements are added to a {type(target).__name__}")


@_opcode(b"s")
def _setitem(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _update(m, [(key, value)])


@_opcode(b"u")
def _setitems(m: _Machine) -> None:
    items = m.pop_mark()
    _update(m, _pairs(m, items))


def _update(m: _Machine, pairs: list[tuple[Any, Any]]) -> None:
    target = m.stack[-1]
    if type(target) not in (PDict, Call):
        raise m.bad(f"keys are set on a {type(target).__name__}")
    target.pairs = target.pairs or []
    target.pairs.extend(pairs)


# Names, calls, objects.


@_opcode(b"c")
def _global(m: _Machine) -> None:
    at = m.pos - 1
    module, name = (part.decode("utf-8", "replace") for part in (m.line(), m.line()))
    m.stack.append(m.find_global(module, name, at))


@_opcode(b"\x93")
def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.stack.append(m.find_global(module, name, m.pos - 1))


@_opcode(b"\x82", b"\x83", b"\x84")
def _extension(m: _Machine) -> None:
    width = {0x82: 1, 0x83: 2, 0x84: 4}[m.data[m.pos - 1]]
    at = m.pos - 1
    found = m.find_global("copyreg", f"<extension {m.uint(width)}>", at)
    found.computed = True
    m.stack.append(found)


@_opcode(b"R")
def _reduce(m: _Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args)


@_opcode(b"i")
def _inst(m: _Machine) -> None:
    at = m.pos - 1
    module, name = (part.decode("utf-8", "replace") for part in (m.line(), m.line()))
    args = tuple(m.pop_mark())
    m.stack.append(m.call(m.find_global(module, name, at), args))


@_opcode(b"o")
def _obj(m: _Machine) -> None:
    items = m.pop_mark()
    m.stack.append(m.call(items[0], tuple(items[1:])))


@_opcode(b"\x81")
def _newobj(m: _Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = _new(m, m.stack[-1], args)


@_opcode(b"\x92")
def _newobj_ex(m: _Machine) -> None:
    _, args = m.stack.pop(), m.stack.pop()
    m.stack[-1] = _new(m, m.stack[-1], args)


def _new(m: _Machine, cls: Any, args: Any) -> Call:
    if type(cls) is Global:
        cls.built = True
        m._note_arguments(cls, args)
    else:
        m.computed.append(m.base + m.pos - 1)
    return Call(cls, args)


@_opcode(b"b")
def _build(m: _Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is Call:
        target.state = [*target.state, state]
    elif type(target) is Global:
        target.called = True  # sets attributes on the class or function itself
        m.computed.append(m.base + m.pos - 1)


@_opcode(b"P")
def _persid(m: _Machine) -> None:
    _persist(m, m.line().decode("ascii", "replace"))


@_opcode(b"Q")
def _binpersid(m: _Machine) -> None:
    _persist(m, m.stack.pop())


def _persist(m: _Machine, pid: Any) -> None:
    found = m.persistent_load(pid)
    if type(found) is Persistent:
        m.persistents.append(found)
    m.stack.append(found)
