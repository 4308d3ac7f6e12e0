"""The table of remedies, as docs/repair.md shows it: one source, the remedies themselves."""

from __future__ import annotations

import inspect

from . import LADDER

__all__ = ["table_markdown"]


def table_markdown() -> str:
    """Rows in ladder order: what each does, its class, and the option that asks for it."""
    rows = ["| Remedy | What it does | Class | Asked for by |\n|---|---|---|---|\n"]
    for remedy in LADDER:
        told = inspect.cleandoc(type(remedy).__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        option = f"`{remedy.option}`" if remedy.option else _unasked(remedy.kind)
        rows.append(f"| `{remedy.name}` | {told.replace('``', '`')} | {remedy.kind} | {option} |\n")
    return "".join(rows)


def _unasked(kind: str) -> str:
    return "`--allow destructive`" if kind == "destructive" else "nothing: done unasked"
