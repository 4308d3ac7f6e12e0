"""What is not about a checkpoint: ``explain``, ``rules`` and ``formats`` as text, JSON or Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import catalog
from ..config import Settings, settings_of
from ..exits import CLEAN
from ..formats import ADAPTERS
from ..terminal import colored, put, width_of

if TYPE_CHECKING:
    from .wishes import ListingWish

__all__ = ["Listing", "run_listing"]


def run_listing(wish: ListingWish) -> int:
    """Print what was asked for, and return the exit code."""
    listing = Listing(
        format=wish.format, width=width_of(sys.stdout), color=colored(wish.color, sys.stdout)
    )
    if wish.what == "explain":
        text = listing.explanations(wish.codes or (), settings_of(wish.config))
    elif wish.what == "rules":
        text = listing.rules()
    else:
        text = listing.formats()
    put(sys.stdout, text)
    return CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How a listing is to look.

    Parameters
    ----------
    format
        ``text``, ``json`` or ``markdown``.
    width, color
        Columns of the terminal, and whether it has colours.
    """

    format: str = "text"
    width: int = 80
    color: bool = False

    def explanations(self, words: Sequence[str], settings: Settings) -> str:
        """Pages of codes or names, with the thresholds that the settings change.

        Raises
        ------
        UsageError
            If there is no such code or name.
        """
        found = [page for word in words for page in catalog.find_pages(word)]
        if self.format == "json":
            return _document("rules", [catalog.page_json(page) for page in found])
        if self.format == "markdown":
            return "\n".join(map(catalog.page_markdown, found))
        bold = "\x1b[1m{}\x1b[0m" if self.color else "{}"
        texts = [
            catalog.page_text(
                page, self.width, bold=bold, settings=settings.thresholds.get(page.code)
            )
            for page in found
        ]
        return "\n\n".join(texts)

    def rules(self) -> str:
        """Every code, a line each; as JSON everything about them."""
        every = catalog.pages()
        if self.format == "json":
            return _document("rules", [catalog.page_json(page) for page in every])
        if self.format == "markdown":
            return catalog.table_markdown(every)
        return catalog.table_text(every, self.width)

    def formats(self) -> str:
        """Every format that can be read, a line each."""
        rows = [
            {"name": name, "summary": summary, "spec": adapter.spec}
            for adapter in ADAPTERS
            for name, summary in adapter.names.items()
        ]
        if self.format == "json":
            return _document("formats", rows)
        wide = max(len(row["name"]) for row in rows)
        return "".join(f"{row['name']:{wide}}  {row['summary']}\n" for row in rows)


def _document(key: str, rows: list[dict[str, Any]]) -> str:
    from json import dumps  # noqa: PLC0415

    return dumps({"schema": 1, key: rows}, indent=1) + "\n"
