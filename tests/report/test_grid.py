"""Tables that fit: columns go by priority, names are shortened, nothing runs over."""

from __future__ import annotations

import pytest

from ckptdoctor.report.grid import Column, grid, number

HEADS = (
    Column("layer", right=False),
    Column("min", 1),
    Column("mean", 2),
    Column("mark", right=False),
)
ROWS = [["encoder.layers.11.attention", "-1.5", "0.25", "first"], ["fc", "2", "10.5", ""]]


def test_numbers_are_flush_right_and_words_left():
    assert grid(HEADS, [["encoder.1", "-1.5", "0.25", "first"], ["fc", "2", "10.5", ""]], 80) == [
        "layer       min  mean  mark",
        "---------  ----  ----  -----",
        "encoder.1  -1.5  0.25  first",
        "fc            2  10.5",
    ]


@pytest.mark.parametrize("width", [12, 20, 24, 30, 40, 60, 200])
def test_lines_are_no_wider_than_asked_for(width):
    lines = grid(HEADS, ROWS, width)
    assert max(map(len, lines)) <= max(width, 15)


def test_the_highest_priority_goes_first():
    assert "mean" in grid(HEADS, ROWS, 40)[0]
    narrow = grid(HEADS, ROWS, 30)[0]
    assert "mean" not in narrow
    assert "min" in narrow
    assert grid(HEADS, ROWS, 24)[0].split() == ["layer", "mark"]


def test_columns_without_a_cell_are_left_out():
    assert grid(HEADS, [["a", "", "2", ""]], 80) == ["layer  mean", "-----  ----", "a         2"]


def test_a_row_of_one_cell_is_a_line_of_its_own():
    lines = grid(HEADS, [["a", "1", "2", "x"], ["... 7 more"]], 80)
    assert lines[-1] == "... 7 more"
    assert len(lines[1].split()[0]) == len("layer")


def test_wide_characters_take_two_columns():
    lines = grid((Column("n", right=False), Column("v")), [["模型", "1"], ["ab", "22"]], 80)
    assert lines[2:] == ["模型   1", "ab    22"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0"), (-1.23456, "-1.235"), (3.4e38, "3.4e+38")]
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text
