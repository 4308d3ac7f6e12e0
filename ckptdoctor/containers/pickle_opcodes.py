"""What each pickle opcode does to the machine: all of protocols 0 to 5, one function each."""

from __future__ import annotations

import codecs
import struct
from typing import Any

from ..errors import UnsupportedError
from .pickle_machine import Call, Global, Machine, PDict, Persistent, PSet, Stop, opcode

__all__: list[str] = []


@opcode(b"\x80")
def _proto(m: Machine) -> None:
    version = m.uint(1)
    if version > 5:
        raise UnsupportedError(
            f"expected pickle protocol 0 to 5, found {version}", where=m.place(m.pos - 2)
        )


@opcode(b"\x95")
def _frame(m: Machine) -> None:
    length = m.uint(8)
    if m.pos + length > m.limit:
        raise m.short(m.pos, length)


@opcode(b".")
def _stop(m: Machine) -> None:
    if not m.stack:
        raise m.bad("the pickle stops without a value")
    raise Stop


@opcode(b"(")
def _mark(m: Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


@opcode(b"0")
def _pop(m: Machine) -> None:
    if m.stack:
        del m.stack[-1]
    else:
        m.pop_mark()


@opcode(b"1")
def _pop_mark(m: Machine) -> None:
    m.pop_mark()


@opcode(b"2")
def _dup(m: Machine) -> None:
    m.stack.append(m.stack[-1])


# Memo.


@opcode(b"q")
def _binput(m: Machine) -> None:
    pos = m.pos
    m.memo[m.data[pos]] = m.stack[-1]
    m.pos = pos + 1


@opcode(b"r")
def _long_binput(m: Machine) -> None:
    data, pos = m.data, m.pos  # indexed, not sliced: a third of a large pickle is this opcode
    index = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16 | data[pos + 3] << 24
    m.memo[index] = m.stack[-1]
    m.pos = pos + 4


@opcode(b"p")
def _put(m: Machine) -> None:
    m.memo[int(m.line())] = m.stack[-1]


@opcode(b"\x94")
def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _recall(m: Machine, index: int) -> None:
    if index not in m.memo:
        raise m.bad(f"memo entry {index} is used before it is set")
    m.stack.append(m.memo[index])


@opcode(b"h")
def _binget(m: Machine) -> None:
    pos = m.pos
    m.pos = pos + 1
    index = m.data[pos]
    if index not in m.memo:
        _recall(m, index)
    m.stack.append(m.memo[index])


@opcode(b"j")
def _long_binget(m: Machine) -> None:
    _recall(m, m.uint(4))


@opcode(b"g")
def _get(m: Machine) -> None:
    _recall(m, int(m.line()))


# Numbers.


@opcode(b"N")
def _none(m: Machine) -> None:
    m.stack.append(None)


@opcode(b"\x88")
def _true(m: Machine) -> None:
    m.stack.append(True)


@opcode(b"\x89")
def _false(m: Machine) -> None:
    m.stack.append(False)


@opcode(b"K")
def _binint1(m: Machine) -> None:
    pos = m.pos
    m.stack.append(m.data[pos])
    m.pos = pos + 1


@opcode(b"M")
def _binint2(m: Machine) -> None:
    data, pos = m.data, m.pos
    m.stack.append(data[pos] | data[pos + 1] << 8)
    m.pos = pos + 2


@opcode(b"J")
def _binint(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(4), "little", signed=True))


@opcode(b"I")
def _int(m: Machine) -> None:
    text = m.line()
    m.stack.append(text == b"01" if text in (b"00", b"01") else int(text))


@opcode(b"L")
def _long(m: Machine) -> None:
    m.stack.append(int(m.line().removesuffix(b"L")))


@opcode(b"\x8a")
def _long1(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(m.uint(1)), "little", signed=True))


@opcode(b"\x8b")
def _long4(m: Machine) -> None:
    length = int.from_bytes(m.take(4), "little", signed=True)
    m.stack.append(int.from_bytes(m.take(length), "little", signed=True))


@opcode(b"G")
def _binfloat(m: Machine) -> None:
    m.stack.append(struct.unpack(">d", m.take(8))[0])


@opcode(b"F")
def _float(m: Machine) -> None:
    m.stack.append(float(m.line()))


# Strings and bytes.


@opcode(b"X")
def _binunicode(m: Machine) -> None:
    data, pos = m.data, m.pos
    length = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16 | data[pos + 3] << 24
    m.pos = pos = pos + 4
    if pos + length > len(data):
        raise m.short(pos, length)
    m.pos = pos + length
    m.stack.append(data[pos : pos + length].decode("utf-8", "surrogatepass"))


@opcode(b"\x8c")
def _short_binunicode(m: Machine) -> None:
    m.stack.append(m.take(m.uint(1)).decode("utf-8", "surrogatepass"))


@opcode(b"\x8d")
def _binunicode8(m: Machine) -> None:
    m.stack.append(m.take(m.uint(8)).decode("utf-8", "surrogatepass"))


@opcode(b"V")
def _unicode(m: Machine) -> None:
    m.stack.append(m.line().decode("raw-unicode-escape"))


def _python2_text(raw: bytes) -> str | bytes:
    """Decode a Python 2 str: text when it is ASCII, bytes otherwise."""
    return raw.decode("ascii") if raw.isascii() else raw


@opcode(b"U")
def _short_binstring(m: Machine) -> None:
    m.stack.append(_python2_text(m.take(m.uint(1))))


@opcode(b"T")
def _binstring(m: Machine) -> None:
    length = int.from_bytes(m.take(4), "little", signed=True)
    m.stack.append(_python2_text(m.take(length)))


@opcode(b"S")
def _string(m: Machine) -> None:
    raw = m.line()
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in b"'\"":
        raise m.bad("a text string without its quotes")
    m.stack.append(_python2_text(codecs.escape_decode(raw[1:-1])[0]))


@opcode(b"C")
def _short_binbytes(m: Machine) -> None:
    m.stack.append(m.take(m.uint(1)))


@opcode(b"B")
def _binbytes(m: Machine) -> None:
    m.stack.append(m.take(m.uint(4)))


@opcode(b"\x8e", b"\x96")
def _binbytes8(m: Machine) -> None:
    m.stack.append(m.take(m.uint(8)))


@opcode(b"\x97", b"\x98")
def _out_of_band(m: Machine) -> None:
    raise m.bad("the pickle refers to a buffer outside the file")


# Containers.


@opcode(b")")
def _empty_tuple(m: Machine) -> None:
    m.stack.append(())


@opcode(b"t")
def _tuple(m: Machine) -> None:
    items = tuple(m.stack)
    m.stack = m.marks.pop()
    m.stack.append(items)


@opcode(b"\x85")
def _tuple1(m: Machine) -> None:
    m.stack[-1] = (m.stack[-1],)


@opcode(b"\x86")
def _tuple2(m: Machine) -> None:
    second = m.stack.pop()
    m.stack[-1] = (m.stack[-1], second)


@opcode(b"\x87")
def _tuple3(m: Machine) -> None:
    third, second = m.stack.pop(), m.stack.pop()
    m.stack[-1] = (m.stack[-1], second, third)


@opcode(b"]")
def _empty_list(m: Machine) -> None:
    m.count()
    m.stack.append([])


@opcode(b"l")
def _list(m: Machine) -> None:
    m.count()
    items = m.pop_mark()
    m.stack.append(items)


@opcode(b"}")
def _empty_dict(m: Machine) -> None:
    m.count()
    m.stack.append(PDict())


def _pairs(m: Machine, items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise m.bad("a dictionary with a key but no value")
    return list(zip(items[::2], items[1::2], strict=True))


@opcode(b"d")
def _dict(m: Machine) -> None:
    m.count()
    items = m.pop_mark()
    m.hash(items[::2])
    m.stack.append(PDict(_pairs(m, items)))


@opcode(b"\x8f")
def _empty_set(m: Machine) -> None:
    m.count()
    m.stack.append(PSet())


@opcode(b"\x91")
def _frozenset(m: Machine) -> None:
    m.count()
    items = m.pop_mark()
    m.hash(items)
    m.stack.append(PSet(items))


@opcode(b"a")
def _append(m: Machine) -> None:
    item = m.stack.pop()
    _extend(m, [item])


@opcode(b"e")
def _appends(m: Machine) -> None:
    items = m.pop_mark()
    _extend(m, items)


@opcode(b"\x90")
def _additems(m: Machine) -> None:
    items = m.pop_mark()
    _extend(m, items)


def _extend(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if type(target) is list:
        target.extend(items)
    elif type(target) is PSet:
        m.hash(items)
        target.elements.extend(items)
    elif type(target) is Call:
        target.elements = target.elements or []
        target.elements.extend(items)
    else:
        raise m.bad(f"elements are added to a {type(target).__name__}")


@opcode(b"s")
def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _update(m, [(key, value)])


@opcode(b"u")
def _setitems(m: Machine) -> None:
    items = m.pop_mark()
    _update(m, _pairs(m, items))


def _update(m: Machine, pairs: list[tuple[Any, Any]]) -> None:
    target = m.stack[-1]
    if type(target) not in (PDict, Call):
        raise m.bad(f"keys are set on a {type(target).__name__}")
    m.hash(key for key, _ in pairs if type(key) is tuple)
    target.pairs = target.pairs or []
    target.pairs.extend(pairs)


# Names, calls, objects.


@opcode(b"c")
def _global(m: Machine) -> None:
    at = m.pos - 1
    module, name = (part.decode("utf-8", "replace") for part in (m.line(), m.line()))
    m.stack.append(m.find_global(module, name, at))


@opcode(b"\x93")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.stack.append(m.find_global(module, name, m.pos - 1))


@opcode(b"\x82", b"\x83", b"\x84")
def _extension(m: Machine) -> None:
    width = {0x82: 1, 0x83: 2, 0x84: 4}[m.data[m.pos - 1]]
    at = m.pos - 1
    found = m.find_global("copyreg", f"<extension {m.uint(width)}>", at)
    found.computed = True
    m.stack.append(found)


@opcode(b"R")
def _reduce(m: Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args)


@opcode(b"i")
def _inst(m: Machine) -> None:
    at = m.pos - 1
    module, name = (part.decode("utf-8", "replace") for part in (m.line(), m.line()))
    args = tuple(m.pop_mark())
    m.stack.append(m.call(m.find_global(module, name, at), args))


@opcode(b"o")
def _obj(m: Machine) -> None:
    items = m.pop_mark()
    m.stack.append(m.call(items[0], tuple(items[1:])))


@opcode(b"\x81")
def _newobj(m: Machine) -> None:
    args = m.stack.pop()
    m.stack[-1] = _new(m, m.stack[-1], args)


@opcode(b"\x92")
def _newobj_ex(m: Machine) -> None:
    _, args = m.stack.pop(), m.stack.pop()
    m.stack[-1] = _new(m, m.stack[-1], args)


def _new(m: Machine, cls: Any, args: Any) -> Call:
    m.count()
    if type(cls) is Global:
        cls.built = True
        m.note_arguments(cls, args)
    else:
        m.computed.append(m.base + m.pos - 1)
    return Call(cls, args)


@opcode(b"b")
def _build(m: Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is Call:
        target.state = [*target.state, state]
    elif type(target) is Global:
        target.called = True  # sets attributes on the class or function itself
        m.computed.append(m.base + m.pos - 1)


@opcode(b"P")
def _persid(m: Machine) -> None:
    _persist(m, m.line().decode("ascii", "replace"))


@opcode(b"Q")
def _binpersid(m: Machine) -> None:
    _persist(m, m.stack.pop())


def _persist(m: Machine, pid: Any) -> None:
    found = m.persistent_load(pid)
    if type(found) is Persistent:
        m.persistents.append(found)
    m.stack.append(found)
