"""The guarded HDF5 walk: what runs in the child process, on bytes that nobody trusts.

HDF5's C library gets new memory-safety faults every year, so `ckptdoctor.containers.hdf5` runs
this module in a process of its own, which gives up the right to open files, to write, to start
processes and to grow before it looks at the first byte.  What it answers is plain data (JSON and
raw element bytes), and the parent believes none of it unchecked.

Only hard links are followed, each object is visited once (by its address, so that a hard-link
graph with 2^40 paths costs as much as its objects), and no filter outside HDF5's own is run.

Importing this module imports h5py: only the child does so, or a parent that trusts the file.
"""

from __future__ import annotations

import encodings.ascii
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from h5py import (
    h5a,
    h5d,
    h5f,
    h5fd,
    h5g,
    h5l,
    h5o,
    h5p,
    h5s,
    h5t,
)

from .hdf5_blocks import CHUNK_BYTES, MAX_REPEAT, repeats

__all__ = ["Session", "main"]

_LOADED = (encodings.ascii,)
"""Codecs that h5py looks up late, when the process may open no file any more."""

MAX_DEPTH = 100
MAX_LINKS = 1_000_000
MAX_NAMES = 1 << 26
"""Characters of all paths together."""
MAX_ATTRIBUTE = 1 << 26
MAX_ALIASES = 1000
MAX_TOLD = 16
"""Examples of one kind of oddity that are reported by name; the rest is counted."""
HEADROOM = 640 << 20
"""Address space beyond what the imports took: one chunk stored, decoded and copied."""
CPU_SECONDS = 60

# Attributes by name: Keras splits long lists into layer_names0, layer_names1, ...
_ATTRIBUTES = {b"keras_version", b"backend", b"model_config", b"training_config", b"name"}
_NUMBERED = (b"layer_names", b"weight_names")
# deflate, shuffle, fletcher32, szip, nbit, scaleoffset, and h5py's lzf; others are plugins.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_FLOATS = {  # sign, exponent and mantissa places, and bias -> type
    (2, 15, 10, 5, 0, 10, 15): "float16",
    (4, 31, 23, 8, 0, 23, 127): "float32",
    (8, 63, 52, 11, 0, 52, 1023): "float64",
    (2, 15, 7, 8, 0, 7, 127): "bfloat16",
    (1, 7, 2, 5, 0, 2, 15): "float8_e5m2",
    (1, 7, 3, 4, 0, 3, 7): "float8_e4m3fn",
}
_COMPLEX = {"float16": "complex32", "float32": "complex64", "float64": "complex128"}
# Types that HDF5 only knows as opaque bytes and Keras names in an attribute `dtype`.
_NAMED = {"bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}

Row = dict[str, Any]


class _Window:
    """The file object that HDF5 reads through: positioned reads, nothing else."""

    def __init__(self, pread: Callable[[int, int], bytes], size: int) -> None:
        self.pread, self.size, self.at = pread, size, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset if whence == 0 else self.size + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        data = self.pread(self.at, max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def write(self, _: object) -> int:
        raise OSError("read only")

    def truncate(self, _: int) -> int:
        raise OSError("read only")

    def flush(self) -> None:
        pass


class Session:
    """One HDF5 file: walked once, then read by dataset and block.

    Parameters
    ----------
    pread
        Gives bytes by offset and length.
    size
        Of the file, in bytes.
    """

    def __init__(self, pread: Callable[[int, int], bytes], size: int) -> None:
        access = h5p.create(h5p.FILE_ACCESS)
        self.window = _Window(pread, size)
        access.set_fileobj_driver(h5fd.fileobj_driver, self.window)
        self.file = h5f.open(b"checkpoint", h5f.ACC_RDONLY, access)
        self.rows: list[Row] = []
        self.attributes: dict[str, dict[str, Any]] = {}
        self.told: dict[str, list[list[str]]] = {}
        self.counts: dict[str, int] = {}
        self.seen: dict[Any, int | None] = {}
        self.paths: list[bytes] = []
        self.names = 0
        self.open: tuple[int, Any] | None = None

    def close(self) -> None:
        """Let go of the file."""
        self.open = None
        self.file.close()

    def tell(self, kind: str, path: tuple[bytes, ...], text: str = "") -> None:
        """Keep an oddity: the first few by name, the rest as a number."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.told.setdefault(kind, [])) < MAX_TOLD:
            self.told[kind].append(["/".join(map(_text, path))[:1000], text[:1000]])

    def walk(self) -> dict[str, Any]:
        """Every dataset, the Keras attributes, and what was odd, as plain data."""
        root = h5g.open(self.file, b"/")
        self.seen[h5o.get_info(root).addr] = None
        todo: list[tuple[tuple[bytes, ...], Any]] = [((), root)]
        links = 0
        while todo:
            path, group = todo.pop()
            self._read_attributes(path, group)
            below = []
            for name, kind, address in self._links(path, group):
                inner = (*path, name)
                links += 1
                self.names += sum(map(len, inner))
                if links > MAX_LINKS or self.names > MAX_NAMES:
                    self.tell("budget", inner)
                    return self._result()
                found = None
                if self._is_plain(kind, name, inner, group):
                    found = self._visit(inner, group, address)
                if found is not None and len(inner) >= MAX_DEPTH:
                    self.tell("budget", inner)
                elif found is not None:
                    below.append((inner, found))
            todo += reversed(below)
        return self._result()

    def _result(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "attributes": self.attributes, "told": self.told,
            "counts": self.counts,
        }  # fmt: skip

    def _links(self, path: tuple[bytes, ...], group: Any) -> list[tuple[bytes, int, Any]]:
        found: list[tuple[bytes, int, Any]] = []

        def keep(name: bytes, info: Any) -> None:
            if len(found) < MAX_LINKS:
                found.append((name, info.type, info.u))

        try:
            group.links.iterate(keep, info=True)
        except Exception as error:  # noqa: BLE001  (h5py raises whatever HDF5's error class maps to)
            self.tell("damaged", path, _reason(error))
        return found

    def _is_plain(self, kind: int, name: bytes, path: tuple[bytes, ...], group: Any) -> bool:
        """Tell hard links from those that lead elsewhere, which are reported and left alone."""
        if name in (b"", b".") or b"/" in name:
            # HDF5 would resolve such a name as a path, through links that nobody looked at.
            self.tell("damaged", path, "a link name that is a path")
            return False
        if kind == h5l.TYPE_HARD:
            return True
        try:
            value = group.links.get_val(name)
        except Exception:  # noqa: BLE001
            value = b"?"
        parts = value if isinstance(value, tuple) else (value,)
        target = ":".join(_text(part) if isinstance(part, bytes) else str(part) for part in parts)
        self.tell("soft" if kind == h5l.TYPE_SOFT else "external", path, target)
        return False

    def _visit(self, path: tuple[bytes, ...], group: Any, address: Any) -> Any:
        """Look at what a hard link leads to; returns a group that is to be walked, else None."""
        if address in self.seen:
            first = self.seen[address]
            if first is None:
                self.tell("again", path)
            elif self.counts.get("alias", 0) < MAX_ALIASES:
                self.rows.append({**self.rows[first], "path": [_text(part) for part in path]})
                self.paths.append(b"/".join(path))
                self.tell("alias", path)
            return None
        self.seen[address] = None
        try:
            found = h5o.open(group, path[-1])
            if isinstance(found, h5g.GroupID):
                return found
            if isinstance(found, h5d.DatasetID):
                row = _describe(found)
                row["path"], row["address"] = [_text(part) for part in path], address
                row["index"] = self.seen[address] = len(self.rows)
                self.rows.append(row)
                self.paths.append(b"/".join(path))
        except Exception as error:  # noqa: BLE001
            self.tell("damaged", path, _reason(error))
        return None

    def _read_attributes(self, path: tuple[bytes, ...], group: Any) -> None:
        try:
            if not h5a.get_num_attrs(group):
                return
            found: list[bytes] = []
            h5a.iterate(group, found.append)
        except Exception as error:  # noqa: BLE001
            self.tell("damaged", path, _reason(error))
            return
        kept = {}
        for name in found:
            if name in _ATTRIBUTES or name.rstrip(b"0123456789") in _NUMBERED:
                try:
                    kept[_text(name)] = _attribute(h5a.open(group, name))
                except Exception as error:  # noqa: BLE001
                    self.tell("damaged", (*path, name), _reason(error))
        if kept:
            self.attributes["/".join(map(_text, path))] = kept

    def read(self, index: int, start: tuple[int, ...], count: tuple[int, ...]) -> bytes:
        """Bytes of a block of one dataset as stored: byte order and type are not converted."""
        row = self.rows[index]
        if self.open is None or self.open[0] != index:
            self.open = index, h5o.open(self.file, self.paths[index])
        dataset = self.open[1]
        space = dataset.get_space()
        # Array types hold several elements in each position of the dataspace.
        rank = len(space.shape)
        places = math.prod(count[:rank])
        buffer = np.empty(math.prod(count) * row["itemsize"], np.uint8)
        if rank:
            space.select_hyperslab(start[:rank], count[:rank])
            memory = h5s.create_simple((places,))
        else:
            memory = space = h5s.ALL
        dataset.read(memory, space, buffer, dataset.get_type())
        return buffer.tobytes()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _reason(error: BaseException) -> str:
    """HDF5's own words, which h5py puts into the last brackets of its message."""
    text = " ".join(str(error).split()) or type(error).__name__
    first, last = text.rfind("("), text.rfind(")")
    return text[first + 1 : last][:200] if 0 <= first < last else text[:200]


def _attribute(attribute: Any) -> Any:
    """Read a string, a list of strings or a number; other kinds hold nothing we use."""
    kind = attribute.get_type()
    if math.prod(attribute.shape) * kind.get_size() > MAX_ATTRIBUTE:
        raise ValueError("attribute larger than 64 MiB")
    if kind.get_class() not in (h5t.STRING, h5t.INTEGER, h5t.FLOAT):
        return None

    values = np.empty(attribute.shape, attribute.dtype)
    attribute.read(values)
    plain = [_plain(value) for value in values.reshape(-1).tolist()]
    return plain if values.shape else plain[0]


def _plain(value: object) -> Any:
    if isinstance(value, bytes):
        return _text(value)
    return value if isinstance(value, str | int) else str(value)


def _describe(dataset: Any) -> Row:
    """One dataset's row: where its bytes are, or why they cannot be had."""
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    row: Row = _type(dataset.get_type())
    extra = row.pop("dims", ())
    if row["dtype"] == "opaque":
        _name_opaque(row, dataset)
    if plist.get_external_count():
        row["layout"], row["note"] = "external", _text(plist.get_external(0)[0])
        row["shape"] = [*dataset.get_space().shape, *extra]
        return row
    if layout == h5d.VIRTUAL:
        # The space of a virtual dataset may depend on files outside: it is not asked for.
        count = min(plist.get_virtual_count(), MAX_TOLD)
        files = {str(plist.get_virtual_filename(i)) for i in range(count)}
        row["layout"], row["shape"] = "virtual", [0]
        row["note"] = ", ".join(sorted(files - {"."}))
        return row
    space = dataset.get_space()
    null = space.get_simple_extent_type() == h5s.NULL
    row["shape"] = [0] if null else [*space.shape, *extra]
    row["stored"] = dataset.get_storage_size()
    if layout == h5d.CHUNKED:
        _describe_chunks(row, dataset, plist, [*extra])
    elif layout == h5d.COMPACT:
        row["layout"] = "compact"
    else:
        row["layout"], row["offset"] = "contiguous", dataset.get_offset()
    return row


def _describe_chunks(row: Row, dataset: Any, plist: Any, extra: list[int]) -> None:
    chunks, shape, itemsize = [*plist.get_chunk(), *extra], row["shape"], row["itemsize"]
    row["layout"], row["chunks"] = "chunked", chunks
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    foreign = [f for f in filters if f[0] not in _FILTERS]
    places = (-(-s // c) for s, c in zip(shape, chunks, strict=True))
    expected = math.prod(places)
    if foreign:
        row["refused"] = f"filter {foreign[0][0]} is no part of HDF5"
    elif [f[0] for f in filters].count(1) > 1:
        row["refused"] = "compressed twice"
    elif math.prod(chunks) * itemsize > CHUNK_BYTES:
        row["refused"] = f"chunks of {math.prod(chunks) * itemsize} bytes, at most {CHUNK_BYTES}"
    elif expected and row["stored"]:
        row["missing"] = max(0, expected - dataset.get_num_chunks())
        row["places"] = expected
        if repeats(tuple(shape), tuple(chunks), itemsize) > MAX_REPEAT:
            row["refused"] = "chunks across rows too long to decode"
    row["filters"] = [f[0] for f in filters]


def _type(kind: Any) -> Row:
    """Our name for an element type, its width, and whether its bytes are reversed."""
    size, group = kind.get_size(), kind.get_class()
    row: Row = {"dtype": "opaque", "itemsize": size, "big": False}
    if group in (h5t.INTEGER, h5t.BITFIELD):
        ordered = kind.get_order() in (h5t.ORDER_LE, h5t.ORDER_BE) or size == 1
        if size in (1, 2, 4, 8) and kind.get_precision() == 8 * size and ordered:
            signed = group == h5t.INTEGER and kind.get_sign() == h5t.SGN_2
            row["dtype"] = f"{'' if signed else 'u'}int{8 * size}"
            row["big"] = kind.get_order() == h5t.ORDER_BE and size > 1
    elif group == h5t.FLOAT:
        if kind.get_order() in (h5t.ORDER_LE, h5t.ORDER_BE):
            row["dtype"] = _FLOATS.get((size, *kind.get_fields(), kind.get_ebias()), "opaque")
            row["big"] = kind.get_order() == h5t.ORDER_BE and size > 1
    elif group == h5t.ENUM:
        row = _type(kind.get_super())
        members = {
            kind.get_member_name(i): kind.get_member_value(i)
            for i in range(min(kind.get_nmembers(), 3))
        }
        if members == {b"FALSE": 0, b"TRUE": 1} and size == 1:
            row["dtype"] = "bool"
    elif group == h5t.COMPOUND:
        _complex(kind, row)
    elif group == h5t.ARRAY:
        inner, dims = _type(kind.get_super()), kind.get_array_dims()
        if inner["dtype"] not in ("opaque", "vlen", "string") and "dims" not in inner:
            return {**inner, "dims": dims}
    elif group == h5t.STRING:
        row["dtype"] = "vlen" if kind.is_variable_str() else "string"
    elif group in (h5t.VLEN, h5t.REFERENCE):
        row["dtype"] = "vlen"
    return row


def _complex(kind: Any, row: Row) -> None:
    if kind.get_nmembers() != 2 or [kind.get_member_name(i) for i in (0, 1)] != [b"r", b"i"]:
        if any(
            _type(kind.get_member_type(i))["dtype"] == "vlen" for i in range(kind.get_nmembers())
        ):
            row["dtype"] = "vlen"
        return
    real, imaginary = (_type(kind.get_member_type(i)) for i in (0, 1))
    packed = kind.get_member_offset(0) == 0 and kind.get_member_offset(1) == real["itemsize"]
    if real == imaginary and packed and row["itemsize"] == 2 * real["itemsize"]:
        row["dtype"] = _COMPLEX.get(real["dtype"], "opaque")
        row["big"] = real["big"]


def _name_opaque(row: Row, dataset: Any) -> None:
    if row["itemsize"] in (1, 2) and h5a.exists(dataset, b"dtype"):
        name = _attribute(h5a.open(dataset, b"dtype"))
        if isinstance(name, str) and _NAMED.get(name) == row["itemsize"]:
            row["dtype"] = name


# --- the process ---------------------------------------------------------------------------------


def _give_up_rights() -> None:
    """Limit what the process may still do to reading its open file and answering.

    With no descriptor to spare, HDF5 can open no other file, socket or plugin, whatever the bytes
    made of it.  The parent's clock ends it in any case; the CPU limit is for a lost parent.
    """
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        used = 1 << 30
    limits = [
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_AS, used + HEADROOM),
    ]  # fmt: skip
    for limit, value in limits:
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):
            continue  # macOS knows no limit of address space


def _renew_clock() -> None:
    try:
        import resource  # noqa: PLC0415
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, -1))


def _answer(header: dict[str, Any], payload: bytes = b"") -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + payload
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _requests() -> Iterator[list[str]]:
    pending = b""
    while True:
        line, found, rest = pending.partition(b"\n")
        if found:
            pending = rest
            yield line.decode().split()
            continue
        more = os.read(0, 1 << 16)
        if not more:
            return
        pending += more


def _serve(fd: int) -> None:
    session: Session | None = None
    for verb, *numbers in _requests():
        _renew_clock()
        try:
            if verb == "walk":
                base, size = map(int, numbers)
                session = Session(_reader(fd, base), size)
                _answer(session.walk())
            elif session is not None:
                index, rank, *block = map(int, numbers)
                data = session.read(index, tuple(block[:rank]), tuple(block[rank:]))
                _answer({"bytes": len(data)}, data)
        except MemoryError:
            _answer({"error": "out of memory"})
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to the parent as text)
            _answer({"error": _reason(error)})


def _reader(fd: int, base: int) -> Callable[[int, int], bytes]:
    if hasattr(os, "pread"):
        return lambda offset, length: os.pread(fd, length, base + offset)

    def pread(offset: int, length: int) -> bytes:
        os.lseek(fd, base + offset, os.SEEK_SET)
        return os.read(fd, length)

    return pread


def main(path: str = "") -> None:
    """Serve requests on standard input for the file open as descriptor 3 (or, on Windows, ``path``).

    Requests are lines: ``walk BASE SIZE`` and ``read INDEX RANK START... COUNT...``.  Answers are
    a length (8 bytes, little-endian), that much JSON, and for ``read`` the raw bytes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if path:
        import msvcrt  # noqa: PLC0415

        for stream in (0, 1):
            msvcrt.setmode(stream, os.O_BINARY)  # type: ignore[attr-defined]
        fd = os.open(path, os.O_RDONLY | os.O_BINARY)  # type: ignore[attr-defined]
    else:
        fd = 3
        os.closerange(4, 1 << 16)  # whatever the parent's other libraries leaked
    stat = os.fstat(fd)
    _answer({"ready": True, "file": [stat.st_dev, stat.st_ino]})
    _give_up_rights()
    _serve(fd)
    os._exit(0)  # taking HDF5 down in order takes longer than this process lived
