"""docs/repair.md says what the program does; ``nox -s docs`` writes its table."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from ckptdoctor import cli
from ckptdoctor.remedies import LADDER
from ckptdoctor.remedies.page import table_markdown

PAGE = Path(__file__).parents[1] / "docs" / "repair.md"
TEXT = PAGE.read_text(encoding="utf-8")
MARKER = "<!-- remedies -->\n"


def test_table_is_that_of_the_ladder():
    head, _, rest = TEXT.partition(MARKER)
    wanted = head + MARKER + table_markdown() + rest[rest.index("\n\n") + 1 :]
    if os.environ.get("UPDATE_README"):
        PAGE.write_text(wanted, encoding="utf-8")
        return
    assert wanted == TEXT


@pytest.mark.parametrize("remedy", LADDER, ids=lambda remedy: remedy.name)
def test_remedy_says_what_it_does_and_costs(remedy):
    sections = re.findall(r"^    (What it \w+)\n    -+$", type(remedy).__doc__, re.MULTILINE)
    assert sections == ["What it does", "What it costs"]


@pytest.mark.parametrize("line", re.findall(r"^ckptdoctor repair .*$", TEXT, re.MULTILINE))
def test_commands_parse(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    assert cli.run(words) == 2
    assert "no such file" in capsys.readouterr().err
