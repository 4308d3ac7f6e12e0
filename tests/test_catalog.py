"""Pages: one source for ``explain``, ``rules`` and docs/rules/, which is kept current.

``UPDATE_README=1 pytest tests/test_catalog.py`` (or ``nox -s docs``) writes docs/rules/.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ckptdoctor import catalog
from ckptdoctor.catalog import Page, Threshold, find_pages, page_markdown, page_text, pages
from ckptdoctor.config import load_settings
from ckptdoctor.errors import UsageError
from ckptdoctor.findings import CONTAINER_CODES
from ckptdoctor.rules import RULES

FOLDER = Path(__file__).parents[1] / "docs" / "rules"
SECTIONS = ["What it means", "How it happens", "What the fix does", "When to ignore it"]

every_page = pytest.mark.parametrize("page", pages(), ids=lambda page: page.code)


def wanted_files():
    files = {f"{page.code}.md": page_markdown(page) for page in pages()}
    return files | {"README.md": catalog.index_markdown(pages())}


def test_docs_are_those_of_the_rules():
    wanted = wanted_files()
    if os.environ.get("UPDATE_README"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path in FOLDER.glob("*.md"):
            path.unlink()
        for name, text in wanted.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert there == wanted


def test_every_code_has_one_page_in_order():
    codes = [page.code for page in pages()]
    assert codes == sorted([*CONTAINER_CODES, *(rule.code for rule in RULES)])


@every_page
def test_page_has_everything_a_reader_needs(page):
    titles = [title for title, _ in page.sections]
    assert titles == [title for title in SECTIONS if title in titles]
    assert {"What it means", "How it happens", "When to ignore it"} <= set(titles)
    assert all(text for _, text in page.sections)
    assert page.summary.endswith(".")
    assert "\n" not in page.summary
    assert page.references
    assert page.since
    assert page.severity in ("error", "warning", "note")


@every_page
def test_texts_say_the_same(page):
    words = re.findall(r"\w+", " ".join(text for _, text in page.sections))
    for shown in (page_text(page, 80), page_markdown(page)):
        there = iter(re.findall(r"\w+", shown))
        assert all(word in there for word in words)  # in this order


@every_page
def test_settings_on_the_page_can_be_pasted(page, tmp_path):
    blocks = re.findall(r"^```toml\n(.*?)^```", page_markdown(page), re.MULTILINE | re.DOTALL)
    assert len(blocks) == bool(page.thresholds)
    for block in blocks:
        (tmp_path / "pyproject.toml").write_text(block)
        thresholds = load_settings(tmp_path / "pyproject.toml").thresholds
        assert thresholds == {page.code: {t.name: t.default for t in page.thresholds}}


@every_page
def test_page_is_found_by_code_and_name(page):
    assert find_pages(page.code.lower()) == (page,)
    assert page in find_pages(page.name.upper())


def test_name_of_two_codes_finds_both():
    named = [page for page in pages() if page.name == "epsilon-below-resolution"]
    assert list(find_pages("epsilon-below-resolution")) == named


@pytest.mark.parametrize(
    ("word", "hint"),
    [("NF01", "did you mean 'NF001'"), ("qqqqqqqqq", "'ckptdoctor rules' lists them")],
)
def test_unknown_word_is_refused_with_a_hint(word, hint):
    with pytest.raises(UsageError, match=f"no code '{word}'; {hint}"):
        find_pages(word)


SAMPLE = Page(
    code="ZZ001",
    name="sample",
    severity="warning",
    since="0.2",
    summary="A thing with ``code`` in it.",
    unless="a note elsewhere",
    sections=(
        ("What it means", "One\nparagraph.  Of `code` and <tags> [links] a_b _c_ *x*.\n\nAnother:\n\n    $ keep   this\n    as is\n\nthe end"),
        ("How it happens", "Either of\n- the first, which is\n  rather long so that it is wrapped in a narrow column\n- the second\n1. third"),
    ),
    thresholds=(Threshold("ratio", 0.00001, "times the norm", "measured", "0 of 7 files"),),
    replaces=("NF001", "ZZ999"),
    found=("a sick case",),
    passed=("a healthy case",),
    references=("A book",),
)  # fmt: skip

AS_TEXT = """\
ZZ001 sample
  A thing with `code` in it.
  Severity: warning (a note elsewhere).
  Since 0.2.

What it means
  One paragraph. Of `code` and <tags>
  [links] a_b _c_ *x*.

  Another:

      $ keep   this
      as is

  the end

How it happens
  Either of
  - the first, which is rather long so
    that it is wrapped in a narrow
    column
  - the second
  1. third

Thresholds
  ratio = 1e-05 (times the norm)
    Measured.
    Healthy files: 0 of 7 files.
  To change them, in pyproject.toml:
    [tool.ckptdoctor.thresholds.ZZ001]
    ratio = 1e-05

Takes the place of, on the same tensor
  - NF001 nan-values
  - ZZ999

Found
  - a sick case

Not found, though it looks like it
  - a healthy case

References
  - A book
"""

AS_MARKDOWN = r"""# ZZ001 sample

A thing with `code` in it.

Severity: warning (a note elsewhere). Since 0.2.

## What it means

One
paragraph.  Of `code` and \<tags\> \[links\] a_b \_c\_ \*x\*.

Another:

    $ keep   this
    as is

the end

## How it happens

Either of
- the first, which is
  rather long so that it is wrapped in a narrow column
- the second
1. third

## Thresholds

- `ratio = 1e-05` (times the norm). Measured.
  Healthy files: 0 of 7 files.

To change them, in pyproject.toml:

```toml
[tool.ckptdoctor.thresholds.ZZ001]
ratio = 1e-05
```

## Takes the place of, on the same tensor

- NF001 nan-values
- ZZ999

## Found

- a sick case

## Not found, though it looks like it

- a healthy case

## References

- A book
"""


def test_page_as_text():
    assert page_text(SAMPLE, 40) == AS_TEXT


def test_page_as_markdown():
    assert page_markdown(SAMPLE) == AS_MARKDOWN


def test_page_is_no_wider_than_a_person_reads():
    long = replace(SAMPLE, summary="ab" + " a" * 1000)
    for width, used in ((80, 80), (100, 100), (300, 100)):
        assert max(map(len, page_text(long, width).splitlines())) == used


def test_settings_and_titles_are_marked():
    text = page_text(SAMPLE, 80, bold="<{}>", settings={"ratio": 2500.0})
    assert text.startswith("<ZZ001 sample>\n")
    assert "\n<Thresholds>\n" in text
    assert "    Your settings make it 2,500.\n" in text


def test_rule_without_documentation_still_has_a_page(monkeypatch):
    class Bare(RULES[0]):
        code = "ZZ001"

    Bare.__doc__ = None  # as python -OO leaves it
    monkeypatch.setattr(catalog, "RULES", (Bare,))
    (page,) = find_pages("ZZ001")
    assert (page.summary, page.sections) == ("", ())


def test_tables_link_and_escape():
    assert catalog.table_markdown([SAMPLE], "docs/").splitlines()[2] == (
        "| [ZZ001](docs/ZZ001.md) | sample | warning | A thing with `code` in it |"
    )
    long = replace(SAMPLE, summary="ab" + " a" * 100)
    assert max(map(len, catalog.table_text([long], 52).splitlines())) == 52
    assert max(map(len, catalog.table_text([long], 10).splitlines())) == 23 + 2 + 24
    assert catalog.table_text([SAMPLE], 200).splitlines() == [
        "code   name    severity  what it is",
        "-----  ------  --------  ----------",
        "ZZ001  sample  warning   A thing with `code` in it",
    ]


def test_json_has_plain_values():
    document = catalog.page_json(SAMPLE)
    assert document["thresholds"] == [
        {"name": "ratio", "default": 1e-05, "unit": "times the norm", "why": "measured",
         "healthy": "0 of 7 files"}
    ]  # fmt: skip
    assert document["sections"][0]["title"] == "What it means"
    assert set(document) == set(Page.__slots__)
