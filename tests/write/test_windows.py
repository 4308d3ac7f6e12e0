"""Edits as windows: which bytes, in which order, and what is shared."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import write_helpers as wh

from ckptdoctor.errors import InternalError, UnsupportedError, UsageError
from ckptdoctor.formats import open_path
from ckptdoctor.sources import Extent, FileSource, WindowSource
from ckptdoctor.tensors import TensorInfo, TensorTable
from ckptdoctor.write.windows import (
    GAP,
    LONGEST,
    Window,
    aliases,
    in_place,
    locate,
    windows_of,
    windows_of_all,
)


@pytest.fixture
def file(tmp_path):
    """1.5 MiB of 0 to 255, over and over."""
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 6144)
    source = FileSource(path)
    yield source
    source.close()


def info(file, shape, offset=0, dtype="float32", **more):
    count = int(np.prod(shape))
    extent = Extent(file, offset, count * np.dtype(dtype).itemsize)
    return TensorInfo(
        name="w", path=("w",), dtype=dtype, shape=shape, **({"extent": extent} | more)
    )


def spans(windows):
    return [(w.offset, len(w.new)) for w in windows]


class TestScattered:
    def test_neighbours_share_a_window_and_what_lies_between_stays(self, file):
        (window,) = windows_of(info(file, (8,), 100), wh.edit("w", np.array([1, 2], "f4"), [1, 4]))
        assert window.offset == 104
        assert window.old == bytes(range(104, 120))
        new = np.frombuffer(window.new, "f4")
        assert new[[0, 3]].tolist() == [1, 2]
        assert window.new[4:12] == window.old[4:12]

    def test_a_gap_of_4_kib_is_bridged_and_a_longer_one_is_not(self, file):
        def windows(second):
            fresh = np.zeros(2, "u1")
            made = wh.edit("w", fresh, [0, second])
            return spans(windows_of(info(file, (9000,), dtype="uint8"), made))

        assert GAP == 4096
        assert windows(4096) == [(0, 4097)]
        assert windows(4097) == [(0, 1), (4097, 1)]

    def test_the_gap_is_counted_in_bytes(self, file):
        def windows(second):
            made = wh.edit("w", np.zeros(2, "f8"), [0, second])
            return len(list(windows_of(info(file, (2000,), dtype="float64"), made)))

        assert (windows(512), windows(513)) == (1, 2)

    def test_windows_end_after_a_mebibyte(self, file):
        size = LONGEST + 4000
        made = wh.edit("w", np.zeros(size, "u1"), np.arange(size))
        assert LONGEST == 1 << 20
        assert spans(windows_of(info(file, (size,), 8, dtype="uint8"), made)) == [
            (8, LONGEST), (8 + LONGEST, 4000)
        ]  # fmt: skip

    def test_an_edit_of_nothing_has_no_windows(self, file):
        assert not list(windows_of(info(file, (8,)), wh.edit("w", np.zeros(0, "f4"), [])))
        assert not list(windows_of(info(file, (0, 3)), wh.edit("w", np.zeros(0, "f4"))))


class TestWhole:
    def test_a_whole_tensor_is_written_by_the_mebibyte(self, file):
        size = LONGEST + 1
        made = wh.edit("w", np.full(size, 7, "u1"))
        first, second = windows_of(info(file, (size,), 3, dtype="uint8"), made)
        assert (first.offset, len(first.new), first.old[:2]) == (3, LONGEST, b"\3\4")
        assert second == Window(3 + LONGEST, b"\3", b"\7")

    def test_values_are_made_when_they_are_written(self, file):
        made = wh.edit("w", lambda: np.array([[1, 2], [3, 4]], "f4"))
        (window,) = windows_of(info(file, (2, 2)), made)
        assert np.frombuffer(window.new, "f4").tolist() == [1, 2, 3, 4]


class TestLayout:
    def test_big_endian_elements_are_swapped(self, file):
        for indices in (None, [0]):
            made = wh.edit("w", np.array([1], "f4"), indices)
            (window,) = windows_of(info(file, (1,), big_endian=True), made)
            assert window.new == b"\x3f\x80\0\0"

    def test_strides_are_followed(self, file):
        view = info(file, (2, 3), 16, strides=(1, 2), extent=Extent(file, 16, 24))
        (window,) = windows_of(view, wh.edit("w", np.arange(6, dtype="f4")))
        assert np.frombuffer(window.new, "f4").tolist() == [0, 3, 1, 4, 2, 5]
        (window,) = windows_of(view, wh.edit("w", np.array([9], "f4"), [4]))
        assert window.offset == 16 + 4 * 3

    def test_a_scalar_view_is_its_one_element(self, file):
        view = info(file, (), 20, strides=())
        assert spans(windows_of(view, wh.edit("w", np.ones(1, "f4"), [0]))) == [(20, 4)]

    def test_a_member_of_an_archive_lies_where_the_archive_has_it(self, file):
        inner = WindowSource("m", WindowSource("n", file, 30, 100), 7, 50)
        assert locate(inner, 5) == (file, 42)
        assert locate(WindowSource.over(b"abc", "m"), 0) is None
        view = info(inner, (2,), 4)
        assert spans(windows_of(view, wh.edit("w", np.ones(2, "f4")))) == [(41, 8)]


class TestRefusals:
    @pytest.mark.parametrize("more", [{"extent": None}, {"encoding": "quantised"}])
    def test_elements_without_bytes_of_their_own(self, file, more):
        view = info(file, (4,), **more)
        assert in_place(view) is None
        with pytest.raises(UnsupportedError, match="'w' cannot be overwritten in place"):
            list(windows_of(view, wh.edit("w", np.ones(4, "f4"))))

    def test_elements_that_share_a_byte(self, file):
        view = info(file, (4,), dtype="float32")._replace(dtype="quint4x2", encoding="plain")
        assert in_place(view) is None
        with pytest.raises(UnsupportedError):
            list(windows_of(view, wh.edit("w", np.ones(4, "u1"))))
        assert in_place(view._replace(dtype="uint8")) is file

    def test_elements_in_memory(self):
        view = info(WindowSource.over(bytes(64), "m"), (4,))
        assert in_place(view) is None
        with pytest.raises(UnsupportedError, match="compressed"):
            list(windows_of(view, wh.edit("w", np.ones(4, "f4"))))

    def test_files_that_are_not_the_users(self, file):
        assert in_place(info(file, (4,))) is file
        file.temporary = True
        assert in_place(info(file, (4,))) is None

    @pytest.mark.parametrize(
        ("values", "indices"),
        [
            ([1, 2], [0]),
            ([1], [0, 1]),
            ([1, 2, 3], None),
            ([1], [4]),
            ([1], [-1]),
            ([1, 2], [-1, 2]),
        ],
    )
    def test_an_edit_that_does_not_fit_its_tensor(self, file, values, indices):
        for strides in (None, (2,)):
            view = info(file, (4,), strides=strides, extent=Extent(file, 0, 28))
            with pytest.raises(InternalError, match="elements of 'w'"):
                list(windows_of(view, wh.edit("w", np.array(values, "f4"), indices)))

    def test_first_and_last_element_fit(self, file):
        made = wh.edit("w", np.zeros(2, "f4"), [0, 3])
        assert spans(windows_of(info(file, (4,)), made)) == [(0, 16)]


class TestTogether:
    def together(self, *pairs):
        return list(windows_of_all(pairs))

    def test_windows_come_in_file_order_and_hold_no_byte_twice(self, file):
        w = info(file, (100,))
        at = [90, 10, 50, 11]
        pairs = [(w, wh.edit("w", np.array([n], "f4"), [n])) for n in at]
        pairs.insert(2, (w, wh.edit("w", np.array([0, 99], "f4"), [0, 99])))
        made = self.together(*pairs)
        assert spans(made) == [(0, 40), (40, 4), (44, 156), (200, 160), (360, 40)]
        joined = np.frombuffer(b"".join(window.new for window in made), "f4")
        old = np.frombuffer(b"".join(window.old for window in made), "u1")
        assert joined[[0, 10, 11, 50, 90, 99]].tolist() == [0, 10, 11, 50, 90, 99]
        assert old.tolist() == [n % 256 for n in range(400)]
        rest = np.setdiff1d(np.arange(100), [0, 10, 11, 50, 90, 99])
        assert joined[rest].tobytes() == np.frombuffer(old.tobytes(), "f4")[rest].tobytes()

    def test_tensors_apart_are_not_held_together(self, file, monkeypatch):
        made = []

        def values(n):
            made.append(n)
            return np.array([n], "f4")

        first, second = info(file, (1,), 4), info(file, (1,), 0)
        pairs = [(w, wh.edit("w", lambda n=n: values(n))) for n, w in enumerate((first, second))]
        windows = windows_of_all(pairs)
        assert next(windows).offset == 0
        assert made == [1]
        assert next(windows).offset == 4
        assert not list(windows)

    @pytest.mark.parametrize("order", [1, -1])
    def test_views_that_overlap_in_part_are_joined(self, file, order):
        one, two = info(file, (4,), 0), info(file, (4,), 8)
        edits = [
            wh.edit("w", np.array([1, 2, 3, 4], "f4")),
            wh.edit("w", np.array([3, 4, 5, 6], "f4")),
        ]
        made = self.together(*list(zip((one, two), edits, strict=True))[::order])
        assert spans(made) == [(0, 8), (8, 16)]
        assert np.frombuffer(made[0].new + made[1].new, "f4").tolist() == [1, 2, 3, 4, 5, 6]

    def test_a_view_inside_another_is_joined(self, file):
        one, two = info(file, (9,), 0), info(file, (2,), 8)
        whole = wh.edit("w", np.arange(9, dtype="f4"))
        made = self.together((one, whole), (two, wh.edit("w", np.array([2, 3], "f4"))))
        assert b"".join(w.new for w in made) == np.arange(9, dtype="f4").tobytes()
        with pytest.raises(UsageError, match="shared, of 'w'; name one of them with --tensor"):
            self.together((one, whole), (two, wh.edit("w", np.array([2, 4], "f4"))))

    def test_of_many_names_four_are_told(self, file):
        pairs = [
            (info(file, (2,))._replace(name=f"w{n}"), wh.edit("w", np.full(2, n, "f4")))
            for n in range(5)
        ]
        with pytest.raises(UsageError, match="shared, of 'w0', 'w1', 'w2', 'w3'; name one"):
            self.together(*pairs)

    def test_large_tensors_that_are_tied_are_written_in_bounded_windows(self, file):
        size = LONGEST + 9000
        one, two = info(file, (size,), 0, "uint8"), info(file, (size - 5000,), 5000, "uint8")
        fresh = np.frombuffer(np.random.default_rng(1).bytes(size), "u1")
        made = self.together((one, wh.edit("w", fresh)), (two, wh.edit("w", fresh[5000:])))
        assert b"".join(w.new for w in made) == fresh.tobytes()
        assert max(len(w.new) for w in made) <= LONGEST

    def test_nothing_comes_of_nothing(self):
        assert self.together() == []


class TestAliases:
    def test_names_of_the_same_memory(self, tmp_path):
        wh.torch_zip(tmp_path / "m")
        with open_path(tmp_path / "m") as table:
            assert set(aliases(table, table["whole"])) == {
                "tied", "transposed", "every third", "expanded", "scalar"
            }  # fmt: skip
            assert set(aliases(table, table["scalar"])) == {"whole", "tied", "transposed"}
            assert aliases(table, table["half"]) == ()

    def test_views_side_by_side_share_nothing(self, file):
        rows = {
            name: info(file, (2,), at, storage="s")._replace(name=name)
            for name, at in (("a", 0), ("b", 8), ("c", 4))
        }
        table = TensorTable(path="m", format="x", infos=rows)
        assert aliases(table, rows["a"]) == ("c",)
        assert aliases(table, rows["b"]) == ("c",)
        assert aliases(table, rows["a"]._replace(extent=None)) == ()
        assert aliases(table, rows["a"]._replace(storage="")) == ()


def test_a_deflated_archive_is_not_written_in_place(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in wh.torch_members().items():
            out.writestr(name, data)
    (tmp_path / "m").write_bytes(buffer.getvalue())
    with open_path(tmp_path / "m") as table:
        assert in_place(table["whole"]) is None
