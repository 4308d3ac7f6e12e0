"""
Which bytes a verdict is about: the identity by which a cache knows a checkpoint again.

A file is known by inode, size, time of its last write (mtime), time of its last change (ctime) and
a hash of samples. Programs can put size and mtime back, but ctime is the kernel's own: every write,
truncation, rename over it and setting of its times moves it, and no call sets it. That is why a
changed byte is seen even where size and mtime were restored. The samples are for file systems that
make ctime up (some FUSE and object-store mounts): they see a file that was written anew. Where ctime
moves by itself, files are scanned (see `moved`), and no verdict is kept. Three things get past all
of it: setting the machine's clock back to the nanosecond, writing to the disk below the file
system, and writing through a mapping (``mmap``) of a file that is in memory alone (tmpfs), whose
ctime no such write moves. On a disk, a page of a mapping that was written to before takes further
writes in silence until it is on the disk: see `put_on_disk`. Where any of it matters there is the
full hash.

The device is left out: replicas mount one volume under different numbers.

A clock that ticks every few milliseconds gives two writes between two ticks the same ctime, so a
verdict on a file that changed within the last tick proves nothing about the next moment (git has
the same problem with its index). Before such a file is scanned, `unsettled` says how long to wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ChangedError, CkptDoctorError
from ..sources import FileSource

__all__ = [
    "FileState",
    "Identity",
    "Looks",
    "identify",
    "moment",
    "moved",
    "put_on_disk",
    "sha256_of",
    "unsettled",
]

FINE_TICK, COARSE_TICK = 0.1, 2.0
"""
Seconds after which another write surely has another ctime. The coarsest tick of a Linux kernel is
10 ms; file systems whose times are whole seconds tick once a second, FAT every two.
"""

_PAUSE = 1.1
"""Seconds after which FUSE asks for times again, by default, and whole seconds have moved."""

_Times = tuple[int, int, int, int]
Looks = tuple[_Times, ...]
"""Inode, size, mtime and ctime of each file."""

_ENDS = 1 << 16
_SAMPLE, _SAMPLES = 1 << 12, 32
"""64 KiB at each end and 32 windows of 4 KiB between: 0.3 ms of a file in memory."""

_BLOCK = 1 << 20
_MAX_INDEX = 1 << 28


@dataclass(frozen=True, slots=True)
class FileState:
    """One file as it is now; times in nanoseconds, ``sha256`` empty where nobody asked for it."""

    name: str
    inode: int
    size: int
    mtime: int
    ctime: int
    sample: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything on disk that a verdict depends on.

    Parameters
    ----------
    path
        As the caller wrote it: reports repeat it.
    files
        The file, or the index and its shards.
    absent
        Shards that are not there, or cannot be opened.
    beside
        Other names in the folder that findings tell of.
    """

    path: str
    files: tuple[FileState, ...]
    absent: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def key(self) -> dict[str, Any]:
        """Document that is equal for the same content only.

        With full hashes they count alone, so that copies on other machines are known too, under the
        same path: what a report tells repeats it.
        """
        return {
            "path": self.path,
            "files": [
                [f.name, f.size, f.sha256]
                if f.sha256
                else [f.name, f.inode, f.size, f.mtime, f.ctime, f.sample]
                for f in self.files
            ],
            "absent": list(self.absent),
            "beside": list(self.beside),
        }

    def unhashed(self) -> Identity:
        """Return the same without full hashes."""
        return replace(self, files=tuple(replace(f, sha256="") for f in self.files))

    def holds(self, sources: Iterable[FileSource]) -> bool:
        """Whether every file that was read is one of these, in the same state."""
        known = {(f.inode, f.size, f.mtime) for f in self.files}
        return all(
            (s.identity.inode, s.identity.size, s.identity.mtime) in known
            for s in sources
            if not s.temporary
        )


def identify(path: str, *, content: bool = False) -> Identity:
    """Tell which bytes a path leads to at this moment.

    Parameters
    ----------
    path
        A file, a folder that holds one checkpoint, or the index of a sharded one.
    content
        Hash every file to its end, too: 0.6 s per GiB where nothing else slows it.

    Raises
    ------
    CkptDoctorError
        If there is nothing that could be opened.
    """
    file, beside = _file_of(path)
    source = FileSource(file)
    try:
        shards = _shards(source)
        files, absent = [_state(source, content=content)], []
    finally:
        source.close()
    folder = os.path.dirname(file)  # noqa: PTH120  (the name as it is)
    for shard in shards:
        state = _shard(os.path.join(folder, shard), content=content)  # noqa: PTH118
        files += [state] if state else []
        absent += [] if state else [shard]
    if shards:
        beside += _family(folder)
    return Identity(path, tuple(files), tuple(absent), beside)


def moment(path: str) -> Looks:
    """Inode, size and times of every file that a path leads to, in one look at each.

    Equal before and after reading, no system call wrote to them meanwhile: also none that put the
    time of the last write back.

    Raises
    ------
    CkptDoctorError
        If there is nothing that could be opened.
    """
    file, _ = _file_of(path)
    source = FileSource(file)
    try:
        shards = _shards(source)
        found = [_times(os.fstat(source.fd))]
    finally:
        source.close()
    folder = os.path.dirname(file)  # noqa: PTH120  (the name as it is)
    for shard in shards:
        with contextlib.suppress(OSError):  # one that is absent is missing from the tuple, too
            found.append(_times(os.stat(os.path.join(folder, shard))))  # noqa: PTH116, PTH118
    return tuple(found)


def moved(before: Looks, after: Looks, look: Callable[[], Looks]) -> bool:
    """Whether files were written to between two looks at them.

    Parameters
    ----------
    before, after
        Inode, size, mtime and ctime of each file, in this order.
    look
        Looks once more: a ctime that moves while nobody reads is made up by the file system, and
        the rest counts alone.  Asked only where nothing but ctime differs, and then in no hurry.
    """
    if before == after or _but_ctime(before) != _but_ctime(after):
        return before != after
    again = look()
    if again == after:
        time.sleep(_PAUSE)
        again = look()
    return again == after or _but_ctime(again) != _but_ctime(after)


def _but_ctime(looks: Looks) -> list[tuple[int, ...]]:
    return [times[:-1] for times in looks]


def put_on_disk(path: str, identity: Identity) -> None:
    """Have the kernel write what is still in memory alone, so that every later write moves ctime.

    The first write to a page of a mapping moves ctime, the next ones do not until the page is
    written out. Nothing to do, 0.1 ms, for a file that lies on the disk already; one that was just
    written costs what the disk takes for it.
    """
    folder = os.path.dirname(_file_of(path)[0])  # noqa: PTH120  (the name as it is)
    for file in identity.files:
        with contextlib.suppress(CkptDoctorError, OSError):  # who reads it will say so
            source = FileSource(os.path.join(folder, file.name))  # noqa: PTH118
            try:
                os.fsync(source.fd)
            finally:
                source.close()


def _file_of(path: str) -> tuple[str, tuple[str, ...]]:
    """File that a path leads to, and what there is to say about others beside it."""
    if Path(path).is_dir():
        from ..formats.folder import find_checkpoint  # noqa: PLC0415  (few name a folder)

        file, notes = find_checkpoint(path)
        return file, tuple(note.message for note in notes)
    return path, ()


def _shards(source: FileSource) -> list[str]:
    """Plain file names that an index gives, sorted; empty for what is no index."""
    if source.pread(0, min(64, source.size)).lstrip()[:1] != b"{" or source.size > _MAX_INDEX:
        return []
    from ..formats.sharded import MAX_SHARDS  # noqa: PLC0415  (few files are an index)

    try:
        names = json.loads(source.pread(0, source.size))["weight_map"].values()
        plain = sorted({name for name in names if name and "/" not in name and "\0" not in name})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []  # whoever reads it will say what it is
    return plain if len(plain) <= MAX_SHARDS else []


def _shard(path: str, *, content: bool) -> FileState | None:
    try:
        source = FileSource(path)
    except CkptDoctorError:
        return None
    try:
        return _state(source, content=content)
    finally:
        source.close()


def _family(folder: str) -> tuple[str, ...]:
    """Names that look like shards: one that no index names is a finding."""
    try:
        return tuple(sorted(name for name in os.listdir(folder or ".") if "-of-" in name))  # noqa: PTH208
    except OSError:
        return ()


def _state(source: FileSource, *, content: bool) -> FileState:
    before = os.fstat(source.fd)
    sample = _hashed(source, _samples(source.size))
    whole = sha256_of(source) if content else ""
    after = os.fstat(source.fd)
    if _times(before) != _times(after):
        hint = "run again when nothing writes to it"
        raise ChangedError("changed while it was being read", where=source.name, hint=hint)
    name = os.path.basename(source.name)  # noqa: PTH119  (the name as it is)
    return FileState(name, *_times(after), sample, whole)


def _times(found: os.stat_result) -> _Times:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _samples(size: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths of the samples of a file; a small one is taken whole."""
    if size <= 2 * _ENDS + _SAMPLES * _SAMPLE:
        yield 0, size
        return
    yield 0, _ENDS
    for number in range(1, _SAMPLES + 1):
        yield (size - _SAMPLE) * number // (_SAMPLES + 1), _SAMPLE
    yield size - _ENDS, _ENDS


def sha256_of(source: FileSource) -> str:
    """SHA-256 of a file, in hexadecimal."""
    blocks = ((at, min(_BLOCK, source.size - at)) for at in range(0, source.size, _BLOCK))
    return _hashed(source, blocks)


def _hashed(source: FileSource, parts: Iterable[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BLOCK, source.size)))
    for offset, length in parts:
        source.pread_into(offset, buffer[:length])
        digest.update(buffer[:length])
    return digest.hexdigest()


def unsettled(identity: Identity, now: float | None = None) -> float:
    """Seconds until another write to one of the files would surely show in its ctime.

    Parameters
    ----------
    identity
        Of the files.
    now
        Seconds since the epoch; the clock's where None.
    """
    clock = time.time() if now is None else now
    waits = [
        tick + file.ctime / 1e9 - clock
        for file in identity.files
        for tick in [FINE_TICK if file.ctime % 10**9 else COARSE_TICK]
    ]
    return max(0.0, *waits) if waits else 0.0
