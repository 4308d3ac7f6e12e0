"""JSON: the contract's keys, strict numbers, every name a valid string."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Severity, container_finding
from ckptdoctor.measure.scan import Measured, measure
from ckptdoctor.report.json import render
from ckptdoctor.results import ErrorInfo, Report, View
from ckptdoctor.tensors import TensorTable

INF = float("inf")


def no_constant(name):
    pytest.fail(f"bare {name} in JSON")


def parse(*reports, view=None):
    text = "".join(render(reports, view or View()))
    assert text.isascii()
    return json.loads(text, parse_constant=no_constant)


def report_of(arrays, findings=()):
    table = TensorTable.from_arrays(arrays)
    measured = measure(table)
    found = diagnose(table, Measured(measured.stats, tuple(findings)))
    return Report(
        file="f", format="memory", verdict=found.verdict, summary=found.summary,
        findings=found.findings, diagnoses=found.diagnoses, relevant=found.relevant, table=table, stats=measured.stats,
    )  # fmt: skip


def test_document_and_report_have_the_keys_of_the_contract():
    document = parse(report_of({"w": np.float32([1, np.nan])}))
    assert set(document) == {"schema", "tool", "reports"}
    assert document["schema"] == 1
    (report,) = document["reports"]
    assert set(report) == {
        "file", "format", "weights", "verdict", "summary", "diagnoses", "findings", "tensors",
        "error",
    }  # fmt: skip
    assert set(report["verdict"]) == {"load", "serve", "resume"}
    assert report["summary"] == {
        "tensors": 1, "parameters": 2, "bytes": 8, "errors": 1, "warnings": 0, "notes": 0,
    }  # fmt: skip
    (row,) = report["tensors"]
    assert row == {
        "name": "w", "dtype": "float32", "shape": [2], "role": "model", "nan": 1, "posinf": 0,
        "neginf": 0, "zeros": 0, "min": 1.0, "max": 1.0, "mean": 1.0, "std": 0.0,
    }  # fmt: skip
    (finding,) = report["findings"]
    assert finding["code"] == "NF001"
    assert finding["severity"] == "error"
    assert finding["measured"] == {"elements": 2, "nan": 1, "first": [1]}
    assert finding["fix"] == {
        "title": "the tensor from an older checkpoint",
        "class": "statistical",
        "remedy": "graft",
        "options": "--donor OLD --tensor w",
    }


def test_refused_file_has_an_error_and_nothing_made_up():
    seen = container_finding("CK002", Severity.ERROR, "code", unsafe=True)
    error = ErrorInfo(type="FormatError", message="bad", where="f+3", hint="try again")
    document = parse(Report(file="f", error=error, findings=(seen,), relevant=(True,)))
    (report,) = document["reports"]
    assert report["error"] == {"type": "FormatError", "message": "bad; try again", "where": "f+3"}
    assert report["verdict"] is report["summary"] is None
    assert report["tensors"] == []
    assert [(f["code"], f["role"]) for f in report["findings"]] == [("CK002", "container")]


def test_numbers_that_json_lacks_are_named():
    odd = container_finding(
        "CK001", Severity.NOTE, "m", a=INF, b=-INF, c=float("nan"), d=np.float32(0.5),
        e=(1, INF), f={"g": None}, h=b"x", i=True, j=np.int64(3), k=10**400,
    )  # fmt: skip
    (report,) = parse(report_of({"w": np.float32([1])}, [odd]))["reports"]
    assert report["findings"][0]["measured"] == {
        "a": "inf", "b": "-inf", "c": "nan", "d": 0.5, "e": [1, "inf"], "f": {"g": None},
        "h": "b'x'", "i": True, "j": 3, "k": 10**400,
    }  # fmt: skip


def test_moments_outside_the_range_are_named_too():
    report = report_of({"w": np.float64([1.0, 2.0])})

    report.stats.mean[0], report.stats.std[0] = INF, -INF
    (row,) = parse(report)["reports"][0]["tensors"]
    assert (row["mean"], row["std"], row["max"]) == ("inf", "-inf", 2.0)


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.just(np.float32([np.nan])), max_size=4))
def test_any_name_survives(arrays):
    rows = parse(report_of(arrays))["reports"][0]["tensors"]
    assert [row["name"] for row in rows] == list(arrays)


def test_half_characters_are_escaped_so_that_strict_parsers_take_them():
    (row,) = parse(report_of({"a\udcffb": np.float32([1])}))["reports"][0]["tensors"]
    assert row["name"] == "a\\udcffb"


@pytest.mark.parametrize(
    ("rows", "expected"), [("none", []), ("suspect", ["b"]), (None, ["a", "b"])]
)
def test_rows_are_all_unless_asked_otherwise(rows, expected):
    report = report_of({"a": np.float32([1]), "b": np.float32([np.nan])})
    found = parse(report, view=View(tensors=rows))["reports"][0]["tensors"]
    assert [row["name"] for row in found] == expected


def test_more_rows_than_a_piece_holds_stay_one_list():
    arrays = {f"w{i}": np.float32([i]) for i in range(2501)}
    rows = parse(report_of(arrays))["reports"][0]["tensors"]
    assert [row["name"] for row in rows] == list(arrays)
