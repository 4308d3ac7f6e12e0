"""An HDF5 file without some of its groups, written anew.  Imports h5py.

Datasets are copied by HDF5 as they are stored, without decoding them; groups are made with the
properties they had.  Two names of one object stay one object, and links stay links.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5t

from .hdf5_describe import text_of
from .hdf5_edit_attribute import attributes, copy_attributes
from .hdf5_edit_window import Declined, Inbox, Window, opened
from .hdf5_process import magic_offset

__all__ = ["links_of", "remove"]

MAX_DEPTH = 1000
_BLOCK = 1 << 20


def remove(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> int:  # noqa: ARG001
    """Copy all but some groups; returns the number of objects copied."""
    source, target = windows
    start = _start_of(source)
    with opened(source) as old:
        root = h5g.open(old, b"/")
        create = old.get_create_plist()
        _keep_order(root, create)
        with opened(target, create, _oldest_format(source, start)) as new:
            copied = _Copy(new, job["without"])
            copied.tree(root, h5g.open(new, b"/"))
    for first in range(0, start, _BLOCK):  # what stands before the HDF5 data: the user block
        block = memoryview(bytearray(min(_BLOCK, start - first)))
        source.seek(first)
        source.readinto(block)
        target.seek(first)
        target.write(block)
    return copied.count


def _start_of(window: Window) -> int:
    def pread(offset: int, length: int) -> bytes:
        buffer = memoryview(bytearray(length))
        window.seek(offset)
        window.readinto(buffer)
        return bytes(buffer)

    return max(0, magic_offset(pread(0, 8), pread, window.size))


def _oldest_format(window: Window, start: int) -> int:
    """Which version of the format new objects have to follow, as in the source."""
    version = memoryview(bytearray(1))
    window.seek(start + 8)
    window.readinto(version)
    found: int = {2: h5f.LIBVER_V18, 3: h5f.LIBVER_V110}.get(version[0], h5f.LIBVER_EARLIEST)
    return found


def links_of(group: Any) -> list[tuple[bytes, Any]]:
    """Names and facts of a group's links, in the order in which they were made or lie in the file."""
    links: list[tuple[bytes, Any]] = []
    group.links.iterate(lambda name, info: links.append((name, _Facts(info))), info=True)
    tracked = all(facts.order is not None for _, facts in links)

    def rank(link: tuple[bytes, _Facts]) -> tuple[int, int]:
        facts = link[1]
        if tracked and facts.order is not None:
            return 0, facts.order
        return int(facts.type != h5l.TYPE_HARD), facts.address

    return sorted(links, key=rank)


class _Facts:
    """What HDF5 says about one link, kept: it hands out one object for all of them."""

    __slots__ = ("address", "characters", "order", "type")

    def __init__(self, info: Any) -> None:
        self.type: int = info.type
        self.address: int = info.u if info.type == h5l.TYPE_HARD else 0
        self.order: int | None = info.corder if info.corder_valid else None
        self.characters: int = info.cset


class _Copy:
    def __init__(self, new: Any, without: Sequence[str]) -> None:
        self.new = new
        self.without = set(without)
        self.made: dict[int, bytes] = {}
        self.count = 0

    def tree(self, old: Any, new: Any) -> None:
        """Copy everything below a group, one group after the other."""
        self.made[h5o.get_info(old).addr] = b"/"
        _copy_facts(old, new)
        open_: list[tuple[bytes, Any, Any, Iterator[tuple[bytes, Any]]]] = [
            (b"", old, new, iter(links_of(old)))
        ]
        while open_:
            path, old, new, links = open_[-1]
            for name, facts in links:
                inner = path + b"/" + name
                if text_of(inner[1:]) in self.without:
                    continue
                self.count += 1
                below = self._copy(inner, name, facts, old, new)
                if below is not None:
                    if len(open_) > MAX_DEPTH:
                        raise Declined("unsupported", f"groups deeper than {MAX_DEPTH}")
                    open_.append((inner, *below, iter(links_of(below[0]))))
                    break
            else:
                open_.pop()

    def _copy(
        self, path: bytes, name: bytes, facts: _Facts, old: Any, new: Any
    ) -> tuple[Any, Any] | None:
        """Copy one link, and what it leads to where that is no group; returns old and new group."""
        if name in (b"", b".") or b"/" in name:
            raise Declined("unsupported", f"a link name that is a path: {text_of(path)[:200]!r}")
        create = h5p.create(h5p.LINK_CREATE)
        create.set_char_encoding(facts.characters)
        if facts.type == h5l.TYPE_SOFT:
            new.links.create_soft(name, old.links.get_val(name), create)
        elif facts.type == h5l.TYPE_EXTERNAL:
            file, target = old.links.get_val(name)
            new.links.create_external(name, file, target, create)
        elif facts.type != h5l.TYPE_HARD:
            raise Declined("unsupported", f"a link of a kind of its own: {text_of(path)[:200]!r}")
        elif facts.address in self.made:
            root = h5g.open(self.new, b"/")
            new.links.create_hard(name, root, self.made[facts.address], create)
        else:
            self.made[facts.address] = path
            return self._copy_object(path, name, create, old, new)
        return None

    def _copy_object(
        self, path: bytes, name: bytes, create: Any, old: Any, new: Any
    ) -> tuple[Any, Any] | None:
        thing = h5o.open(old, name)
        kinds = [(attribute.get_type(), "an attribute") for _, attribute in attributes(thing)]
        if isinstance(thing, h5d.DatasetID):
            kinds.append((thing.get_type(), "its data"))
        for kind, what in kinds:
            if kind.detect_class(h5t.REFERENCE) or kind.committed():
                text = f"{text_of(path)[:200]!r}: {what} refers to other objects: cannot be moved"
                raise Declined("unsupported", text)
        if not isinstance(thing, h5g.GroupID):
            h5o.copy(old, name, new, name, lcpl=create)
            return None
        # Its own list of properties holds the addresses of its links, where it keeps their order.
        properties = h5p.create(h5p.GROUP_CREATE)
        _keep_order(thing, properties)
        made = h5g.create(new, name, create, properties)
        _copy_facts(thing, made)
        return thing, made


def _keep_order(old: Any, properties: Any) -> None:
    """Have a new group keep the order of links and attributes where the old one does."""
    found = old.get_create_plist()
    properties.set_link_creation_order(found.get_link_creation_order())
    properties.set_attr_creation_order(found.get_attr_creation_order())
    properties.set_attr_phase_change(*found.get_attr_phase_change())
    properties.set_obj_track_times(found.get_obj_track_times())


def _copy_facts(old: Any, new: Any) -> None:
    copy_attributes(old, new)
    comment = old.get_comment(b".")  # h5o.get_comment gives what lay in its buffer
    if comment:
        new.set_comment(b".", comment)
