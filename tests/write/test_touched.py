"""What lies under the bytes that were written: that, and nothing else, is measured again."""

from __future__ import annotations

import numpy as np
import pytest
import write_helpers as wh

import ckptdoctor
from ckptdoctor.api import open_checkpoint
from ckptdoctor.sources import Extent
from ckptdoctor.tensors import Checksum, TensorInfo, TensorTable
from ckptdoctor.write.touched import touched
from ckptdoctor.write.verify import Mark


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(1000))
    from ckptdoctor.sources import FileSource

    source = FileSource(path)
    infos = {
        f"t{i}": TensorInfo(
            f"t{i}", (f"t{i}",), "float32", (10,), extent=Extent(source, 100 * i, 40)
        )
        for i in range(5)
    }
    infos["coded"] = TensorInfo("coded", ("coded",), "float32", (10,))
    checksums = tuple(
        Checksum(Extent(source, 100 * i, 50), 0, f"m.bin:{i}", header=900, entry=600 + 60 * i)
        for i in range(5)
    )
    yield TensorTable(
        path=str(path), format="memory", infos=infos, checksums=checksums, files=(source,)
    )
    source.close()


def names(found):
    return set(found.infos), {c.where for c in found.checksums}


@pytest.mark.parametrize(
    ("marks", "tensors", "sums"),
    [
        ([], set(), set()),
        ([(100, 1)], {"t1"}, {"m.bin:1"}),
        ([(139, 1)], {"t1"}, {"m.bin:1"}),
        ([(140, 1)], set(), {"m.bin:1"}),
        ([(150, 50)], set(), set()),
        ([(99, 1)], set(), set()),
        ([(0, 500), (10, 5), (300, 1)], {f"t{i}" for i in range(5)}, {f"m.bin:{i}" for i in range(5)}),
        ([(660, 1)], set(), {"m.bin:1"}),
        ([(705, 1)], set(), {"m.bin:1"}),
        ([(706, 1)], set(), set()),
    ],
    ids=["nothing", "first byte", "last byte", "behind the tensor", "between", "before", "all",
         "entry", "end of the entry", "behind the entry"],
)  # fmt: skip
def test_what_lies_under_a_window(table, marks, tensors, sums):
    found = touched(table, [Mark(at, length, b"", 1) for at, length in marks])
    assert names(found) == (tensors | {"coded"}, sums)


@pytest.mark.parametrize("kind", [kind for kind in wh.KINDS if "sharded" not in kind])
def test_result_is_what_a_whole_examination_says(tmp_path, kind):
    path = tmp_path / "in"
    wh.KINDS[kind](path)
    with open_checkpoint(path) as table:
        name = next(
            (n for n, i in table.infos.items() if i.kind.kind == "float" and len(i.shape) > 1), ""
        )
    if not name:
        pytest.skip("holds no matrix")
    outcome = ckptdoctor.repair(path, tmp_path / "out", reinit=[f"{name}=zeros"])
    again = ckptdoctor.inspect(outcome.written.path)
    told = [(f.code, f.tensor, f.message) for f in outcome.after.findings]
    assert told == [(f.code, f.tensor, f.message) for f in again.findings]
    for column in ("nan", "zeros", "minimum", "mean"):
        assert np.array_equal(
            getattr(again.stats, column), getattr(outcome.after.stats, column), equal_nan=True
        )
