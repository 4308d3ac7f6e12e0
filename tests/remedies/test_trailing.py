"""Bytes behind the end are dropped, unless they may be something."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import patients
import pytest
import torch_bytes as tb

from ckptdoctor.diagnose import diagnose
from ckptdoctor.edits import Refusal, Trim
from ckptdoctor.errors import FormatError
from ckptdoctor.findings import Severity, container_finding
from ckptdoctor.formats import open_path
from ckptdoctor.measure.scan import measure
from ckptdoctor.remedies.base import Orders, Patient
from ckptdoctor.remedies.trailing import TrailingBytes
from ckptdoctor.rules.base import Context

VALUES = np.arange(6, dtype=np.float32).tobytes()


def torch_zip(path: Path) -> Path:
    return patients.save_torch(path, patients.state())


def legacy(path: Path) -> Path:
    state = {"w": tb.tensor(tb.storage("0", "FloatStorage", 6), (2, 3))}
    path.write_bytes(tb.legacy(state, {"0": (6, VALUES)}))
    return path


def safetensors(path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + VALUES)
    return path


def npz(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), w=np.arange(6.0))
    return path.with_suffix(".npz")


FORMATS = {f.__name__: f for f in (torch_zip, legacy, safetensors, npz)}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Patient]:
    with open_path(path) as table:
        measured = measure(table)
        findings = diagnose(table, measured).findings
        yield Patient(ctx=Context(table, measured.stats), findings=findings, orders=Orders())


def treat(path: Path) -> list[Trim | Refusal]:
    with opened(path) as patient:
        return list(TrailingBytes().propose(patient, []))


def longer(path: Path, tail: bytes) -> Path:
    target = path.with_name(f"longer{path.suffix}")
    target.write_bytes(path.read_bytes() + tail)
    return target


@pytest.fixture(params=FORMATS, ids=str)
def healthy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return FORMATS[request.param](tmp_path / "m.bin")


def test_a_file_that_ends_where_its_format_ends_is_left_alone(healthy):
    assert treat(healthy) == []


@pytest.mark.parametrize(
    ("tail", "kind"),
    [(bytes(1), "all zero"), (bytes(5000), "all zero"), (b"\0" * 60 + b"scrap", "not zeros")],
    ids=["one zero", "zeros", "text"],
)
def test_what_follows_the_end_is_dropped(healthy, tail, kind):
    (trim,) = treat(longer(healthy, tail))
    assert isinstance(trim, Trim)
    assert trim.size == healthy.stat().st_size
    assert (trim.remedy, trim.kind, trim.cures) == ("trailing-bytes", "lossless", ("CK005",))
    assert f"{len(tail):,} bytes behind the end" in trim.title
    assert kind in trim.title


def test_zeros_behind_text_are_not_all_zero(tmp_path):
    (trim,) = treat(longer(safetensors(tmp_path / "m.bin"), b"scrap" + bytes(1 << 20)))
    assert "not zeros" in trim.title


def test_the_trimmed_file_has_no_such_finding(healthy):
    sick = longer(healthy, b"scrap")
    (trim,) = treat(sick)
    sick.write_bytes(sick.read_bytes()[: trim.size])
    assert sick.read_bytes() == healthy.read_bytes()
    with opened(sick) as patient:
        assert not list(patient.about("CK005"))


ARCHIVES = {
    "zip entry": (b"PK\1\2", "zip"), "zip member": (b"PK\3\4", "zip"), "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "zip64 end": (b"PK\6\6", "zip"),
}  # fmt: skip


@pytest.mark.parametrize("before", [0, 1, 4000, (1 << 20) - 3], ids=str)
@pytest.mark.parametrize("what", ARCHIVES)
def test_bytes_that_hold_another_archive_are_kept(tmp_path, what, before):
    sign, word = ARCHIVES[what]
    (answer,) = treat(longer(safetensors(tmp_path / "m.bin"), bytes(before) + sign + bytes(40)))
    assert isinstance(answer, Refusal)
    assert "they hold " in answer.reason
    assert word in answer.reason
    assert (answer.codes, answer.remedy) == (("CK005",), "trailing-bytes")
    assert answer.hint


BEGINNINGS = {
    "pickle": b"\x80\2}.",
    "pickle of protocol 5": b"\x80\5}.",
    "NumPy array": b"\x93NUMPY\1\0",
    "tar archive": bytes(257) + b"ustar",
    "safetensors file": struct.pack("<Q", 2) + b"{}",
}


def test_a_safetensors_file_that_ends_with_its_header_is_kept(tmp_path):
    (answer,) = treat(longer(safetensors(tmp_path / "m.bin"), BEGINNINGS["safetensors file"]))
    assert isinstance(answer, Refusal)


@pytest.mark.parametrize("what", BEGINNINGS)
def test_bytes_that_begin_like_a_file_are_kept(tmp_path, what):
    (answer,) = treat(longer(safetensors(tmp_path / "m.bin"), BEGINNINGS[what] + bytes(300)))
    assert isinstance(answer, Refusal)
    assert answer.reason.startswith("they hold a")
    assert what.partition(" of ")[0] in answer.reason


@pytest.mark.parametrize(
    "tail", [b"\x80\1}.", b"\x80\6}.", b"x\x80\2}.", struct.pack("<Q", 3) + b"{}"],
    ids=["protocol 1", "protocol 6", "pickle further in", "header beyond the end"],
)  # fmt: skip
def test_bytes_that_begin_like_nothing_known_are_dropped(tmp_path, tail):
    (answer,) = treat(longer(safetensors(tmp_path / "m.bin"), tail))
    assert isinstance(answer, Trim)


def test_a_zip_archive_appended_to_another_format_is_kept(tmp_path):
    other = torch_zip(tmp_path / "other.bin").read_bytes()
    (answer,) = treat(longer(safetensors(tmp_path / "m.bin"), other))
    assert isinstance(answer, Refusal)


def test_a_second_object_of_an_old_torch_file_is_kept(tmp_path):
    path = legacy(tmp_path / "m.bin")
    (answer,) = treat(longer(path, path.read_bytes()))
    assert isinstance(answer, Refusal)
    assert "pickle" in answer.reason


@pytest.mark.parametrize(("at", "kept"), [(0, True), (30, True), (-1, False)], ids=str)
def test_pickles_found_behind_the_end_are_kept(tmp_path, at, kept):
    path = legacy(tmp_path / "m.bin")
    end = path.stat().st_size
    with opened(longer(path, bytes(40))) as patient:
        where = f"{patient.ctx.table.path}+{end + at}"
        code = container_finding("CK002", Severity.NOTE, "names os.system", where=where)
        patient.findings = (*patient.findings, code)
        (answer,) = TrailingBytes().propose(patient, [])
    assert isinstance(answer, Refusal) is kept
    if kept:
        assert answer.reason == "they hold a pickle"


@pytest.mark.parametrize("where", ["m.bin:member+999999", "m.bin", "m.bin+x", "99999999"])
def test_pickles_elsewhere_are_no_reason_to_keep_them(tmp_path, where):
    with opened(longer(legacy(tmp_path / "m.bin"), bytes(40))) as patient:
        where = where.replace("m.bin", patient.ctx.table.path)
        code = container_finding("CK002", Severity.ERROR, "names os.system", where=where)
        patient.findings = (*patient.findings, code)
        (answer,) = TrailingBytes().propose(patient, [])
    assert isinstance(answer, Trim)


@pytest.mark.parametrize(
    ("severity", "kept"), [(Severity.WARNING, False), (Severity.ERROR, True)], ids=["hint", "error"]
)
def test_a_file_that_is_ambiguous_elsewhere_is_left_alone(healthy, severity, kept):
    with opened(longer(healthy, bytes(40))) as patient:
        doubt = container_finding("CK005", severity, "two members of one name")
        patient.findings = (*patient.findings, doubt)
        (answer,) = TrailingBytes().propose(patient, [])
    assert isinstance(answer, Refusal) is kept
    if kept:
        assert "ambiguous" in answer.reason


def test_bytes_behind_a_member_or_a_shard_are_not_the_files(healthy):
    with opened(longer(healthy, bytes(40))) as patient:
        patient.findings = tuple(replace(f, where=f"{f.where}:x") for f in patient.findings)
        (answer,) = TrailingBytes().propose(patient, [])
    assert isinstance(answer, Refusal)
    assert "part of the checkpoint" in answer.reason


@pytest.mark.parametrize("end", [0, -5, 10**9], ids=str)
def test_an_end_that_is_none_is_refused(tmp_path, end):
    with opened(longer(safetensors(tmp_path / "m.bin"), bytes(40))) as patient:
        patient.findings = tuple(replace(f, measured={"end": end}) for f in patient.findings)
        (answer,) = TrailingBytes().propose(patient, [])
    assert isinstance(answer, Refusal)
    assert "not known" in answer.reason


def test_bytes_that_cannot_be_read_are_refused(healthy, monkeypatch):
    with opened(longer(healthy, bytes(40))) as patient:

        def broken(*_):
            raise FormatError("read failed")

        monkeypatch.setattr("ckptdoctor.sources.FileSource.pread", broken)
        (answer,) = TrailingBytes().propose(patient, [])
    assert answer.reason == "they cannot be read: read failed"
