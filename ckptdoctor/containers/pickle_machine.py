"""The machine that pickles run on, and the inert values they leave: stack, marks, memo, names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import BombError, FormatError, TruncatedError

__all__ = [
    "DISPATCH",
    "Call",
    "Global",
    "Handler",
    "Machine",
    "PDict",
    "PSet",
    "Persistent",
    "Stop",
    "Unpickled",
    "opcode",
]

MAX_OPCODES: Final = 16_000_000
"""About 450,000 tensors, which take the machine some 5 seconds; `MAX_CONTAINERS` bounds memory."""

MAX_CONTAINERS: Final = 4_000_000
"""Dictionaries, lists, sets and calls: 120 bytes each that a file spells with one."""

MAX_HASHING: Final = 10_000
"""Elements hashed for one dictionary key; a loader hangs on a key that is a tuple of 2^48."""

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
    all references to the outside; ``endless`` the offsets where loading would hash a tuple that
    unfolds without end.
    """

    value: Any
    end: int
    globals: tuple[Global, ...]
    computed: tuple[int, ...]
    persistents: tuple[Persistent, ...]
    endless: tuple[int, ...]


class Stop(Exception):
    """STOP was reached."""


Handler = Callable[["Machine"], None]
DISPATCH: list[Handler | None] = [None] * 256
"""What each opcode does, by its byte; `ckptdoctor.containers.pickle_opcodes` fills it."""


def opcode(*codes: bytes) -> Callable[[Handler], Handler]:
    """Register a function for opcodes."""

    def register(handler: Handler) -> Handler:
        for code in codes:
            DISPATCH[code[0]] = handler
        return handler

    return register


class Machine:
    """Stack, marks and memo of one run; `globals` and `computed` survive an error."""

    __slots__ = (
        *("base", "computed", "data", "globals", "limit", "marks", "memo", "persistent_load"),
        *("endless", "hashed", "made", "persistents", "pos", "stack", "where"),
    )

    def __init__(self, data: bytes, where: str, base: int, limit: int) -> None:
        self.data, self.pos, self.where, self.base, self.limit = data, 0, where, base, limit
        self.persistent_load: Callable[[Any], Any] = Persistent
        self.persistents: list[Persistent] = []
        self.endless: list[int] = []
        self.hashed = self.made = 0
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
            tuple(self.endless),
        )

    def run(self) -> Any:
        data, dispatch = self.data, DISPATCH
        at = self.pos
        try:
            for _ in range(MAX_OPCODES):
                at = self.pos
                handler = dispatch[data[at]]
                self.pos = at + 1
                if handler is None:
                    raise self.bad(f"byte 0x{data[at]:02x} is no pickle opcode")
                handler(self)
        except Stop:
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

    def count(self) -> None:
        """Count a container that is made; each takes a hundred times its opcode."""
        self.made += 1
        if self.made > MAX_CONTAINERS:
            message = f"expected at most {MAX_CONTAINERS:,} containers in a pickle, found more"
            raise BombError(message, where=self.place(self.pos))

    def hash(self, keys: Iterable[Any]) -> None:
        """Note keys whose hash a loader would never finish: tuples of the same tuples, and so on."""
        for key in keys:
            if type(key) is not tuple or self.endless:
                continue
            todo, start = [key], self.hashed
            while todo and self.hashed - start <= MAX_HASHING and self.hashed < 100 * MAX_HASHING:
                self.hashed += 1
                todo.extend(part for part in todo.pop() if type(part) is tuple)
            if todo:
                self.endless.append(self.base + self.pos - 1)

    def call(self, callee: Any, args: Any) -> Call:
        self.count()
        if type(callee) is Global:
            callee.called = True
            if args and callee.name in _HASHING:
                self.hash(_keys_of(args))
            if args and callee.module != "torch._utils":  # half of all calls; they allocate nothing
                self.note_arguments(callee, args)
        else:
            self.computed.append(self.base + self.pos - 1)
        return Call(callee, args)

    @staticmethod
    def note_arguments(callee: Global, args: Any) -> None:
        if type(args) not in (tuple, list):
            return
        size = 1
        for arg in args:
            # one level down as well: a shape is a tuple of numbers
            for number in arg if type(arg) in (tuple, list) and len(arg) <= 64 else (arg,):
                if type(number) is int and number > 0:
                    size = min(size * number, 1 << 64)
            if type(arg) is Call and not _is_encoding(arg):
                callee.indirect = True
            elif type(arg) is Global and callee.name in _BINDING:
                arg.called = True  # by whoever calls what is made here
        callee.largest = max(callee.largest, size)


_BINDING = frozenset({"partial", "defaultdict", "_rebuild_from_type", "_rebuild_from_type_v2"})
"""Calls that call, or keep to call later, the functions among their arguments."""

_HASHING = frozenset({"OrderedDict", "dict", "set", "frozenset", "Counter", "defaultdict"})
"""Constructors that hash the elements, or the keys, of what they are given."""


def _keys_of(args: Any) -> Iterable[Any]:
    for arg in args if type(args) in (tuple, list) else ():
        if type(arg) is PDict:
            yield from (key for key, _ in arg.pairs)
        elif type(arg) in (tuple, list):
            for item in arg:
                yield item
                if type(item) in (tuple, list) and len(item) == 2:
                    yield item[0]


def _is_encoding(call: Call) -> bool:
    """Whether a call is bytes as protocol 2 spells them."""
    return type(call.callee) is Global and call.callee.dotted == "_codecs.encode"
