"""Whole outputs, compared with files; ``UPDATE_SNAPSHOTS=1 pytest tests/report`` writes them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckptdoctor.diagnose import diagnose
from ckptdoctor.findings import Severity, container_finding
from ckptdoctor.measure.scan import Measured, measure
from ckptdoctor.report import renderer
from ckptdoctor.results import ErrorInfo, Report, View, Wishes
from ckptdoctor.tensors import TensorTable

SNAPSHOTS = Path(__file__).parent / "snapshots"


def report_of(file, arrays, roles=None, findings=(), metadata=None, **wishes):
    table = TensorTable.from_arrays(arrays, roles)
    table = replace(table, path=file, format="torch-zip", metadata=metadata or {})
    measured = measure(table)
    wished = Wishes(**wishes)
    found = diagnose(table, Measured(measured.stats, tuple(findings)), wished)
    return Report(
        file=file, format=table.format, weights=found.weights, verdict=found.verdict,
        summary=found.summary, findings=found.findings, diagnoses=found.diagnoses, relevant=found.relevant,
        table=table, stats=measured.stats, judged=found.judged, wishes=wished,
    )  # fmt: skip


def clean():
    # Moments that have one exact value, whatever the order of the additions.
    weight = np.float32([[0, 1, 0], [1, 0, 1]])
    arrays = {"fc.weight": weight, "fc.bias": np.float16([0.5, 0]), "steps": np.int64(7)}
    return report_of("clean.pt", arrays, metadata={"framework": "torch"})


def sick():
    nan, inf = np.nan, np.inf
    arrays = {
        "conv.weight": np.float32([-0.5, 0.5] * 18).reshape(4, 1, 3, 3),
        "mask": np.where(np.triu(np.ones((4, 4)), 1), -inf, 0).astype(np.float32),
        "bn.running_mean": np.float32([nan, 0.5, inf, 2]),
        "bn.running_var": np.full(4, nan, np.float32),
        "optimizer.state.0.exp_avg_sq": np.float32([1, inf]),
    }
    for block in range(3):
        for conv in (1, 2):
            arrays[f"layer{conv}.{block}.bn{conv}.running_var"] = np.full(8, inf, np.float32)
    checksum = container_finding(
        "CK001", Severity.ERROR, "the stored checksum is 0x1, the data has 0x2", where="sick.pt:d/0"
    )
    code = container_finding(
        "CK002", Severity.ERROR, "calls os.system", where="sick.pt:data.pkl+12", unsafe=True
    )
    roles = {"optimizer.state.0.exp_avg_sq": "optimizer"}
    return report_of("my runs/sick.pt", arrays, roles, [code, checksum])


def hostile():
    name = "a\x1b[2J\u202eb\n\udcff" + "x" * 150
    arrays = {name: np.float32([np.nan]), "\u4e2d.weight": np.float32([np.inf, 1])}
    return report_of("evil\x07\x9b.pt", arrays, metadata={"framework": "to\x1brch"})


def large():
    arrays = {
        f"layers.{i}.{part}.weight": np.float32([np.nan, i])
        for i in range(400)
        for part in ("q", "k", "v", "o", f"x{'y' * (i % 60)}")
    }
    return report_of("large.pt", arrays)


def refused():
    error = ErrorInfo(
        type="UnknownFormatError", message="is a Git LFS pointer to 102,400 bytes",
        where="m.bin+0", hint="fetch it with: git lfs pull",
    )  # fmt: skip
    seen = container_finding("CK002", Severity.NOTE, "names a class of another package")
    return Report(file="m.bin", error=error, findings=(seen,), relevant=(True,))


REPORTS = {f.__name__: f for f in (clean, sick, hostile, large, refused)}
VIEWS = {
    "80.txt": ("text", View(width=80)),
    "200.txt": ("text", View(width=200)),
    "all-80.txt": ("text", View(width=80, tensors="all", sort="nonfinite")),
    "quiet.txt": ("text", View(quiet=True, fail_on=Severity.WARNING)),
    "color.txt": ("text", View(width=80, color=True, tensors="none")),
    "json": ("json", View()),
}
CASES = [
    (report, view)
    for report in REPORTS
    for view in VIEWS
    if report != "large" or view in ("80.txt", "200.txt", "quiet.txt")
]


@pytest.mark.parametrize(("report", "view"), CASES, ids=lambda part: part)
def test_output_is_as_agreed(report, view):
    kind, options = VIEWS[view]
    text = "".join(renderer(kind)([REPORTS[report]()], options))
    file = SNAPSHOTS / f"{report}.{view}"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_no_snapshot_is_left_over():
    assert {file.name for file in SNAPSHOTS.iterdir()} == {f"{r}.{v}" for r, v in CASES}


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("report", REPORTS)
def test_lines_fit_the_width(report, width):
    text = "".join(renderer("text")([REPORTS[report]()], View(width=width)))
    long = [line for line in text.splitlines() if len(line) > width]
    assert all("ckptdoctor inspect" in line for line in long)


def test_large_report_fits_three_screens():
    text = "".join(renderer("text")([large()], View(width=80)))
    assert len(text.splitlines()) < 75


@pytest.mark.parametrize("report", REPORTS)
def test_no_output_obeys_what_a_file_says(report):
    for kind, options in VIEWS.values():
        if options.color or (report == "large" and options.tensors == "all"):
            continue
        text = "".join(renderer(kind)([REPORTS[report]()], options))
        assert all(c.isprintable() or c == "\n" for c in text)


def test_several_reports_are_one_document_and_end_with_a_count():
    reports = [clean(), sick(), refused()]
    document = json.loads("".join(renderer("json")(reports, View())))
    assert [r["file"] for r in document["reports"]] == ["clean.pt", "my runs/sick.pt", "m.bin"]
    text = "".join(renderer("text")(reports, View()))
    assert text.endswith("\n3 paths: 1 clean, 1 with findings, 1 not checked\n")


def test_reports_are_taken_one_by_one():
    taken = []

    def reports():
        for make in (clean, sick):
            taken.append(make.__name__)
            yield make()

    pieces = renderer("text")(reports(), View())
    next(pieces)
    assert taken == ["clean"]
