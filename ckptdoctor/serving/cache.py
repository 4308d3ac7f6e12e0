"""
Verdicts that are known already: kept by content identity, tool version and settings.

An entry is believed only if its checksum is right and its whole key is that of this moment: file,
version, settings, expected keys. Anything else, damage included, means that the file is scanned, so
no entry can make an unfit file fit unless this user (or root) forged it. What could not be checked
is never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .._version import __version__
from ..errors import UsageError
from ..results import Report, Wishes
from .folder import Lock, PrivateFolder, UntrustedError
from .stored import as_document, from_document

__all__ = ["Kept", "Shelf", "VerdictCache", "key_document", "opened", "patience"]

Warn = Callable[[str], None]

_SCHEMA = 1
_LOCKS = 64
"""Lock files in a folder: two checkpoints that share one are scanned one after the other."""
_PATIENCE, _SLOW = 30.0, 50e6
"""Seconds, and bytes per second: longer than a scan of that many bytes nobody waits for another."""
_POLL = (0.002, 0.05)
"""Seconds between two looks at whether the other is done: at first, and at most."""


@dataclass(frozen=True, slots=True)
class VerdictCache:
    """Where verdicts are kept, and by what a file is known again.

    Parameters
    ----------
    folder
        Made with mode 0700 where there is none; share it between replicas, not between users.
    key
        ``stat``, the default, knows a file by inode, size, its times, and samples of its content;
        a byte that changed shows even where size and mtime were put back. ``content`` takes the
        SHA-256 of all of it, each time: for copies of one file on several machines, under one path.
    wait
        Seconds to wait for another process that scans the same file, at most; by its size where
        None.

    Raises
    ------
    UsageError
        If there is no such key, or the folder has no name.
    """

    folder: str | os.PathLike[str]
    key: Literal["stat", "content"] = "stat"
    wait: float | None = None

    def __post_init__(self) -> None:
        folder: Any = self.folder
        wait: Any = self.wait
        if self.key not in ("stat", "content"):
            raise UsageError(f"expected key to be stat or content, found {self.key!r:.100}")
        if folder == "" or not isinstance(folder, str | os.PathLike):
            raise UsageError(f"expected cache to be the path of a folder, found {folder!r:.100}")
        if wait is not None and not (isinstance(wait, int | float) and wait >= 0):
            raise UsageError(f"expected wait to be seconds, found {wait!r:.100}")


@dataclass(frozen=True, slots=True)
class Kept:
    """A report, and SHA-256 by file name where it was computed."""

    report: Report
    digests: Mapping[str, str] = field(default_factory=dict)


def key_document(identity: Mapping[str, Any], wishes: Wishes, expectation: str) -> dict[str, Any]:
    """Everything that a verdict depends on, as plain data."""
    return {
        "schema": _SCHEMA,
        "tool": __version__,
        "identity": identity,
        "expectation": expectation,
        "purpose": wishes.purpose,
        "weights": wishes.weights,
        "select": list(wishes.select),
        "ignore": list(wishes.ignore),
        "tensors": list(wishes.tensors),
        "cast_to": wishes.cast_to,
        "thresholds": {code: dict(values) for code, values in wishes.thresholds.items()},
        "exempt": [[e.tensor, e.reason, list(e.codes)] for e in wishes.exempt],
        "trust_hdf5": wishes.trust_hdf5,
        "settings": wishes.settings,
    }


@contextlib.contextmanager
def opened(cache: VerdictCache, wishes: Wishes, warn: Warn) -> Iterator[Shelf | None]:
    """Open a cache for one verdict; None, and a warning, where it cannot be used."""
    place = os.fspath(cache.folder)
    try:
        folder = PrivateFolder(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        warn(f"{place}: the cache cannot be used: {reason}; the checkpoint is scanned")
        yield None
        return
    except UntrustedError as error:
        warn(f"the cache is not trusted: {error}; the checkpoint is scanned")
        yield None
        return
    with folder:
        yield Shelf(folder, wishes, warn)


class Shelf:
    """The entries of an open cache, for one set of wishes; warns once."""

    def __init__(self, folder: PrivateFolder, wishes: Wishes, warn: Warn) -> None:
        self.folder, self.wishes = folder, wishes
        self._warn, self._warned, self._kept = warn, False, False

    def warn(self, text: str) -> None:
        """Say that the cache does not do what it could, if nothing was said yet."""
        if not self._warned:
            self._warned = True
            self._warn(text)

    def get(self, key: Mapping[str, Any]) -> Kept | None:
        """Verdict for a key; None where there is none that can be believed."""
        name = _name(key)
        try:
            data = self.folder.read(f"{name}.json")
        except OSError as error:
            self.warn(f"{self.folder.path}: the cache cannot be read: {error.strerror}")
            return None
        except UntrustedError as error:
            self.warn(f"the cache is not trusted: {error}; the checkpoint is scanned")
            return None
        if data is None:
            return None
        try:
            return _read(data, key, self.wishes)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            self.warn(f"{self.folder.path}: {name}.json is damaged; the checkpoint is scanned")
            return None

    def put(self, key: Mapping[str, Any], kept: Kept) -> None:
        """Keep a verdict; a warning where that is not possible."""
        try:
            body = {"key": key, "report": as_document(kept.report), "digests": dict(kept.digests)}
            text = json.dumps(body, allow_nan=False).encode()
        except (ValueError, TypeError, RecursionError):  # an integer too long for text
            self.warn("the verdict cannot be kept in the cache: it holds numbers without measure")
            return
        head = {"schema": _SCHEMA, "sha256": hashlib.sha256(text).hexdigest()}
        try:
            self.folder.write(
                f"{_name(key)}.json", json.dumps(head).encode() + b"\n" + text + b"\n"
            )
            self._kept = True
        except OSError as error:
            self.unwritable(error)

    def unwritable(self, error: OSError) -> None:
        """Say that nothing can be kept."""
        self.warn(f"{self.folder.path}: the cache cannot be written: {error.strerror}")

    @contextlib.contextmanager
    def turn(self, key: Mapping[str, Any], seconds: float) -> Iterator[Kept | None]:
        """Wait while another scans the same; yields what it found, or None when it is our turn.

        If it keeps a verdict, that is taken. If it is killed, the next one scans and the others go
        on waiting. If it has nothing to keep (it could not check the file, or not write), or takes
        longer than ``seconds``, all others scan at once, each for itself.
        """
        name = _name(key)
        try:
            lock = self.folder.lock(f"lock-{int(name[:8], 16) % _LOCKS:02}")
        except OSError as error:
            self.unwritable(error)
            yield None
            return
        try:
            found, held = self._wait(lock, key, seconds)
            ours = held and found is None
            if ours:
                lock.leave_word("")
            try:
                yield found
            finally:
                if ours and not self._kept:
                    lock.leave_word(name)
        finally:
            lock.close()

    def _wait(self, lock: Lock, key: Mapping[str, Any], seconds: float) -> tuple[Kept | None, bool]:
        """Verdict of another, and whether the lock is ours."""
        pause, most = _POLL
        end = time.monotonic() + seconds
        waited = False
        while not lock.take():
            waited = True
            found = self.get(key)
            if found is not None:
                return found, False
            if time.monotonic() >= end:
                return None, False
            time.sleep(pause)
            pause = min(2 * pause, most)
        found = self.get(key)
        if found is None and waited and lock.word() == _name(key):
            lock.release()
            return None, False
        return found, True


def patience(nbytes: int) -> float:
    """Seconds that are worth waiting for another's scan of so many bytes."""
    return _PATIENCE + nbytes / _SLOW


def _name(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _read(data: bytes, key: Mapping[str, Any], wishes: Wishes) -> Kept:
    """Verdict of an entry; raises all kinds of errors for one that is not as it was written."""
    first, _, rest = data.partition(b"\n")
    text, _, behind = rest.partition(b"\n")
    head = json.loads(first)
    if head["schema"] != _SCHEMA or head["sha256"] != hashlib.sha256(text).hexdigest() or behind:
        raise ValueError("damaged")
    body = json.loads(text)
    # through JSON as well, so that tuples and lists are one
    if body["key"] != json.loads(json.dumps(key)):
        raise ValueError("another key")
    digests = {str(name): str(digest) for name, digest in body["digests"].items()}
    return Kept(from_document(body["report"], wishes), digests)
