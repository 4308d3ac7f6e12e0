"""npz: what NumPy writes is read to the bit; headers are parsed, never evaluated."""

from __future__ import annotations

import io
import zipfile
import zlib
from contextlib import suppress

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptdoctor.containers.zip import read_archive
from ckptdoctor.errors import CkptDoctorError, FormatError
from ckptdoctor.findings import Severity
from ckptdoctor.formats.npz import read_npz
from ckptdoctor.sources import WindowSource
from ckptdoctor.tensors import ArrayDecoder, TensorTable


def saved(compressed=False, **arrays):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def members(*held):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in held:
            file.writestr(name, data)
    return buffer.getvalue()


def npy(descr="'<f4'", order="False", shape="(2,)", data=bytes(8), version=(1, 0)):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode() + b"\n"
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + data


def read(data, **options):
    contents = read_npz(read_archive(WindowSource.over(data, "m.npz")), **options)
    decoder = ArrayDecoder(contents.arrays)
    table = TensorTable(path="m", format="npz", infos=contents.infos, decoder=decoder)
    return table, contents.findings, contents


DTYPES = [np.dtype(d) for d in ("?", "u1", "<i4", ">i4", "<f2", ">f4", "<f8", "<c8", ">c16")]


class TestSoundFiles:
    @given(
        npst.arrays(st.sampled_from(DTYPES), npst.array_shapes(min_dims=0, max_dims=3, min_side=0)),
        st.booleans(),
        st.booleans(),
    )
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_array_is_the_one_that_was_saved(self, array, fortran, compressed):
        array = np.asarray(array, order="F" if fortran else "C")
        table, findings, contents = read(saved(compressed, w=array))
        assert findings == []
        assert table["w"].shape == array.shape
        assert table["w"].dtype == array.dtype.name
        back = table.read("w")
        assert back.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()
        (checksum,) = contents.checksums
        assert zlib.crc32(checksum.extent.read()) == checksum.crc32

    def test_names_are_those_of_the_arrays_and_their_paths_tell_the_role(self):
        table, _, _ = read(saved(**{"a.b": np.zeros(1), "optimizer/m": np.zeros(1)}))
        assert list(table) == ["a.b", "optimizer/m"]
        assert [info.role for info in table.values()] == ["model", "optimizer"]
        assert table["a.b"].path == ("a.b",)

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_versions_of_the_header(self, version):
        table, findings, _ = read(members(("w.npy", npy(version=version))))
        assert (findings, table["w"].shape) == ([], (2,))

    def test_header_of_python_2(self):
        table, _, _ = read(members(("w.npy", npy(shape="(2L,)"))))
        assert table["w"].shape == (2,)

    @pytest.mark.parametrize(
        "array",
        [
            pytest.param(np.array(["ab", "c"]), id="text"),
            pytest.param(np.array(["2026-01-01"], "M8[D]"), id="dates"),
            pytest.param(np.zeros(2, [("a", "<f4"), ("b", "<i2")]), id="records"),
            pytest.param(np.zeros(2, "V3"), id="raw bytes"),
            pytest.param(np.zeros(2, np.longdouble), id="long doubles"),
        ],
    )
    def test_other_types_are_opaque_bytes(self, array):
        table, findings, _ = read(saved(w=array))
        assert findings == []
        assert (table["w"].encoding, table["w"].shape) == ("opaque", array.shape)
        assert table["w"].extent.read() == array.tobytes()

    def test_compressed_member_is_inflated_from_one_source(self):
        _, _, contents = read(saved(True, w=np.arange(1000)))
        assert contents.infos["w"].extent.source is contents.checksums[0].extent.source


class TestObjectArrays:
    @pytest.mark.filterwarnings("ignore")
    def test_object_array_is_reported_and_left_out(self):
        table, findings, _ = read(saved(w=np.array([{}, 1], object), v=np.zeros(1)))
        assert list(table) == ["v"]
        assert ("CK002", Severity.WARNING) in [(f.code, f.severity) for f in findings]

    def test_names_in_its_pickle_are_judged(self):
        payload = b"cos\nsystem\n(S'true'\ntR."
        table, findings, _ = read(members(("w.npy", npy("'|O'", data=payload)), ("v.npy", npy())))
        assert list(table) == ["v"]
        assert any(f.unsafe and "os.system" in f.message for f in findings)

    @pytest.mark.parametrize("descr", ["'object'", "'O8'", "'i4,O'", "'<f4', 'descr': '|O'"])
    def test_every_spelling_of_objects_is_judged(self, descr):
        evil = b"cos\nsystem\n(S'x'\ntR."
        _, findings, _ = read(members(("w.npy", npy(descr, data=evil))))
        assert any(f.unsafe and f.code == "CK002" for f in findings)

    def test_a_key_that_hashes_without_end_is_an_error(self):
        bomb = b"}(" + b")" + b"2\x86" * 60 + b"K\x01u."
        _, findings, _ = read(members(("w.npy", npy("'|O'", data=bomb))))
        assert [f.code for f in findings if f.unsafe] == ["CK005"]

    def test_records_with_objects_are_pickles_too(self):
        payload = b"cos\nsystem\n(S'true'\ntR."
        _, findings, _ = read(members(("w.npy", npy("[('a', '|O')]", data=payload))))
        assert any("os.system" in f.message for f in findings)

    def test_variables_of_a_keras_file_are_found(self):
        held = {"0": np.arange(3.0), "1": np.ones(2, np.float16)}
        data = saved(**{"layers/dense": held, "__root__": {}, "optimizer": {"0": np.zeros(1)}})
        table, _, _ = read(data, keras=True)
        assert list(table) == ["layers/dense/vars/0", "layers/dense/vars/1", "optimizer/vars/0"]
        assert table.read("layers/dense/vars/1").tolist() == [1, 1]
        assert [info.role for info in table.values()] == ["model", "model", "optimizer"]


class TestDamage:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(b"hello", "start of a .npy file", id="no array"),
            pytest.param(
                npy()[:6] + b"\4" + npy()[7:], "version 1, 2 or 3, found 4", id="version 4"
            ),
            pytest.param(npy()[:20], "header has", id="cut header"),
            pytest.param(npy(shape="2"), "descr, fortran_order and shape", id="no tuple"),
            pytest.param(npy(shape="(-2,)"), "no shape", id="negative"),
            pytest.param(npy(shape="(2 2,)"), "descr, fortran_order and shape", id="missing comma"),
            pytest.param(npy(shape="(99999999999999999999,)"), "no shape", id="twenty digits"),
            pytest.param(npy(shape="(0, 999999999999, 999999999999,)"), "larger", id="too large"),
            pytest.param(npy(shape="(" + "1," * 33 + ")"), "no shape", id="33 dimensions"),
            pytest.param(npy(order="None"), "descr, fortran_order and shape", id="no order"),
            pytest.param(npy(descr="__import__('os')"), "descr, fortran", id="code for a type"),
            pytest.param(
                b"\x93NUMPY\2\0" + b"\xff\xff\xff\x7f" + bytes(50),
                "at most 65,536",
                id="long header",
            ),
        ],
    )
    def test_member_that_is_wrong_is_an_error_and_left_out(self, data, message):
        table, (finding,), _ = read(members(("bad.npy", data), ("good.npy", npy())))
        assert list(table) == ["good"]
        assert finding.severity is Severity.ERROR
        assert message in finding.message
        with pytest.raises(FormatError):
            read(members(("bad.npy", data)))

    def test_cut_array_is_absent(self):
        table, (finding,), _ = read(members(("w.npy", npy(data=bytes(7)))))
        assert (finding.code, table["w"].encoding) == ("CK004", "absent")
        assert "1 of 8 bytes are missing" in finding.message

    def test_surplus_bytes_are_a_warning(self):
        table, (finding,), _ = read(members(("w.npy", npy(data=bytes(9)))))
        assert (finding.code, finding.severity) == ("CK005", Severity.WARNING)
        assert table.read("w").tolist() == [0, 0]

    @given(data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_damage_is_a_named_error_or_a_table(self, data):
        raw = bytearray(
            saved(data.draw(st.booleans()), a=np.zeros((2, 3), order="F"), b=np.ones(2))
        )
        for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
            raw[at] = data.draw(st.integers(0, 255))
        with suppress(CkptDoctorError):
            table, _, _ = read(bytes(raw))
            for name, info in table.items():
                with suppress(CkptDoctorError):
                    assert info.encoding == "absent" or table.read(name) is not None
