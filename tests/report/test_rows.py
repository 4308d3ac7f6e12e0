"""Which rows, in which order, folded how; names made harmless."""

import subprocess
from typing import get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ckptdoctor.measure.scan import measure
from ckptdoctor.report.escape import columns, command, display, shorten, unicode_text
from ckptdoctor.report.rows import SORTS, fold_names, folded
from ckptdoctor.report.table import render_table
from ckptdoctor.report.text import human_bytes
from ckptdoctor.results import Sort
from ckptdoctor.tensors import TensorTable


def rows_of(arrays, roles=None):
    table = TensorTable.from_arrays(arrays, roles)
    return folded(table.values(), measure(table).stats)


def test_repeated_blocks_fold_and_add_up():
    (row,) = rows_of({f"layer.{i}.w": np.float32([i, np.nan]) for i in range(23)})
    assert (row.name, row.count, row.nan) == ("layer.{0..22}.w", 23, 23)
    assert (row.minimum, row.maximum, row.mean) == (0.0, 22.0, None)


def test_last_component_never_folds():
    arrays = {f"layers/bn_{i}/vars/{v}": np.float32([np.nan]) for i in range(3) for v in (2, 3)}
    assert [row.name for row in rows_of(arrays)] == [
        "layers/bn_{0..2}/vars/2",
        "layers/bn_{0..2}/vars/3",
    ]
    assert len(rows_of({f"bn.{i}": np.float32([1]) for i in range(3)})) == 3


def test_many_gaps_are_shown_as_gaps_not_as_a_range():
    (row,) = rows_of({f"layer.{i}.w": np.float32([1]) for i in range(0, 160, 3)})
    assert (row.name, row.count) == ("layer.{0,3,6,...,159}.w", 54)


def layered(names):
    table = TensorTable.from_arrays({name: np.float32([np.nan]) for name in names})
    infos = [
        info._replace(layer_name=layer)
        for info, layer in zip(table.values(), names.values(), strict=True)
    ]
    return folded(infos, measure(table).stats)


def test_layers_that_the_path_hides_have_a_column_of_their_own():
    rows = layered({"layers/batch_normalization_6/vars/2": "post_bn"})
    head, _, line = render_table(rows, 80)
    assert head.split()[:2] == ["layer", "tensor"]
    assert line.startswith("post_bn  layers/batch_normalization_6/vars/2")
    assert render_table(rows, 40)[2].startswith("post_bn  ")
    assert "layer" not in render_table(layered({"layers/post_bn/vars/2": "post_bn"}), 80)[0]


def test_folded_rows_name_their_layers():
    names = {f"layers/batch_normalization_{i}/vars/2": f"block{i + 1}_bn" for i in range(3)}
    assert [(row.layer, row.count) for row in layered(names)] == [("block{1..3}_bn", 3)]


def test_columns_that_are_empty_are_left_out_and_min_goes_with_max():
    nothing = render_table(rows_of({"w": np.float32([np.nan])}), 200)[0]
    assert nothing.split() == ["tensor", "dtype", "shape", "role", "NaN"]
    rows = rows_of({"a" * 36: np.float32([0.12345, 0.54321, np.nan]), "b": np.float32([np.inf])})
    seen = set()
    for width in range(40, 121):
        titles = render_table(rows, width)[0].split()
        assert ("min" in titles) == ("max" in titles)
        seen.add("min" in titles)
    assert seen == {True, False}


def test_wide_characters_count_twice():
    assert columns("ab") == 2
    assert columns("模型é") == 5


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
        ([f"x{i * i}" for i in range(9)], "x{0,1,4,9,...,64}"),
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
    assert tuple(SORTS) == get_args(Sort)


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
    for encoding in ("utf-8", "ascii"):
        line = command("printf", "%s", file=word, encoding=encoding)
        assert line.isprintable()
        assert line.isascii() or encoding == "utf-8"
        done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
        assert done.stdout.decode() == (f"./{word}" if word.startswith("-") else word)


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 byte"), (1023, "1,023 bytes"), (1 << 20, "1.0 MiB"), (1 << 70, "1024.0 EiB")],
)
def test_bytes_in_words(count, text):
    assert human_bytes(count) == text
