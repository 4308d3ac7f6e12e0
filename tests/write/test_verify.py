"""Reading back: a difference anywhere is found, and only differences."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import write_helpers as wh

from ckptdoctor.errors import WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.sources import FileSource
from ckptdoctor.tensors import TensorTable
from ckptdoctor.write.verify import (
    Mark,
    check_bytes,
    check_elements,
    check_same_tables,
    check_untouched,
    elements,
)
from ckptdoctor.write.windows import Window

BLOCK = 1 << 20
SIZE = 3 * BLOCK + 77


@pytest.fixture
def pair(tmp_path):
    """Two files; the second with other bytes where asked."""
    opened = []
    data = np.random.default_rng(2).bytes(SIZE)

    def make(*changes, cut=0):
        other = bytearray(data)
        for at, new in changes:
            other[at : at + len(new)] = new
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(other[: len(other) - cut])
        opened.extend(FileSource(tmp_path / name) for name in ("a", "b"))
        return opened[-2:]

    yield make, data
    for source in opened:
        source.close()


def mark(data, at, new):
    return Mark.of(Window(at, data[at : at + len(new)], new))


class TestBytes:
    def test_marks_and_the_rest_are_compared(self, pair):
        make, data = pair
        changes = [(BLOCK + 5, b"abc"), (0, b"start"), (SIZE - 2, b"zz")]
        seen = []
        check_bytes(*make(*changes), [mark(data, *c) for c in changes], seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == SIZE - 2
        check_bytes(*make(), [], lambda _: None)

    @pytest.mark.parametrize("at", [0, 1, 9, 13, BLOCK - 1, BLOCK, 2 * BLOCK, SIZE - 1])
    def test_one_byte_elsewhere_is_found(self, pair, at):
        make, data = pair
        edit = (10, b"abc")
        wrong = (at, bytes([data[at] ^ 1]))
        with pytest.raises(WriteError, match="near byte") as caught:
            check_bytes(*make(edit, wrong), [mark(data, *edit)], lambda _: None)
        near = int(re.search(r"near byte ([\d,]+)", str(caught.value))[1].replace(",", ""))
        assert near <= at < near + BLOCK
        assert "check the disk" in str(caught.value)

    @pytest.mark.parametrize("at", [10, 11, 12])
    def test_one_byte_of_a_mark_is_found(self, pair, at):
        make, data = pair
        with pytest.raises(WriteError, match="near byte 10;"):
            check_bytes(*make((10, b"abc"), (at, b"?")), [mark(data, 10, b"abc")], lambda _: None)

    def test_another_size_is_found(self, pair):
        make, _ = pair
        with pytest.raises(WriteError, match=f"near byte {SIZE - 1:,};"):
            check_bytes(*make(cut=1), [], lambda _: None)

    def test_a_mark_knows_how_many_bytes_it_changed(self):
        made = Mark.of(Window(7, b"abcd", b"abXY"))
        assert (made.offset, made.length, made.changed) == (7, 4, 2)
        assert made.digest != Mark.of(Window(7, b"abcd", b"abXZ")).digest


class TestTables:
    def table(self, **more):
        made = {"a": np.zeros((2, 3), "f4"), "b": np.zeros(4, "f2")} | more
        return TensorTable.from_arrays(made)

    def test_the_same_tensors_are_the_same(self):
        check_same_tables(self.table(), self.table(a=np.ones((2, 3), "f4")))

    @pytest.mark.parametrize(
        "other",
        [
            {"a": np.zeros((3, 2), "f4")},
            {"a": np.zeros((2, 3), "i4")},
            {"c": np.zeros(1, "f4")},
        ],
        ids=["shape", "type", "one more"],
    )
    def test_a_tensor_that_differs_is_named(self, other):
        for one, two in ((self.table(), self.table(**other)), (self.table(**other), self.table())):
            with pytest.raises(WriteError, match=r"reads otherwise than the input, at \('[abc]'"):
                check_same_tables(one, two)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("role", "ema"), ("encoding", "opaque"), ("strides", (1, 2)), ("layer_name", "x")],
    )
    def test_what_a_tensor_is_counts(self, field, value):
        table = self.table()
        infos = dict(table.infos) | {"a": table["a"]._replace(**{field: value})}
        with pytest.raises(WriteError):
            check_same_tables(table, dataclasses.replace(table, infos=infos))

    def test_the_order_counts(self):
        table = self.table()
        turned = dict(reversed(table.infos.items()))
        with pytest.raises(WriteError):
            check_same_tables(table, dataclasses.replace(table, infos=turned))

    def test_tensors_that_go_are_not_missed(self):
        table = self.table()
        rest = dataclasses.replace(table, infos={"b": table["b"]})
        check_same_tables(table, rest, gone=["a"])
        with pytest.raises(WriteError):
            check_same_tables(table, rest, gone=["b"])
        with pytest.raises(WriteError):
            check_same_tables(table, rest)

    def test_an_empty_table_is_told_from_one_that_is_not(self):
        empty = TensorTable.from_arrays({})
        check_same_tables(empty, empty)
        with pytest.raises(WriteError):
            check_same_tables(empty, self.table())


class TestUntouched:
    """Where bytes move, every tensor is compared by its values."""

    def check(self, one, two, *touched):
        check_untouched(TensorTable.from_arrays(one), TensorTable.from_arrays(two), touched)

    def test_the_same_bits_pass(self):
        made = {"a": np.array([np.nan, -0.0], "f4"), "b": np.arange(200_000)}
        self.check(made, made)

    @pytest.mark.parametrize("at", [0, 1, 199_999])
    def test_a_bit_that_differs_is_told_unless_it_was_to_be_changed(self, at):
        one = {"a": np.zeros(200_000, "f4"), "b": np.zeros(3, "f4")}
        other = {"a": one["a"].copy(), "b": one["b"]}
        other["a"][at] = -0.0
        with pytest.raises(WriteError, match="'a' is not what it was; nothing was changed"):
            self.check(one, other, "b")
        self.check(one, other, "a")

    def test_values_that_end_early_are_told(self):
        long, short = {"a": np.zeros(200_000, "f4")}, {"a": np.zeros(65_536, "f4")}
        for one, other in ((long, short), (short, long)):
            with pytest.raises(WriteError, match="'a' is not what it was"):
                self.check(one, other)

    def test_tensors_without_values_have_none_to_compare(self):
        table = TensorTable.from_arrays({"a": np.zeros(3, "f4"), "b": np.zeros(3, "f4")})
        absent = dict(table.infos) | {"a": table["a"]._replace(encoding="absent")}
        table = dataclasses.replace(table, infos=absent)
        check_untouched(table, table, ())
        other = TensorTable.from_arrays({"a": np.ones(3, "f4"), "b": np.ones(3, "f4")})
        with pytest.raises(WriteError, match="'b'"):
            check_untouched(table, dataclasses.replace(other, infos=absent), ())


VALUES = np.arange(200_000, dtype="f4")
"""Three blocks of the decoder."""


class TestElements:
    def test_elements_are_read_by_their_indices(self):
        table = TensorTable.from_arrays({"w": VALUES.reshape(2, -1)})
        for at in ([0], [199_999], [], [0, 65_535, 65_536, 131_072, 199_999], [3, 4]):
            found = elements(table, "w", np.array(at, np.int64))
            assert found.dtype == np.float32
            assert found.tolist() == at
        assert elements(table, "w", None).tolist() == VALUES.tolist()

    def test_no_more_blocks_are_read_than_needed(self):
        read = []

        class Decoder:
            def blocks(self, info):
                for start in range(0, 200_000, 50_000):
                    read.append(start)
                    yield VALUES[start : start + 50_000]

        table = dataclasses.replace(TensorTable.from_arrays({"w": VALUES}), decoder=Decoder())
        assert elements(table, "w", np.array([49_999])).tolist() == [49_999]
        assert read == [0]

    def test_of_a_tensor_without_elements_there_are_none(self):
        table = TensorTable.from_arrays({"w": np.zeros((0, 2), "f2")})
        found = elements(table, "w", None)
        assert (found.size, found.dtype) == (0, np.float16)


class TestEdited:
    @pytest.fixture(params=["decoded", "stored"])
    def opened(self, request, tmp_path):
        if request.param == "decoded":
            yield TensorTable.from_arrays({"w": VALUES})
        else:
            wh.safetensors(tmp_path / "m", {"w": VALUES})
            with open_path(tmp_path / "m") as table:
                yield table

    @pytest.mark.parametrize(
        "at", [None, [0], [65_535, 65_536], [199_999], [5, 70_000, 140_000], []]
    )
    def test_values_that_are_there_pass(self, opened, at):
        wanted = VALUES if at is None else VALUES[np.array(at, np.int64)]
        check_elements(opened, [wh.edit("w", wanted, at)])

    @pytest.mark.parametrize(
        ("at", "wrong"),
        [(None, 0), (None, 199_999), ([0], 0), ([65_535, 65_536], 1), ([5, 70_000, 140_000], 2)],
    )
    def test_one_value_that_is_not_is_told(self, opened, at, wrong):
        wanted = (VALUES if at is None else VALUES[np.array(at)]).copy()
        wanted[wrong] = -1
        good = wh.edit("w", VALUES[:1], [0])
        with pytest.raises(WriteError, match="the new values of 'w' are not read back"):
            check_elements(opened, [good, wh.edit("w", wanted, at)])

    def test_bits_count_not_values(self, opened):
        with pytest.raises(WriteError):
            check_elements(opened, [wh.edit("w", np.array([-0.0], "f4"), [0])])

    def test_a_tensor_that_ends_early_is_told(self):
        table = TensorTable.from_arrays({"w": VALUES[:10]})
        with pytest.raises(WriteError):
            check_elements(table, [wh.edit("w", VALUES[:11])])
        with pytest.raises(WriteError):
            check_elements(table, [wh.edit("w", VALUES[:2], [0, 10])])


def test_elements_of_a_compressed_member_are_read_by_value(tmp_path):
    """They have an extent, in a source that inflates."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in wh.torch_members().items():
            out.writestr(name, data)
    (tmp_path / "m").write_bytes(buffer.getvalue())
    with open_path(tmp_path / "m") as table:
        good = np.frombuffer(wh.STORAGES["1"], "f2")
        check_elements(table, [wh.edit("half", good), wh.edit("half", good[[4, 9]], [4, 9])])
        with pytest.raises(WriteError):
            check_elements(table, [wh.edit("half", good[[4, 8]], [4, 9])])
