"""Commands to copy: what to run next, and what it shows and exits with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..findings import Severity
from ..shell import quoted
from .case import Case, Command

__all__ = ["as_text", "explain", "gate", "inspect_layers", "repair"]

_GLOBS = 3
"""Layers that a command names; for more it selects by code."""
_LONGEST = 150
"""Characters of a name that are still worth typing."""


def explain(code: str) -> Command:
    """Command that prints what a code means."""
    return Command(("explain", code), f"Explains {code}; exit code 0.")


def gate(purpose: str, code: int, why: str, *more: str) -> Command:
    """Command that answers for one purpose."""
    words = ("inspect", "{file}", "--purpose", purpose, *more)
    return Command(words, f"{why} Exit code {code}.")


def repair(why: str, *options: str, code: int = 0) -> Command:
    """Command that writes a repaired copy."""
    return Command(("repair", "{file}", *options), f"{why} Exit code {code}.")


def inspect_layers(case: Case) -> Command:
    """Command that lists the tensors of the affected layers, or judges by their codes alone.

    A case of warnings fails on warnings, so that its exit code tells as well.
    """
    limit = case.severity
    fails = ("--fail-on", "warning") if limit is Severity.WARNING else ()
    globs = list(dict.fromkeys(_globs(case)))
    if 0 < len(globs) <= _GLOBS and all(len(glob) <= _LONGEST for glob in globs):
        picked = [word for glob in globs for word in _option("--tensor", glob)]
        words = ("inspect", "{file}", *picked, "--tensors", "all", *fails)
        return Command(words, "Lists every tensor of these layers. Exit code 1.")
    codes = ",".join(sorted({f.code for f in case.findings if f.severity >= limit}))
    words = ("inspect", "{file}", "--select", codes, *fails)
    return Command(words, "Lists just these findings. Exit code 1.")


def _globs(case: Case) -> Iterator[str]:
    """Yield a pattern for each affected layer that has tensors in the table."""
    for tensor in case.tensors:
        if case.facts.info(tensor) is not None:
            layer = case.facts.layer(tensor)
            yield _glob(layer.key if layer is not None else "", tensor)


def _option(name: str, value: str) -> tuple[str, ...]:
    return (f"{name}={value}",) if value.startswith("-") else (name, value)


def _glob(key: str, tensor: str) -> str:
    escaped = re.sub(r"([*?[])", r"[\1]", key or tensor)
    return f"{escaped}{'/' if '/' in tensor else '.'}*" if key else escaped


def as_text(command: Command, file: str) -> str:
    """Command as it is typed; the file's name as the shell needs it.

    Examples
    --------
    >>> as_text(Command(("inspect", "{file}", "--tensor", "bn.*"), ""), "my model.pt")
    "ckptdoctor inspect 'my model.pt' --tensor 'bn.*'"
    """
    name = f"./{file}" if file.startswith("-") else file
    words = [quoted(name if word == "{file}" else word) for word in command.words]
    return " ".join(["ckptdoctor", *words])
