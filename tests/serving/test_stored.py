"""Reports as documents: nothing that a closed report tells is lost, and no other text is a report."""

import copy
import json
import math

import checkups
import numpy as np
import patients
import pytest
from sample_files import READABLE

from ckptdoctor.api import examine, look
from ckptdoctor.findings import Finding, Severity
from ckptdoctor.report import FORMATS, renderer
from ckptdoctor.results import Report, View, Wishes
from ckptdoctor.serving.stored import as_document, detached, from_document

WISHES = Wishes(purpose="serve")


def through_json(report):
    return from_document(json.loads(json.dumps(as_document(report), allow_nan=False)), WISHES)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    tree = {"model": checkups.unfit_state(), "epoch": 3, "lr": 0.5}
    tree["model"]["fc.bias"][:] = [np.inf, 0, 1, -np.inf]
    return look(str(patients.save_torch(tmp_path_factory.mktemp("m") / "m.pt", tree)), WISHES)


@pytest.mark.parametrize("row", READABLE, ids=lambda row: row.name)
def test_samples_come_back_as_they_were(row):
    told = examine(str(row.path), WISHES)
    twin = through_json(told)
    assert twin.cached
    for name in ("file", "format", "weights", "verdict", "summary", "findings", "diagnoses",
                 "wishes", "relevant", "judged", "error"):  # fmt: skip
        assert getattr(twin, name) == getattr(told, name), name
    assert twin.table == detached(told).table
    assert dict(twin.stats) == dict(told.stats)
    for kind in FORMATS:
        pages = ["".join(renderer(kind)([one], View(tensors="all"))) for one in (told, twin)]
        assert pages[0] == pages[1]


def test_detached_report_holds_no_file(report):
    table = detached(report).table
    assert (table.files, table.decoder) == ((), None)
    for name, info in table.infos.items():
        assert (info.extent, info.strides, info.storage, info.quantisation) == (
            None,
            None,
            "",
            None,
        )
        assert info.shape == report.table[name].shape
    assert table.scalars == report.table.scalars


def test_refusal_is_no_document(tmp_path):
    refusal = examine(str(tmp_path / "gone"), WISHES)
    assert detached(refusal) is refusal
    with pytest.raises(ValueError, match="not a report on a file that was checked"):
        as_document(refusal)


def test_measured_values_keep_their_kind(report):
    measured = {
        "n": 3, "x": 0.5, "none": None, "yes": True, "text": "\udcff é", "list": [1, [2.0]],
        "map": {"a": {"b": -0.0}}, "inf": math.inf, "low": -math.inf, "float": "nan", "big": 10**30,
    }  # fmt: skip
    finding = Finding(code="X", name="x", severity=Severity.NOTE, message="", measured=measured)
    twin = through_json(Report(**{**fields(report), "findings": (finding,), "relevant": (False,),
                                  "diagnoses": ()}))  # fmt: skip
    assert twin.findings == (finding,)
    assert math.copysign(1, twin.findings[0].measured["map"]["a"]["b"]) == -1


def test_what_json_has_not_becomes_what_it_has(report):
    measured = {"nan": math.nan, "tuple": (1, 2), "set": {2, 1}, "numpy": np.float32(0.5), "x": 1j}
    finding = Finding(code="X", name="x", severity=Severity.NOTE, message="", measured=measured)
    twin = through_json(Report(**{**fields(report), "findings": (finding,), "relevant": (False,),
                                  "diagnoses": ()}))  # fmt: skip
    told = twin.findings[0].measured
    assert math.isnan(told["nan"])
    assert (told["tuple"], told["set"], told["numpy"], told["x"]) == ([1, 2], [1, 2], 0.5, "1j")


def fields(report):
    return {name: getattr(report, name) for name in Report.__slots__}


def places(document, path=()):
    """Path of every value inside a document."""
    yield path
    if isinstance(document, dict):
        for key in document:
            yield from places(document[key], (*path, key))
    elif isinstance(document, list):
        for at in range(len(document)):
            yield from places(document[at], (*path, at))


STRANGE = [
    None, True, -1, 2, 10**400, 0.5, "", "error", "model", [], [[]], {}, {"float": "x"}, {"map": 3}
]  # fmt: skip


def test_anything_else_is_refused_or_a_report(report):
    """Every place of a document, with every strange value: 7,000 documents, 4 s."""
    accepted = 0
    for path in places(as_document(report)):
        for value in STRANGE:
            document = [as_document(report)]
            inside = document
            for step in (0, *path)[:-1]:
                inside = inside[step]
            inside[(0, *path)[-1]] = copy.deepcopy(value)
            try:
                made = from_document(document[0], WISHES)
            except ValueError:
                continue
            accepted += 1
            for kind in FORMATS:
                assert "".join(renderer(kind)([made], View(tensors="all"))), (path, value)
            assert made.fails(Severity.ERROR) in (True, False)
    assert accepted > 100


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), ["safe", "fit"]),
        (("verdict",), ["safe", "fit", "well"]),
        (("verdict", 0), "fit"),
        (("relevant",), []),
        (("relevant", 0), 1),
        (("findings", 0, "role"), "boss"),
        (("findings", 0, "severity"), 4),
        (("findings", 0, "severity"), True),
        (("findings", 0, "unsafe"), 0),
        (("findings", 0, "message"), None),
        (("diagnoses", 0, "findings", 0), 999),
        (("diagnoses", 0, "findings", 0), -1),
        (("weights",), "optimizer"),
        (("summary", "errors"), -1),
        (("table", "infos", 0, 2), "float31"),
        (("table", "infos", 0, 0), "model.fc.bias"),
        (("table", "counts", 0, 0), 1 << 64),
        (("table", "counts", 0), []),
        (("table", "moments", 3, 0), 1),
        (("table", "infos", 0, 4), "boss"),
        (("table", "infos", 0, 5), "plainly"),
    ],
)
def test_value_of_the_wrong_kind_is_refused(report, path, value):
    document = as_document(report)
    inside = document
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    with pytest.raises(ValueError, match="not a stored report"):
        from_document(document, WISHES)
