"""A report on a checkpoint: known from the cache, or made by scanning, and kept if it may be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..api import look
from ..errors import ChangedError, CkptDoctorError
from ..findings import Finding, Severity, container_finding
from ..sources import FileSource
from .cache import Kept, Shelf, VerdictCache, key_document, opened, patience
from .digests import digests_of
from .identity import (
    COARSE_TICK,
    Identity,
    Looks,
    identify,
    moment,
    moved,
    put_on_disk,
    sha256_of,
    unsettled,
)
from .stored import detached
from .terms import Terms

if TYPE_CHECKING:
    from ..measure.scan import Progress
    from ..tensors import TensorTable

__all__ = ["known_or_scanned"]

_NOT_KEPT = "the verdict is not kept in the cache"
_SCANS = 3
"""At most, of files that are touched meanwhile: a link or new access rights move ctime as well."""


def known_or_scanned(
    path: str, terms: Terms, progress: Progress | None, warn: Callable[[str], None]
) -> Kept:
    """Report on a checkpoint, and SHA-256 of its files where the terms ask for it.

    Parameters
    ----------
    path, terms, progress, warn
        As for `ckptdoctor.serving.gate.check`.

    Raises
    ------
    CkptDoctorError
        If it cannot be checked.
    """
    if terms.cache is None:
        return _scanned(path, terms, progress, [])
    with opened(terms.cache, terms.wishes, warn) as shelf:
        if shelf is not None:
            known = _Cached(path, terms, terms.cache, shelf, progress).verdict()
            if known is not None:
                return known
    return _scanned(path, terms, progress, [])


def _scanned(path: str, terms: Terms, progress: Progress | None, sources: list[FileSource]) -> Kept:
    """Scan a checkpoint until nobody touches it; ``sources`` gets the files that were read.

    The scan itself sees what moves size or time of the last write; here ctime is compared, which
    no program can put back; where the file system makes it up it is left out.
    """
    for _ in range(_SCANS):
        before = _moment(path)
        sources.clear()
        made = _scan(path, terms, progress, sources)
        if before and not moved(before, _moment(path), partial(_moment, path)):
            return made
    hint = "run again when nothing writes to it"
    raise ChangedError("changed while it was being read", where=path, hint=hint)


def _moment(path: str) -> Looks:
    try:
        return moment(path)
    except CkptDoctorError:  # which reading tells better
        return ()


def _scan(path: str, terms: Terms, progress: Progress | None, sources: list[FileSource]) -> Kept:
    found: dict[str, str] = {}

    def prepared(table: TensorTable) -> TensorTable:
        from ..coverage import coverage_of  # noqa: PLC0415  (a known verdict needs none)

        sources.extend(table.files)
        if terms.expect_sha256:
            for file in table.files:
                if not file.temporary:
                    found[os.path.basename(file.name)] = sha256_of(file)  # noqa: PTH119
        more = coverage_of(table, path, terms.expect_keys)
        if terms.wishes.purpose == "serve" and not more:
            more = _nothing_to_serve(table)
        return replace(table, findings=(*table.findings, *more)) if more else table

    report = look(path, terms.wishes, progress, prepared)
    return Kept(detached(report), found)


def _nothing_to_serve(table: TensorTable) -> tuple[Finding, ...]:
    """Find that a file is an optimizer's, or holds no tensors: a server would load nothing.

    Not where tensors have a role that nobody knows: arrays of another kind may be what is served.
    """
    if any(info.role in ("model", "ema", "other") for info in table.values()):
        return ()
    roles = sorted({info.role for info in table.values()})
    what = f"only tensors of the {' and '.join(roles)}" if roles else "no tensors"
    message = f"it holds {what}, and no weights that could be served"
    return (container_finding("CK003", Severity.ERROR, message, where=table.path),)


@dataclass(frozen=True, slots=True)
class _Cached:
    """A verdict by way of an open cache."""

    path: str
    terms: Terms
    cache: VerdictCache
    shelf: Shelf
    progress: Progress | None

    def verdict(self) -> Kept | None:
        """Verdict that is known, or is made now; None where the file changed meanwhile."""
        try:
            identity, expectation = self._now()
        except ChangedError:  # or its ctime moves by itself: scanning tells which
            self.shelf.warn(f"{self.path}: {_NOT_KEPT}: it is being changed")
            return None
        key = self._key(identity, expectation)
        known = self.shelf.get(key)
        if known is None:
            seconds = self.cache.wait
            if seconds is None:
                seconds = patience(sum(file.size for file in identity.files))
            with self.shelf.turn(key, seconds) as known:
                if known is None:
                    return self._scan_and_keep(identity)
            if not self._still(identity, expectation):
                return None
        if self.terms.expect_sha256 and not known.digests:
            known = Kept(known.report, digests_of(self.path, identity))
            self.shelf.put(key, known)
        return known

    def _now(self) -> tuple[Identity, str]:
        """Everything that the verdict depends on, as it is at this moment."""
        # Windows has no ctime: there it is when the file was made
        content = self.cache.key == "content" or os.name != "posix"
        identity = identify(self.path, content=content)
        return identity, self._expectation()

    def _still(self, identity: Identity, expectation: str) -> bool:
        """Whether all of it is as it was."""
        return identify(self.path) == identity.unhashed() and self._expectation() == expectation

    def _expectation(self) -> str:
        from ..coverage import expectation_digest  # noqa: PLC0415

        return expectation_digest(self.path, self.terms.expect_keys)

    def _key(self, identity: Identity, expectation: str) -> dict[str, Any]:
        return key_document(identity.key(), self.terms.wishes, expectation)

    def _scan_and_keep(self, identity: Identity) -> Kept:
        put_on_disk(self.path, identity)
        wait = unsettled(identity)
        if wait <= 2 * COARSE_TICK:
            time.sleep(wait)
        before = time.time()
        identity, expectation = self._now()
        settled = not unsettled(identity, before)
        sources: list[FileSource] = []
        made = _scanned(self.path, self.terms, self.progress, sources)
        if settled and identity.holds(sources) and self._still(identity, expectation):
            self.shelf.put(self._key(identity, expectation), made)
        else:
            what = (
                "it is being changed" if settled else "it changes, or its times are in the future"
            )
            self.shelf.warn(f"{self.path}: {_NOT_KEPT}: {what}")
        return made
