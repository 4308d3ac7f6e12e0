"""
Settings of a project: ``[tool.ckptdoctor]`` of pyproject.toml, or ckptdoctor.toml.

They are looked for from the working folder upwards, never beside the checkpoint: whoever made that
file must have no say in how it is judged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from stat import S_ISREG
from typing import Any, get_args

from .errors import UsageError
from .hints import shown, suggestion
from .results import Exemption, FailOn, Purpose, Weights, Wishes

__all__ = ["Settings", "find_settings", "load_settings", "settings_of"]

_OWN, _SHARED = "ckptdoctor.toml", "pyproject.toml"
_MAX_BYTES = 1 << 20
"""No one writes a megabyte of settings; reading more of an endless file would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a file of settings says; None or empty where it says nothing.

    Parameters
    ----------
    file
        Where they were read from; empty where there is no such file.
    purpose, weights, fail_on, select, ignore
        As the options of ``ckptdoctor inspect``.
    thresholds
        By code of the rule, and name of the threshold.
    exempt
        Findings that someone accepts, with the reason.
    """

    file: str = ""
    purpose: Purpose | None = None
    weights: Weights | None = None
    fail_on: FailOn | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    exempt: tuple[Exemption, ...] = ()

    def wishes(
        self,
        *,
        purpose: Purpose | None = None,
        weights: Weights | None = None,
        select: Sequence[str] | None = None,
        ignore: Sequence[str] | None = None,
        thresholds: Mapping[str, Mapping[str, float]] | None = None,
        exempt: Sequence[Exemption] = (),
        **others: Any,
    ) -> Wishes:
        """Wishes for an inspection: what the caller gives beats the settings.

        A ``select`` that is given sets both lists of codes aside: what is asked for by name is
        looked for, even where the settings ignore it.

        Examples
        --------
        >>> settings = Settings(select=("NF",), ignore=("NF003",), purpose="serve")
        >>> settings.wishes().ignore, settings.wishes(select=["BN"]).ignore
        (('NF003',), ())
        """
        if ignore is None:
            ignore = self.ignore if select is None else ()
        return Wishes(
            purpose=purpose or self.purpose or "any",
            weights=weights or self.weights or "auto",
            select=self.select if select is None else select,
            ignore=ignore,
            thresholds=_merged(self.thresholds, thresholds or {}),
            exempt=(*self.exempt, *exempt),
            settings=self.file,
            **others,
        )


def _merged(
    settings: Mapping[str, Mapping[str, float]], given: Mapping[str, Mapping[str, float]]
) -> Mapping[str, Mapping[str, float]]:
    if not settings or not given:
        return settings or given
    from .selection import rule_of  # noqa: PLC0415  (it imports the rules)

    merged = {code: dict(values) for code, values in settings.items()}
    for word, values in given.items():
        merged.setdefault(rule_of(word).code, {}).update(values)
    return merged


def find_settings(folder: str | os.PathLike[str] | None = None) -> Settings:
    """Read the settings that hold in a folder: those of the nearest file with some.

    A ckptdoctor.toml wins over the pyproject.toml beside it; a pyproject.toml without
    ``[tool.ckptdoctor]`` is passed by.  Without any file this takes some ten microseconds.

    Parameters
    ----------
    folder
        Where to begin; the working folder where None.

    Raises
    ------
    UsageError
        If the file cannot be read, or says what means nothing.
    """
    try:
        here = os.path.abspath(folder or os.getcwd())  # noqa: PTH100, PTH109  (pathlib takes 10x)
    except OSError:  # a working folder that was deleted
        return Settings()
    above = here
    while True:
        for name in (_OWN, _SHARED):
            path = os.path.join(above, name)  # noqa: PTH118  (as above)
            told = name if above == here else path
            text = _text(path, told) if _is_file(path) else None
            if text is None or (name == _SHARED and "ckptdoctor" not in text):
                continue
            table = _table(text, told, name)
            if table is not None:
                return _settings(table, told, name)
        parent = os.path.dirname(above)  # noqa: PTH120  (as above)
        if parent == above:
            return Settings()
        above = parent


def settings_of(file: str | None) -> Settings:
    """Load the settings a command was given, else those of the project it is run in."""
    return find_settings() if file is None else load_settings(file)


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read the settings of one file.

    Parameters
    ----------
    path
        A pyproject.toml, or a file of any other name that is written as ckptdoctor.toml is.

    Raises
    ------
    UsageError
        If it cannot be read, or says what means nothing.
    """
    file = os.fspath(path)
    name = _SHARED if os.path.basename(file) == _SHARED else _OWN  # noqa: PTH119  (as above)
    text = _text(file, file)
    table = _table(text, file, name)
    if table is None:
        raise UsageError("it has no table [tool.ckptdoctor]", where=file)
    return _settings(table, file, name)


def _is_file(path: str) -> bool:
    try:
        return S_ISREG(os.stat(path).st_mode)  # noqa: PTH116  (as above)
    except OSError:  # not there, or in a folder that may not be searched
        return False


def _text(path: str, told: str) -> str:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123  (as above)
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"expected settings, found more than {_MAX_BYTES:,} bytes", where=told)
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"expected UTF-8, found byte {error.start}", where=told) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        reason = getattr(error, "strerror", None) or str(error)
        hint = f"--config {os.devnull} does without"
        raise UsageError(f"cannot be read: {reason}", where=told or "''", hint=hint) from None


def _table(text: str, told: str, name: str) -> dict[str, Any] | None:
    """Return the table of settings in a file; None where a pyproject.toml has none."""
    import tomllib  # noqa: PLC0415  (5 ms)

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise UsageError(f"expected TOML: {reason:.200}", where=told) from None
    if name == _OWN:
        return document
    tool = document.get("tool")
    table = tool.get("ckptdoctor") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(
            f"expected a table, found {shown(table)}", where=f"{told}: tool.ckptdoctor"
        )
    return table


def _settings(table: dict[str, Any], told: str, name: str) -> Settings:
    reader = _Reader(told, "tool.ckptdoctor." if name == _SHARED else "")
    return reader.settings(table)


class _Reader:
    """Turns tables into settings; whatever it does not know is an error that says where."""

    def __init__(self, file: str, prefix: str) -> None:
        self.file, self.prefix = file, prefix

    def place(self, key: str) -> str:
        return f"{self.file}: {self.prefix}{key}"

    @contextlib.contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Give an error of what is looked up inside its place in the file."""
        try:
            yield
        except UsageError as error:
            raise UsageError(error.message, where=self.place(key), hint=error.hint) from None

    def settings(self, table: dict[str, Any]) -> Settings:
        known = ("select", "ignore", "fail-on", "purpose", "weights", "thresholds", "ignores")
        if not self.prefix and "tool" in table:
            hint = "without [tool.ckptdoctor], which is for pyproject.toml"
            raise UsageError(
                "expected the settings themselves", where=self.place("tool"), hint=hint
            )
        self.check_keys(table, known, "")
        return Settings(
            file=self.file,
            purpose=self.choice(table, "purpose", Purpose),
            weights=self.choice(table, "weights", Weights),
            fail_on=self.choice(table, "fail-on", FailOn),
            select=self.codes(table, "select", "select"),
            ignore=self.codes(table, "ignore", "ignore"),
            thresholds=self.thresholds(table.get("thresholds", {})),
            exempt=self.exemptions(table.get("ignores", [])),
        )

    def check_keys(self, table: Mapping[str, Any], known: Sequence[str], inside: str) -> None:
        for key in table:
            if key not in known:
                hint = suggestion(key, known) or f"there are {', '.join(known)}"
                where = self.place(f"{inside}{key!r:.60}")
                raise UsageError("no such setting", where=where, hint=hint)

    def choice(self, table: Mapping[str, Any], key: str, literal: Any) -> Any:
        known = get_args(literal)
        if key not in table or table[key] in known:
            return table.get(key)
        message = f"expected {', '.join(known[:-1])} or {known[-1]}, found {shown(table[key])}"
        hint = suggestion(table[key], known) if isinstance(table[key], str) else ""
        raise UsageError(message, where=self.place(key), hint=hint)

    def codes(self, table: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            message = f"expected a list of codes or names, found {shown(value)}"
            raise UsageError(message, where=self.place(place))
        if value:
            from .selection import prefixes  # noqa: PLC0415  (as above)

            with self.at(place):
                prefixes(value)
        return tuple(value)

    def thresholds(self, tables: Any) -> dict[str, dict[str, float]]:
        if not isinstance(tables, dict):
            message = f"expected a table for each rule, found {shown(tables)}"
            raise UsageError(message, where=self.place("thresholds"))
        thresholds: dict[str, dict[str, float]] = {}
        for word, values in tables.items():
            from .selection import rule_of, threshold_of  # noqa: PLC0415  (as above)

            place = f"thresholds.{word[:60]}"
            with self.at(place):
                rule = rule_of(word)
            if not isinstance(values, dict):
                message = f"expected thresholds by name, found {shown(values)}"
                raise UsageError(message, where=self.place(place))
            known = thresholds.setdefault(rule.code, {})
            for name, value in values.items():
                with self.at(f"{place}.{name[:60]}"):
                    if name in known:
                        raise UsageError(f"it is set twice, as {rule.code} and as {rule.name}")
                    known[name] = threshold_of(rule, name, value)
        return thresholds

    def exemptions(self, tables: Any) -> tuple[Exemption, ...]:
        if not isinstance(tables, list) or not all(isinstance(entry, dict) for entry in tables):
            hint = "each begins with [[" + f"{self.prefix}ignores]]"
            message = f"expected a list of tables, found {shown(tables)}"
            raise UsageError(message, where=self.place("ignores"), hint=hint)
        return tuple(self.exemption(entry, f"ignores[{at}]") for at, entry in enumerate(tables))

    def exemption(self, entry: dict[str, Any], place: str) -> Exemption:
        self.check_keys(entry, ("tensor", "codes", "reason"), f"{place}.")
        for key, what in (
            ("tensor", "a pattern of tensor names"),
            ("reason", "a sentence: why is it accepted?"),
        ):
            value = entry.get(key)
            if not isinstance(value, str) or not value.strip():
                found = f"found {shown(value)}" if key in entry else "found none"
                raise UsageError(f"expected {what}, {found}", where=self.place(f"{place}.{key}"))
        codes = self.codes(entry, "codes", f"{place}.codes")
        return Exemption(tensor=entry["tensor"], reason=entry["reason"], codes=codes)
