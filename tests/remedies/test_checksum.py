"""A checksum that does not fit: its bit is flipped back, or it is stated anew, or left alone."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import patients
import pytest
import torch_bytes as tb

from ckptdoctor.diagnose import diagnose
from ckptdoctor.edits import Edit, Refusal, Restamp
from ckptdoctor.errors import FormatError
from ckptdoctor.formats import open_path
from ckptdoctor.measure.scan import measure
from ckptdoctor.remedies.base import Ailment, Orders, Patient
from ckptdoctor.remedies.checksum import Checksum, index_of
from ckptdoctor.rules.base import Context
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import Checksum as Stated
from ckptdoctor.tensors import TensorInfo, TensorTable

Answers = list[Edit | Restamp | Refusal]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Patient]:
    with open_path(path) as table:
        measured = measure(table)
        findings = diagnose(table, measured).findings
        yield Patient(ctx=Context(table, measured.stats), findings=findings, orders=Orders())


def treat(path: Path, ailments: Sequence[Ailment] = ()) -> Answers:
    with opened(path) as patient:
        return list(Checksum().propose(patient, ailments))


def flipped(path: Path, at: int, bit: int, out: str = "flipped.pt") -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    target = path.with_name(out)
    target.write_bytes(data)
    return target


def start_of(path: Path, member: str) -> int:
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(member)
    lengths = struct.unpack_from("<HH", path.read_bytes(), info.header_offset + 26)
    return info.header_offset + 30 + sum(lengths)


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    return patients.save_torch(tmp_path / "healthy.pt", patients.state())


def place_of(path: Path, name: str) -> int:
    with open_path(path) as table:
        extent = table[name].extent
    assert extent is not None
    assert extent.source.name == str(path)
    return extent.offset


@pytest.mark.parametrize("bit", [0, 12, 23, 31], ids=["last", "fraction", "exponent", "sign"])
@pytest.mark.parametrize("index", [0, 100, 1151], ids=str)
def test_the_flipped_bit_of_a_weight_is_flipped_back(healthy, index, bit):
    name = "conv2.weight"
    at = place_of(healthy, name) + 4 * index + bit // 8
    (edit,) = treat(flipped(healthy, at, bit % 8))
    assert isinstance(edit, Edit)
    assert (edit.tensor, edit.indices.tolist()) == (name, [index])
    assert edit.after().tobytes() == patients.state()[name].reshape(-1)[index : index + 1].tobytes()
    assert (edit.remedy, edit.kind, edit.cures) == ("checksum", "statistical", ("CK001",))
    where = [int(i) for i in np.unravel_index(index, (16, 8, 3, 3))]
    assert f"element {where}: " in edit.title
    assert "chance of 8.6e-06" in edit.title


def test_a_healthy_file_is_left_alone(healthy):
    assert treat(healthy) == []


def test_each_damaged_member_is_treated_for_itself(healthy):
    one = flipped(healthy, place_of(healthy, "conv2.weight") + 9, 3)
    both = flipped(one, place_of(healthy, "fc.bias") + 1, 1, "both.pt")
    edits = treat(both)
    assert [edit.tensor for edit in edits] == ["conv2.weight", "fc.bias"]
    assert edits[1].after().tobytes() == patients.state()["fc.bias"][:1].tobytes()


def test_two_flipped_bits_can_only_be_silenced(healthy):
    at = place_of(healthy, "conv2.weight")
    (restamp,) = treat(flipped(flipped(healthy, at, 3), at + 50, 3, "two.pt"))
    assert isinstance(restamp, Restamp)
    assert (restamp.kind, restamp.cures, restamp.remedy) == ("destructive", ("CK001",), "checksum")
    assert restamp.where.endswith("two.pt:archive/data/6")
    assert "nobody has located" in restamp.title


def ailment(patient: Patient, name: str, *bad: int) -> Ailment:
    return Ailment(
        info=patient.ctx.table[name], layer=None, part="", bad=np.array(bad), codes=("NF001",)
    )


def test_findings_about_the_element_alone_are_cured_with_the_checksum(healthy):
    sick = flipped(healthy, place_of(healthy, "conv2.weight") + 4 * 7 + 3, 6)
    with opened(sick) as patient:
        for bad, cures in [((7,), ("CK001", "NF001")), ((7, 9), ("CK001",)), ((9,), ("CK001",))]:
            (edit,) = Checksum().propose(patient, [ailment(patient, "conv2.weight", *bad)])
            assert edit.cures == cures
        (edit,) = Checksum().propose(patient, [ailment(patient, "conv3.weight", 7)])
        assert edit.cures == ("CK001",)


def test_a_value_that_stays_broken_is_not_cured(tmp_path):
    values = np.full((2, 4), np.nan, np.float32)
    path = patients.save_torch(tmp_path / "nan.pt", {"fc.weight": values})
    with opened(flipped(path, place_of(path, "fc.weight"), 3)) as patient:
        (edit,) = Checksum().propose(patient, [ailment(patient, "fc.weight", 0)])
    assert edit.cures == ("CK001",)
    assert "element [0, 0]: nan -> nan" in edit.title


# --- how sure it is -------------------------------------------------------------------------------


def long_file(path: Path, count: int) -> Path:
    values = np.tile(np.float32([0.5, -0.25, 0.125, 0.75]), -(-count // 4))[:count]
    return patients.save_torch(path, {"fc.weight": values.reshape(1, -1)})


@pytest.mark.parametrize(("count", "sure"), [(1_342_177, True), (1_342_178, False)], ids=str)
def test_one_damage_in_a_hundred_may_look_like_the_bit_by_chance(tmp_path, count, sure):
    path = long_file(tmp_path / "long.pt", count)
    sick = flipped(path, place_of(path, "fc.weight") + 400, 3)
    (answer,) = treat(sick)
    assert isinstance(answer, Edit if sure else Restamp)
    if not sure:
        assert answer.kind == "destructive"
        assert "element [0, 100]: 0.5 -> 0.5" in answer.title
        assert "1% of all damage" in answer.title


def test_in_longer_data_a_value_that_is_broken_anyway_is_evidence(tmp_path):
    path = long_file(tmp_path / "long.pt", 1_400_000)
    at = place_of(path, "fc.weight")
    sick = flipped(path, at + 400 + 3, 6)  # 0.5 becomes 1.7e38
    with opened(sick) as patient:
        (edit,) = Checksum().propose(patient, [ailment(patient, "fc.weight", 100)])
        assert isinstance(edit, Edit)
        assert "chance of 7.5e-09" in edit.title
        assert edit.cures == ("CK001", "NF001")
        (edit,) = Checksum().propose(patient, [ailment(patient, "fc.weight", *range(100, 104))])
        assert "chance of 3e-08" in edit.title
        (other,) = Checksum().propose(patient, [ailment(patient, "fc.weight", 101)])
        assert isinstance(other, Restamp)


def test_a_bit_that_leads_to_no_number_is_no_evidence(tmp_path):
    values = np.full(1_400_000, 0.5, np.float32)
    values[100] = np.float32(np.nan)
    path = patients.save_torch(tmp_path / "long.pt", {"fc.weight": values.reshape(1, -1)})
    sick = flipped(path, place_of(path, "fc.weight") + 400, 3)  # still NaN
    with opened(sick) as patient:
        (answer,) = Checksum().propose(patient, [ailment(patient, "fc.weight", 100)])
    assert isinstance(answer, Restamp)


# --- the checksum itself --------------------------------------------------------------------------


def fields(path: Path, member: str) -> tuple[int, int]:
    """Offsets of the CRC-32 in the directory and in the local header."""
    data, name = path.read_bytes(), member.encode()
    entry = data.rindex(b"PK\1\2", 0, data.rindex(name))
    with zipfile.ZipFile(path) as file:
        return entry + 16, file.getinfo(member).header_offset + 14


def test_a_flipped_bit_of_both_records_leaves_the_data_alone(healthy):
    directory, local = fields(healthy, "archive/data/6")
    sick = flipped(flipped(healthy, directory + 1, 5), local + 1, 5, "both.pt")
    (restamp,) = treat(sick)
    assert isinstance(restamp, Restamp)
    assert (restamp.kind, restamp.cures) == ("statistical", ("CK001",))
    assert "the data are sound" in restamp.title


def test_the_archives_second_record_proves_the_data(healthy):
    directory, _ = fields(healthy, "archive/data/6")
    data = bytearray(healthy.read_bytes())
    data[directory : directory + 4] = b"\1\2\3\4"
    sick = healthy.with_name("sick.pt")
    sick.write_bytes(data)
    (restamp,) = treat(sick)
    assert isinstance(restamp, Restamp)
    assert (restamp.kind, restamp.cures) == ("lossless", ("CK001",))
    assert restamp.where == f"{sick}:archive/data/6"
    assert "second record" in restamp.title


# --- what is refused ------------------------------------------------------------------------------


def refused(path: Path) -> Refusal:
    answers = treat(path)
    (answer,) = answers
    assert isinstance(answer, Refusal)
    assert (answer.codes, answer.remedy) == (("CK001",), "checksum")
    assert answer.hint
    return answer


def test_a_member_that_holds_no_tensor_is_refused(healthy):
    at = start_of(healthy, "archive/data.pkl")
    data = healthy.read_bytes()
    name = data.index(b"running_mean", at)
    answer = refused(flipped(healthy, name, 0))  # another name for a tensor
    assert answer.target.endswith(":archive/data.pkl")
    assert "guards no tensors" in answer.reason


def test_a_bit_between_tensors_is_refused(tmp_path):
    where = tb.storage("0", "FloatStorage", 64)
    state = {"w": tb.tensor(where, (8,)), "v": tb.tensor(where, (8,), offset=32)}
    path = tmp_path / "m.pt"
    path.write_bytes(tb.archive(state, {"0": np.ones(64, np.float32).tobytes()}))
    answer = refused(flipped(path, place_of(path, "w") + 4 * 10 + 1, 6))
    assert "bit 6 of byte 41 of 256, in no plain tensor" in answer.reason


@pytest.mark.parametrize("what", [{"encoding": "opaque"}, {"dtype": "quint4x2"}], ids=str)
def test_elements_without_bytes_of_their_own_are_refused(healthy, what):
    with opened(flipped(healthy, place_of(healthy, "conv2.weight"), 3)) as patient:
        table = patient.ctx.table
        infos = {name: info._replace(**what) for name, info in table.infos.items()}
        object.__setattr__(table, "infos", infos)
        (answer,) = Checksum().propose(patient, [])
    assert "in no plain tensor" in answer.reason


def test_archives_without_checksums_are_left_alone(tmp_path, healthy):
    data = bytearray(healthy.read_bytes())
    for offset in fields(healthy, "archive/data/6"):
        data[offset : offset + 4] = bytes(4)
    path = tmp_path / "bare.pt"
    path.write_bytes(data)
    with opened(path) as patient:
        assert [f.severity.name for f in patient.about("CK001")] == ["NOTE"]
        assert list(Checksum().propose(patient, [])) == []


def test_two_members_of_one_name_are_refused(healthy):
    sick = flipped(healthy, place_of(healthy, "conv2.weight"), 3)
    with opened(sick) as patient:
        table = patient.ctx.table
        (stated,) = [c for c in table.checksums if c.where.endswith("data/6")]
        object.__setattr__(table, "checksums", (*table.checksums, stated))
        (answer,) = Checksum().propose(patient, [])
    assert "two members of this name" in answer.reason


def test_compressed_members_are_refused(tmp_path, healthy):
    buffer = io.BytesIO()
    with zipfile.ZipFile(healthy) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            kind = zipfile.ZIP_DEFLATED if info.filename.endswith("data/6") else zipfile.ZIP_STORED
            new.writestr(info.filename, old.read(info), kind)
    data = bytearray(buffer.getvalue())
    path = tmp_path / "packed.pt"
    path.write_bytes(data)
    for offset in fields(path, "archive/data/6"):
        data[offset] ^= 7
    path.write_bytes(data)
    assert "compressed" in refused(path).reason


def test_checksums_of_other_containers_than_zip_are_not_stated_anew(healthy):
    sick = flipped(healthy, place_of(healthy, "conv2.weight"), 3)
    with opened(sick) as patient:
        table = patient.ctx.table
        plain = tuple(c._replace(header=-1) for c in table.checksums)
        object.__setattr__(table, "checksums", plain)
        (answer,) = Checksum().propose(patient, [])
    assert isinstance(answer, Refusal)


def test_values_that_cannot_be_read_are_refused(healthy, monkeypatch):
    with opened(flipped(healthy, place_of(healthy, "conv2.weight"), 3)) as patient:

        def broken(*_):
            raise FormatError("read failed")

        monkeypatch.setattr("ckptdoctor.sources.FileSource.pread", broken)
        (answer,) = Checksum().propose(patient, [])
    assert "cannot be read: read failed" in answer.reason


# --- which element a byte belongs to --------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3), None), ((2, 3), (3, 1)), ((2, 3), (1, 2)), ((4,), (3,)), ((2, 2, 2), (1, 8, 2)),
        ((3, 1, 2), (2, 9, 1)), ((), None), ((), ()), ((2, 2), (5, 1)), ((3, 2), (0, 1)),
    ],
    ids=str,
)  # fmt: skip
def test_bytes_lead_to_their_elements_in_any_order(shape, strides):
    info = TensorInfo(name="w", path=("w",), dtype="float16", shape=shape, strides=strides)
    steps = strides if strides is not None else np.array(np.empty(shape).strides) // 8
    found = {}
    for index in reversed(range(info.size)):
        at = (
            int(np.dot(np.unravel_index(index, shape or (1,))[: len(shape)], steps)) if shape else 0
        )
        found[at] = index
    for offset in range(-1, max(found) + 2):
        for byte in (0, 1):
            if offset >= 0:
                assert index_of(info, 2 * offset + byte) == found.get(offset)


def test_an_empty_view_has_no_element():
    info = TensorInfo(name="w", path=("w",), dtype="float32", shape=(0, 2), strides=(1, 1))
    assert index_of(info, 0) is None


@pytest.mark.parametrize("big", [False, True], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int64", "complex64", "complex32", "bool"])
def test_elements_of_every_type_and_byte_order_are_restored(kind, big):
    dtype = {"bfloat16": ml_dtypes.bfloat16, "complex32": np.dtype("f2,f2")}.get(kind, kind)
    whole = np.frombuffer(bytes([1, 0] * 64), np.uint8).view(dtype)
    stored = whole.byteswap() if big and kind not in ("bool", "complex32") else whole
    data = bytearray(b"head" + stored.tobytes() + b"tail")
    bit = 8 * (4 + 3 * whole.itemsize) + 2
    stated = zlib.crc32(data)
    data[bit // 8] ^= 1 << bit % 8
    source = WindowSource("m", WindowSource.over(b"123" + bytes(data), "below"), 3, len(data))
    info = TensorInfo(
        name="w", path=("w",), dtype=kind, shape=(whole.size,), big_endian=stored is not whole,
        extent=Extent(source, 4, stored.nbytes),
    )  # fmt: skip
    checksum = Stated(Extent(source.below, 3, len(data)), stated, "m:0", 0, 0)
    other = WindowSource.over(bytes(data), "another file")
    twin = info._replace(name="v", extent=Extent(other, 4 + 3, stored.nbytes))
    infos = {"v": twin, "w": info}
    table = TensorTable(path="m", format="x", infos=infos, checksums=(checksum,))
    measured = measure(table)
    findings = measured.findings
    patient = Patient(ctx=Context(table, measured.stats), findings=findings, orders=Orders())
    (edit,) = Checksum().propose(patient, [])
    assert isinstance(edit, Edit)
    assert (edit.tensor, edit.indices.tolist()) == ("w", [3])
    assert edit.after().tobytes() == whole[3:4].tobytes()
    assert edit.after().dtype == whole.dtype
