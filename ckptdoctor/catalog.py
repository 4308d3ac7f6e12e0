"""From a rule to its page: what ``explain``, ``rules``, the README and docs/rules/ all show."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import cleandoc
from typing import Any, cast

from .container_codes import CONTAINER_PAGES
from .errors import UsageError
from .findings import CONTAINER_CODES
from .hints import shown, suggestion
from .rules import RULES, Rule

__all__ = [
    "Page",
    "Threshold",
    "find_pages",
    "index_markdown",
    "page_json",
    "page_markdown",
    "page_text",
    "pages",
    "table_markdown",
    "table_text",
]

_BULLET = re.compile(r"[-*] |\d+\. ")
_MARKUP = re.compile(r"[<>\[\]*|]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown would take for its own; an underscore inside a word is none."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number that a rule compares with, and why that one."""

    name: str
    default: float
    unit: str
    why: str
    healthy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything there is to say about one code.

    Parameters
    ----------
    code, name, severity, since
        Identity; ``severity`` is that of most of its findings, ``unless`` names the others.
    summary
        The illness, in a sentence.
    sections
        Title and text; paragraphs are separated by empty lines.
    thresholds
        What can be set.
    replaces
        Codes that it makes redundant on the same tensor.
    found, passed
        What is found, and what looks like it and is passed: titles of the rule's cases.
    references
        Where to read more.
    """

    code: str
    name: str
    severity: str
    since: str
    summary: str
    unless: str = ""
    sections: tuple[tuple[str, str], ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    replaces: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


def pages() -> tuple[Page, ...]:
    """Every code's page, in code order.

    Examples
    --------
    >>> [page.name for page in pages() if page.code == "CK004"]
    ['truncated']
    """
    every = [*map(_page_of_code, CONTAINER_CODES), *map(_page_of_rule, RULES)]
    return tuple(sorted(every, key=lambda page: page.code))


def find_pages(word: str) -> tuple[Page, ...]:
    """Pages of a code or name, in upper or lower case; two codes can share a name.

    Raises
    ------
    UsageError
        If there is none.
    """
    every = pages()
    found = tuple(p for p in every if word.upper() == p.code or word.lower() == p.name)
    if not found:
        hint = suggestion(word, [each for page in every for each in (page.code, page.name)])
        raise UsageError(f"no code {shown(word)}", hint=hint or "'ckptdoctor rules' lists them")
    return found


def _page_of_rule(rule: type[Rule]) -> Page:
    summary, sections = _parsed(rule.__doc__)
    return Page(
        code=rule.code,
        name=rule.name,
        severity=rule.severity.name.lower(),
        since=rule.since,
        summary=summary,
        sections=sections,
        thresholds=tuple(
            Threshold(field.name, cast("float", field.default), **field.metadata)
            for field in fields(rule)
        ),
        replaces=rule.replaces,
        found=tuple(case.title for case in rule.sick),
        passed=tuple(case.title for case in rule.healthy),
        references=rule.references,
    )


def _page_of_code(code: str) -> Page:
    stored = CONTAINER_PAGES[code]
    summary, sections = _parsed(stored.text)
    return Page(
        code=code,
        name=CONTAINER_CODES[code],
        severity="error",
        since="0.1",
        summary=summary,
        unless=stored.unless,
        sections=sections,
        references=stored.references,
    )


def _parsed(docstring: str | None) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Summary and titled sections of a docstring (``python -OO`` leaves none)."""
    parts = re.split(r"^(.+)\n-+$\n", cleandoc(docstring or ""), flags=re.MULTILINE)
    sections = zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True)
    return " ".join(parts[0].split("\n\n")[0].split()), tuple(sections)


def _heading(page: Page) -> str:
    unless = f" ({page.unless})" if page.unless else ""
    return f"Severity: {page.severity}{unless}. Since {page.since}."


def _settings(page: Page) -> str:
    """How the thresholds are set, with their defaults."""
    lines = [f"{t.name} = {t.default!r}" for t in page.thresholds]
    return "\n".join([f"[tool.ckptdoctor.thresholds.{page.code}]", *lines])


def _measure(threshold: Threshold, mark: str = "") -> str:
    number = f"{threshold.default:,.10g}"
    return f"{mark}{threshold.name} = {number}{mark} ({threshold.unit})"


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


# As text


def page_text(
    page: Page, width: int, *, bold: str = "{}", settings: Mapping[str, float] | None = None
) -> str:
    """Page for a terminal.

    Parameters
    ----------
    page
        What to show.
    width
        Columns; more than 100 are not used.
    bold
        A format for titles.
    settings
        Thresholds that are set, by name.
    """
    return "\n".join(_text_lines(page, min(width, 100), bold, settings or {})) + "\n"


def _text_lines(page: Page, width: int, bold: str, settings: Mapping[str, float]) -> Iterator[str]:
    yield bold.format(f"{page.code} {page.name}")
    yield from _filled(page.summary, width)
    yield from _filled(_heading(page), width)
    for title, text in page.sections:
        yield from ("", bold.format(title))
        yield from _filled(text, width)
    if page.thresholds:
        yield from ("", bold.format("Thresholds"))
        for t in page.thresholds:
            yield from _filled(_measure(t), width)
            yield from _filled(_sentence(t.why), width, "    ")
            yield from _filled(f"Healthy files: {_sentence(t.healthy)}", width, "    ")
            if t.name in settings:
                yield f"    Your settings make it {settings[t.name]:,.10g}."
        yield "  To change them, in pyproject.toml:"
        yield from ("    " + line for line in _settings(page).split("\n"))
    for title, items in _lists(page):
        yield from ("", bold.format(title))
        for item in items:
            yield from _filled(f"- {item}", width)


def _filled(text: str, width: int, indent: str = "  ") -> Iterator[str]:
    """Paragraphs and items wrapped anew, indented blocks as they are."""
    for number, (kind, lines) in enumerate(_blocks(text)):
        if number and kind != "item":
            yield ""
        if kind == "code":
            yield from (f"{indent}{line}".rstrip() for line in lines)
            continue
        hanging = indent + " " * (len(_marker(lines[0])) if kind == "item" else 0)
        words = " ".join(" ".join(lines).split()).replace("``", "`")
        yield from textwrap.wrap(
            words,
            width,
            initial_indent=indent,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs (``text``), list items (``item``) and indented lines (``code``) of a section."""
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = paragraph.split("\n")
        if lines[0].startswith("    "):
            yield "code", lines
            continue
        block: list[str] = []
        for line in lines:
            if _BULLET.match(line) and block:
                yield ("item" if _BULLET.match(block[0]) else "text"), block
                block = []
            block.append(line)
        yield ("item" if _BULLET.match(block[0]) else "text"), block


def _marker(line: str) -> str:
    found = _BULLET.match(line)
    return found.group() if found else ""


def _lists(page: Page) -> Iterator[tuple[str, Sequence[str]]]:
    if page.replaces:
        names = dict((*CONTAINER_CODES.items(), *((rule.code, rule.name) for rule in RULES)))
        items = [f"{code} {names.get(code, '')}".strip() for code in page.replaces]
        yield "Takes the place of, on the same tensor", items
    if page.found:
        yield "Found", page.found
    if page.passed:
        yield "Not found, though it looks like it", page.passed
    if page.references:
        yield "References", page.references


def table_text(every: Sequence[Page], width: int) -> str:
    """One line for each code, and more lines where the terminal is narrow."""
    from tabulate import tabulate  # noqa: PLC0415  (20 ms)

    # The header is a row like the others: tabulate would pad each column by two for a real one.
    head = ("code", "name", "severity", "what it is")
    fixed = [max(len(title), *(len(getattr(page, title)) for page in every)) for title in head[:3]]
    room = max(width - sum(fixed) - 2 * len(fixed), 24)
    rows = [
        (page.code, page.name, page.severity, textwrap.fill(_plain(page.summary), room))
        for page in every
    ]
    rule = tuple("-" * wide for wide in (*fixed, len(head[3])))
    text = tabulate([head, rule, *rows], tablefmt="plain", disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.split("\n")) + "\n"


def _plain(summary: str) -> str:
    return summary.rstrip(".").replace("``", "`")


# As Markdown


def page_markdown(page: Page) -> str:
    """Page as Markdown, as docs/rules/ has it."""
    return "\n".join(_markdown_lines(page)).strip() + "\n"


def _markdown_lines(page: Page) -> Iterator[str]:
    yield from (f"# {page.code} {page.name}", "", _markdown(page.summary), "", _heading(page), "")
    for title, text in page.sections:
        yield from (f"## {title}", "", _markdown(text), "")
    if page.thresholds:
        yield from ("## Thresholds", "")
        for t in page.thresholds:
            yield f"- {_measure(t, '`')}. {_sentence(_markdown(t.why))}"
            yield f"  Healthy files: {_sentence(_markdown(t.healthy))}"
        yield from (
            "",
            "To change them, in pyproject.toml:",
            "",
            "```toml",
            _settings(page),
            "```",
            "",
        )
    for title, items in _lists(page):
        yield from (f"## {title}", "", *(f"- {_markdown(item)}" for item in items), "")


def _markdown(text: str) -> str:
    """Text of a docstring as Markdown: the code marks, and what would become a link or HTML."""
    pieces = text.replace("``", "`").split("`")
    pieces[::2] = [_MARKUP.sub(r"\\\g<0>", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def table_markdown(every: Sequence[Page], folder: str = "") -> str:
    """Table of codes as Markdown, each linked to its page in ``folder``."""
    lines = ["| Code | Name | Severity | What it is |", "|---|---|---|---|"]
    for page in every:
        link = f"[{page.code}]({folder}{page.code}.md)"
        summary = _markdown(page.summary.rstrip("."))
        lines.append(f"| {link} | {page.name} | {page.severity} | {summary} |")
    return "\n".join(lines) + "\n"


def index_markdown(every: Sequence[Page]) -> str:
    """First page of docs/rules/."""
    return (
        "# What ckptdoctor finds\n\n"
        "Codes and names stay what they are. `ckptdoctor explain CODE` prints these pages in the\n"
        "terminal; `--select`, `--ignore` and the settings take a code, its first letters or its\n"
        "name. Generated from the rules: do not edit.\n\n" + table_markdown(every)
    )


# As JSON


def page_json(page: Page) -> dict[str, Any]:
    """Page as a document of plain values."""
    document = {name: getattr(page, name) for name in Page.__slots__}
    document["sections"] = [{"title": title, "text": text} for title, text in page.sections]
    document["thresholds"] = [
        {name: getattr(t, name) for name in Threshold.__slots__} for t in page.thresholds
    ]
    return document
