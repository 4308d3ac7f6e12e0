"""On what terms a checkpoint passes: every argument of preflight, checked before any file is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ..config import Settings, load_settings
from ..errors import UsageError
from ..findings import Severity
from ..results import FailOn, Wishes
from ..selection import check_wishes
from .cache import VerdictCache
from .digests import Expected, parsed

__all__ = ["ExpectKeys", "Terms"]

ExpectKeys = Sequence[str] | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a checkpoint passes; see `ckptdoctor.preflight`."""

    wishes: Wishes
    fail_on: FailOn = "error"
    expect_sha256: Expected | None = None
    expect_keys: ExpectKeys | None = None
    cache: VerdictCache | None = None
    allow_unsafe_load: bool = False

    @classmethod
    def of(
        cls,
        *,
        config: str | os.PathLike[str] | Settings | None = None,
        fail_on: Any = "error",
        expect_sha256: Any = None,
        expect_keys: Any = None,
        cache: Any = None,
        allow_unsafe_load: Any = False,
        **wishes: Any,
    ) -> Terms:
        """Check every argument as far as it can be without the file.

        Raises
        ------
        UsageError
            If one is wrong.
        """
        if fail_on not in get_args(FailOn):
            message = f"expected fail_on to be error, warning or never, found {fail_on!r:.100}"
            raise UsageError(message)
        if not isinstance(allow_unsafe_load, bool):  # the text "false" is true
            message = (
                f"expected allow_unsafe_load to be True or False, found {allow_unsafe_load!r:.100}"
            )
            raise UsageError(message)
        if config is None or isinstance(config, Settings):
            settings = config or Settings()
        else:
            settings = load_settings(config)
        wishes["purpose"] = wishes.get("purpose") or "serve"
        wishes["cast_to"] = wishes.get("cast_to") or ""
        made = settings.wishes(**wishes)
        check_wishes(made)
        return cls(
            wishes=made,
            fail_on=fail_on,
            expect_sha256=parsed(expect_sha256),
            expect_keys=_names(expect_keys),
            cache=cache
            if cache is None or isinstance(cache, VerdictCache)
            else VerdictCache(cache),
            allow_unsafe_load=allow_unsafe_load,
        )

    @property
    def limit(self) -> Severity | None:
        """Lowest severity that is unfit; None for none."""
        return None if self.fail_on == "never" else Severity[self.fail_on.upper()]


def _names(given: Any) -> ExpectKeys | None:
    """Names as they were given, once and for all: they are asked for twice where there is a cache."""
    if given is None or isinstance(given, str | os.PathLike):
        return given
    try:
        names = () if isinstance(given, bytes) else tuple(given)
    except TypeError:
        names = ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"expected expect_keys to be names or a file, found {given!r:.100}")
    return names
