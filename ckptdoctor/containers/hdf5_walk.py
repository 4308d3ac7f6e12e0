"""The guarded walk over an HDF5 file.  Imports h5py.

Only hard links are followed, each object is visited once (by its address, so that a hard-link
graph with 2^40 paths costs as much as its objects), and no filter outside HDF5's own is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5g, h5l, h5o, h5p, h5s

from .hdf5_describe import Row, attribute_of, describe, reason_of, text_of

__all__ = ["Session"]

MAX_DEPTH = 100
MAX_LINKS = 1_000_000
MAX_NAMES = 1 << 26
"""Characters of all paths together."""
MAX_ALIASES = 1000
MAX_TOLD = 16
"""Examples of one kind of oddity that are reported by name; the rest is counted."""


# Attributes by name: Keras splits long lists into layer_names0, layer_names1, ...
_ATTRIBUTES = {b"keras_version", b"backend", b"model_config", b"training_config", b"name"}
_NUMBERED = (b"layer_names", b"weight_names")


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
        access.close()  # left to the end of the interpreter it can take it down
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
            self.told[kind].append(["/".join(map(text_of, path))[:1000], text[:1000]])

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
            self.tell("damaged", path, reason_of(error))
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
        target = ":".join(text_of(part) if isinstance(part, bytes) else str(part) for part in parts)
        self.tell("soft" if kind == h5l.TYPE_SOFT else "external", path, target)
        return False

    def _visit(self, path: tuple[bytes, ...], group: Any, address: Any) -> Any:
        """Look at what a hard link leads to; returns a group that is to be walked, else None."""
        if address in self.seen:
            first = self.seen[address]
            if first is None:
                self.tell("again", path)
            elif self.counts.get("alias", 0) < MAX_ALIASES:
                self.rows.append({**self.rows[first], "path": [text_of(part) for part in path]})
                self.paths.append(b"/".join(path))
                self.tell("alias", path)
            return None
        self.seen[address] = None
        try:
            found = h5o.open(group, path[-1])
            if isinstance(found, h5g.GroupID):
                return found
            if isinstance(found, h5d.DatasetID):
                row = describe(found)
                row["path"], row["address"] = [text_of(part) for part in path], address
                row["index"] = self.seen[address] = len(self.rows)
                self.rows.append(row)
                self.paths.append(b"/".join(path))
        except Exception as error:  # noqa: BLE001
            self.tell("damaged", path, reason_of(error))
        return None

    def _read_attributes(self, path: tuple[bytes, ...], group: Any) -> None:
        try:
            if not h5a.get_num_attrs(group):
                return
            found: list[bytes] = []
            h5a.iterate(group, found.append)
        except Exception as error:  # noqa: BLE001
            self.tell("damaged", path, reason_of(error))
            return
        kept = {}
        for name in found:
            if name in _ATTRIBUTES or name.rstrip(b"0123456789") in _NUMBERED:
                try:
                    kept[text_of(name)] = attribute_of(h5a.open(group, name))
                except Exception as error:  # noqa: BLE001
                    self.tell("damaged", (*path, name), reason_of(error))
        if kept:
            self.attributes["/".join(map(text_of, path))] = kept

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
