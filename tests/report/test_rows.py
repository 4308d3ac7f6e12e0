"""Which rows, in which order, folded how; names made harmless."""

import subprocess

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ckptdoctor.measure.scan import measure
from ckptdoctor.report.escape import command, display, shorten, unicode_text
from ckptdoctor.report.rows import SORTS, fold_names, folded
from ckptdoctor.report.table import render_table
from ckptdoctor.report.text import human_bytes
from ckptdoctor.tensors import TensorTable


def rows_of(arrays, roles=None):
    table = TensorTable.from_arrays(arrays, roles)
    return folded(table.values(), measure(table).stats)


def test_repeated_blocks_fold_and_add_up():
    (row,) = rows_of({f"layer.{i}.w": np.float32([i, np.nan]) for i in range(23)})
    assert (row.name, row.count, row.nan) == ("layer.{0..22}.w", 23, 23)
    assert (row.minimum, row.maximum, row.mean) == (0.0, 22.0, None)


def test_dtype_shape_role_and_words_keep_rows_apart():
    arrays = {
        "a.0.w": np.float32([1]), "a.1.w": np.float32([1, 2]), "a.2.w": np.float16([1]),
        "a.3.w": np.float32([1]), "a.4.b": np.float32([1]),
    }  # fmt: skip
    assert [row.count for row in rows_of(arrays, {"a.3.w": "ema"})] == [1] * 5


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["a1", "a2"], "a{1,2}"),
        (["a1", "a2", "a3", "a7"], "a{1..3,7}"),
        (["b1.c1", "b1.c2"], "b1.c{1,2}"),
        ([f"x{i * i}" for i in range(9)], "x{0..64}"),
        (["x" + "9" * 5000, "x" + "9" * 4999 + "8"], None),
    ],
    ids=["two", "a run and one", "constant part", "many gaps", "endless digits"],
)
def test_folded_name_says_which(names, pattern):
    assert pattern is None or fold_names(names) == pattern
    assert fold_names(names)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("file", ["b", "a", "c"]),
        ("name", ["a", "b", "c"]),
        ("size", ["c", "b", "a"]),
        ("nonfinite", ["a", "b", "c"]),
        ("max", ["b", "c", "a"]),
    ],
)
def test_orders(sort, expected):
    from ckptdoctor.report.rows import chosen_rows
    from ckptdoctor.results import Report, View

    arrays = {"b": np.float32([-9, 1]), "a": np.float32([np.nan]), "c": np.float32([1, 2, 3])}
    table = TensorTable.from_arrays(arrays)
    report = Report(file="f", table=table, stats=measure(table).stats)
    assert [info.name for info in chosen_rows(report, View(tensors="all", sort=sort), "all")] == (
        expected
    )
    assert sort in SORTS


def test_numbers_are_right_aligned_and_columns_go_before_names():
    rows = rows_of({"a" * 30: np.float32([np.nan, 1]), "b": np.arange(5000.0)})
    narrow, wide = render_table(rows, 60), render_table(rows, 200)
    assert all(len(line) <= 60 for line in narrow)
    assert "zeros" in wide[0]
    assert "zeros" not in narrow[0]
    assert wide[2].index("1  ") > 0
    end = wide[0].index("shape") + len("shape")
    assert [line[:end].split()[-1] for line in wide[2:]] == ["2", "5000"]
    assert (
        len({line[:end].rstrip()[-1:] != " " and len(line[:end].rstrip()) for line in wide[2:]})
        == 1
    )


@given(st.text())
def test_display_prints_and_keeps_what_prints(text):
    shown = display(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


@given(st.text(), st.integers(1, 40))
def test_shortened_text_fits(text, width):
    assert len(shorten(text, width)) == min(len(text), width)


def test_unicode_text_keeps_good_text():
    assert unicode_text("中\x00é") == "中\x00é"


@settings(max_examples=25, deadline=None)
@given(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=6
    )
    | st.sampled_from(["a b", "it's", "a'\n", "\\n", "\\\n", "$x", "-f", "~", "a\x1b[2J", "*"])
)
def test_command_can_be_pasted(word):
    line = command("printf", "%s", word)
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode() == word


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 byte"), (1023, "1,023 bytes"), (1 << 20, "1.0 MiB"), (1 << 70, "1024.0 EiB")],
)
def test_bytes_in_words(count, text):
    assert human_bytes(count) == text
