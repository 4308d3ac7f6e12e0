"""safetensors: what the library writes is read, what is wrong is said of the tensor it is wrong with."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptdoctor.dtypes import DTYPES, SAFETENSORS
from ckptdoctor.errors import CkptDoctorError, FormatError, TruncatedError, UnsupportedError
from ckptdoctor.findings import Severity
from ckptdoctor.formats import open_path
from ckptdoctor.formats.safetensors import looks_like_safetensors, read_safetensors
from ckptdoctor.sources import WindowSource
from ckptdoctor.tensors import TensorTable


def raw(header, data=b""):
    """Bytes of a file; ``header`` is text, or an object for json."""
    text = header if isinstance(header, bytes | str) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + data


def entry(shape=(2, 2), dtype="F32", offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def read(data):
    infos, metadata, findings = read_safetensors(WindowSource.over(data, "m.safetensors"))
    table = TensorTable(path="m", format="safetensors", infos=infos, metadata=metadata)
    return table, findings


SIXTEEN = bytes(range(16))


class TestSoundFiles:
    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=12),
            npst.arrays(
                st.sampled_from([np.dtype(d) for d in ("?", "u1", "i8", "f2", "f4", "f8", "u4")]),
                npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            ),
            max_size=5,
        )
    )
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_tensors_are_those_that_the_library_wrote(self, held):
        held.pop("__metadata__", None)
        table, findings = read(safetensors.numpy.save(held))
        assert findings == []
        assert set(table) == set(held)
        for name, array in held.items():
            assert (table[name].shape, table[name].dtype) == (array.shape, array.dtype.name)
            assert table.read(name).tobytes() == array.tobytes()

    @pytest.mark.parametrize("code", SAFETENSORS)
    def test_dtype_has_the_width_that_the_library_gives_it(self, code):
        bits = DTYPES[SAFETENSORS[code]].bits
        data = raw({"w": entry((8,), code, (0, bits))}, bytes(bits))
        safetensors.deserialize(data)  # the reference implementation agrees
        table, findings = read(data)
        assert findings == []
        assert table["w"].nbytes == table["w"].extent.length == bits

    def test_names_roles_and_metadata(self):
        header = {
            "__metadata__": {"format": "pt", "note": "12:30"},
            "fc.weight": entry((4,)),
            "optimizer.state.0.exp_avg": entry((0,), offsets=(16, 16)),
        }
        table, findings = read(raw(header, SIXTEEN))
        assert findings == []
        assert table["fc.weight"].path == ("fc.weight",)
        assert table["fc.weight"].role == "model"
        assert table["optimizer.state.0.exp_avg"].role == "optimizer"
        assert table.metadata == {"format": "pt", "note": "12:30", "framework": "torch"}

    @pytest.mark.parametrize(
        "header",
        [
            pytest.param("{}", id="no tensors"),
            pytest.param(
                '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}   ', id="padding"
            ),
            pytest.param(
                '{"b":{"dtype":"U8","shape":[8],"data_offsets":[8,16]},'
                '"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
                id="data in another order",
            ),
            pytest.param(
                '{"e":{"dtype":"F32","shape":[0,999999999],"data_offsets":[0,0]},'
                '"w":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
                '"x":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}}',
                id="empty tensor and scalar",
            ),
            pytest.param(
                '{"a:0":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}', id="colon in a name"
            ),
            pytest.param(
                '{"\\u00e9":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}', id="escape"
            ),
        ],
    )
    def test_unusual_header_is_nothing_to_report(self, header):
        _, findings = read(raw(header, SIXTEEN if len(header) > 9 else b""))
        assert findings == []


def one(**changed):
    return raw({"w": {**entry(), **changed}}, SIXTEEN)


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(b"\1\2\3", "header length of 8 bytes, found 3", id="three bytes"),
            pytest.param(
                (2**64 - 1).to_bytes(8, "little") + b"{}", "18,446", id="length of 2^64-1"
            ),
            pytest.param(
                (99).to_bytes(8, "little") + b"{}", "has 99 bytes, 2 are", id="cut header"
            ),
            pytest.param(raw(b"[1]"), "starts with '{'", id="array"),
            pytest.param(raw(b"\xef\xbb\xbf{}"), "starts with '{'", id="byte order mark"),
            pytest.param(raw(b' {"a":1}'), "starts with '{'", id="space before the brace"),
            pytest.param(raw(b'{"\xff":1}'), "not UTF-8", id="no UTF-8"),
            pytest.param(raw(b"{]"), "not JSON", id="no JSON"),
            pytest.param(raw(b'{"a":' * 50_000), "not JSON", id="nested too deep"),
            pytest.param(raw(b'{"a":NaN}'), "NaN", id="NaN"),
            pytest.param(
                raw(b'{"a":' + b"9" * 5000 + b"}"), "not JSON", id="number of 5000 digits"
            ),
            pytest.param(raw({"w": None}), "'w': expected an object, found None", id="null"),
            pytest.param(raw({"w": [1]}), "expected an object", id="list for an entry"),
            pytest.param(
                raw({"w": {"dtype": "F32", "shape": []}}), "no data_offsets", id="no offsets"
            ),
            pytest.param(one(dtype=7), "dtype such as 'F32', found 7", id="number for a dtype"),
            pytest.param(one(dtype=["F32"]), "dtype such as", id="list for a dtype"),
            pytest.param(one(shape=4), "shape of whole numbers", id="number for a shape"),
            pytest.param(one(shape={}), "shape of whole numbers", id="object for a shape"),
            pytest.param(
                raw({"w": {**entry(offsets=(0, 4)), "shape": ""}}, bytes(4)),
                "shape of whole numbers",
                id="text for a shape",
            ),
            pytest.param(one(shape=[True, 4]), "shape of whole numbers", id="bool in a shape"),
            pytest.param(one(shape=[2.0, 2]), "shape of whole numbers", id="float in a shape"),
            pytest.param(one(shape=[-2, -2]), "shape of whole numbers", id="negative shape"),
            pytest.param(one(shape=[2**62, 4, 2]), "larger than any file", id="shape wraps"),
            pytest.param(one(shape=[2**64, 0]), "larger than any file", id="empty, yet too large"),
            pytest.param(one(shape=[3]), "needs 12 bytes, data_offsets give 16", id="wrong shape"),
            pytest.param(one(data_offsets=[0]), "two whole numbers", id="one offset"),
            pytest.param(one(data_offsets=[0, 8, 16]), "two whole numbers", id="three offsets"),
            pytest.param(one(data_offsets=[0, 16.0]), "two whole numbers", id="float offset"),
            pytest.param(one(data_offsets="ab"), "two whole numbers", id="text for offsets"),
            pytest.param(one(data_offsets=[16, 0]), "0 <= begin <= end", id="end before begin"),
            pytest.param(one(data_offsets=[-16, 0]), "0 <= begin <= end", id="negative offset"),
            pytest.param(one(dtype="F4", shape=[31]), "ends within a byte", id="half a byte"),
            pytest.param(
                raw({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)),
                "'b': overlaps tensor 'a' by 8 bytes",
                id="overlap",
            ),
            pytest.param(
                raw({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36)),
                "'b': 4 bytes of no tensor lie before it",
                id="hole",
            ),
            pytest.param(one(data_offsets=[1, 17]), "1 bytes of no tensor", id="hole at the start"),
        ],
    )
    def test_malformed_file_is_refused(self, data, message):
        with pytest.raises(FormatError, match=re.escape(message)):
            read(data)
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(data)

    def test_more_dimensions_than_numpy_holds_are_refused(self):
        with pytest.raises(FormatError, match="32 dimensions, found 34"):
            read(one(shape=[1] * 33 + [4]))

    def test_unknown_dtype_is_unsupported(self):
        with pytest.raises(UnsupportedError, match="'F7'"):
            read(one(dtype="F7"))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(one()[:30] + b"<html><body>404</body></html>\n", id="in the header"),
            pytest.param(one()[:-8] + b"<!doctype html><html></html>", id="in the data"),
        ],
    )
    def test_web_page_at_the_end_is_refused(self, data):
        with pytest.raises(FormatError, match="web page"):
            read(data)

    def test_message_does_not_grow_with_the_file(self):
        data = raw({"x" * 100_000: entry(shape=[10**300] * 1000)}, SIXTEEN)
        with pytest.raises(FormatError) as caught:
            read(data)
        assert len(str(caught.value)) < 600

    def test_huge_header_of_one_shape_takes_linear_time(self):
        with pytest.raises(FormatError):
            read(one(shape=[2**61] * 200_000))


class TestDamageThatLeavesTensorsReadable:
    def test_cut_data_keeps_the_whole_tensors(self):
        data = raw({"a": entry(), "b": entry(offsets=(16, 32))}, SIXTEEN * 2)[:-1]
        table, (finding,) = read(data)
        assert (finding.code, finding.severity) == ("CK004", Severity.ERROR)
        assert "1 of 32 bytes of data are missing: 1 of 2 tensors" in finding.message
        assert (table["a"].encoding, table["b"].encoding) == ("plain", "absent")
        assert table.read("a").tobytes() == SIXTEEN

    def test_data_that_leaves_no_tensor_is_refused(self):
        with pytest.raises(TruncatedError, match="1 of 1 tensors"):
            read(one()[:-1])

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(one() + b"abc", "3 bytes follow", id="bytes behind"),
            pytest.param(
                raw(
                    '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
                    '"w":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}',
                    SIXTEEN,
                ),
                "first 'w'",
                id="name twice",
            ),
            pytest.param(
                raw(
                    '{"w":{"dtype":"F32","dtype":"I32","shape":[4],"data_offsets":[0,16]}}', SIXTEEN
                ),
                "first 'dtype'",
                id="field twice",
            ),
            pytest.param(
                raw(
                    '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
                    '"w":{"d\\u0074ype":"I32","shape":[4],"data_offsets":[0,16]}}',
                    SIXTEEN,
                ),
                "first 'w'",
                id="name twice behind an escape",
            ),
            pytest.param(
                raw({"__metadata__": {"a": 1}, "w": entry()}, SIXTEEN),
                "strings",
                id="number in metadata",
            ),
            pytest.param(
                raw({"__metadata__": [], "w": entry()}, SIXTEEN), "strings", id="list for metadata"
            ),
            pytest.param(
                raw('{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', SIXTEEN),
                "half a character",
                id="half a character",
            ),
        ],
    )
    def test_it_is_an_error_and_the_tensor_is_read(self, data, message):
        table, (finding,) = read(data)
        assert (finding.code, finding.severity) == ("CK005", Severity.ERROR)
        assert message in finding.message
        assert len(table) == 1
        (name,) = table
        name.encode()
        assert table.read(name).tobytes() == SIXTEEN

    def test_of_two_entries_the_last_counts(self):
        header = '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},' + (
            '"w":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}'
        )
        assert read(raw(header, SIXTEEN))[0]["w"].dtype == "int32"

    @given(data=st.data())
    @settings(max_examples=200, deadline=None)
    def test_damage_is_a_named_error_or_a_readable_table(self, data):
        whole = raw(
            {"__metadata__": {"a": "b"}, "a": entry(), "b": entry(offsets=(16, 32))}, bytes(32)
        )
        damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
        for at in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=3)):
            if damaged:
                damaged[at] = data.draw(st.integers(0, 255))
        with suppress(CkptDoctorError):
            table, _ = read(bytes(damaged))
            for name, info in table.items():
                assert info.encoding == "absent" or table.read(name).shape == info.shape


@pytest.mark.parametrize(
    ("head", "size", "expected"),
    [
        pytest.param(raw(b"{}"), 10, True, id="smallest file"),
        pytest.param(b"\xff" * 8 + b'{"w"', 100, True, id="absurd length"),
        pytest.param(raw(b"[1]"), 11, True, id="array for a header"),
        pytest.param(raw(b"\xef\xbb\xbf{}"), 13, True, id="byte order mark"),
        pytest.param(b"\x80\2\0\0\0\0\0\0{", 700, True, id="header of 640 bytes"),
        pytest.param(b"\x80\2}q\0(X\1{aX", 30, False, id="pickle"),
        pytest.param(b'{"data":{"a":1}}', 16, False, id="JSON"),
        pytest.param(b"", 0, False, id="nothing"),
    ],
)
def test_recognised_by_its_first_bytes(head, size, expected):
    assert looks_like_safetensors(head, size) == expected


def spread(length, tensors):
    """A header of this length, and data for its tensors."""
    header = {f"l.{i}": entry((4,), offsets=(16 * i, 16 * i + 16)) for i in range(tensors)}
    return raw(json.dumps(header).ljust(length), bytes(16 * tensors))


@pytest.mark.parametrize("length", [17960, 18216, 18728, 19496, 20520, 1132840])
@pytest.mark.parametrize("filled", [False, True], ids=["zeros", "random"])
def test_header_whose_length_reads_like_opcodes_is_no_pickle(tmp_path, length, filled):
    """One length in 500 is ``(`` and an opcode that takes a line, whose end is far behind."""
    data = bytearray(spread(length, 200))
    if filled:
        data[-3200:] = np.random.default_rng(0).bytes(3200)
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with open_path(path) as table:
        assert (table.format, len(table), table.findings) == ("safetensors", 200, ())


def test_pickle_behind_such_a_header_is_told(tmp_path):
    """``(V`` takes the whole header for a line of text."""
    pickled = b"\ncos\nsystem\n(Vtrue\ntR."
    pickled += bytes(-len(pickled) % 4)
    header = {"l": entry((len(pickled) // 4,), offsets=(0, len(pickled)))}
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(json.dumps(header).ljust(0x5628), pickled))
    with open_path(path) as table:
        assert ["but also as" in finding.message for finding in table.findings] == [True]
