"""The tensor table: values by blocks, views, byte orders, dtypes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdoctor.dtypes import DTYPES, SAFETENSORS, TORCH, TORCH_STORAGES
from ckptdoctor.errors import UsageError
from ckptdoctor.sources import Extent, WindowSource
from ckptdoctor.tensors import TensorInfo, TensorTable


def table_over(array, **fields):
    raw = array.tobytes()
    source = WindowSource.over(raw, "memory")
    fields = {"dtype": array.dtype.name, "shape": array.shape, **fields}
    info = TensorInfo(name="w", path=("w",), extent=Extent(source, 0, len(raw)), **fields)
    return TensorTable(path="memory", format="test", infos={"w": info})


@given(st.integers(0, 50), st.integers(1, 64))
def test_blocks_join_to_the_whole(count, max_bytes):
    table = table_over(np.arange(count, dtype=np.int32))
    blocks = list(table.blocks(table["w"], max_bytes))
    assert all(block.nbytes <= max(4, max_bytes) for block in blocks)
    assert np.concatenate([*blocks, np.empty(0, np.int32)]).tolist() == list(range(count))


@given(st.permutations([0, 1, 2]), st.integers(1, 400))
def test_strided_views_read_as_numpy_reads_them(axes, max_bytes):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    view = base.transpose(axes)
    strides = tuple(s // 4 for s in view.strides)
    table = table_over(base, shape=view.shape, strides=strides)
    blocks = list(table.blocks(table["w"], max_bytes))
    assert np.concatenate(blocks).tolist() == view.reshape(-1).tolist()
    assert table.read("w").tolist() == view.tolist()


@pytest.mark.parametrize("name", [n for n, d in DTYPES.items() if d.kind != "opaque"])
def test_every_dtype_reads_back_its_bytes(name):
    row = DTYPES[name]
    raw = np.arange(2 * row.itemsize, dtype=np.uint8)
    table = table_over(raw, dtype=name, shape=(2,))
    assert table.read("w").tobytes() == raw.tobytes()
    swapped = table_over(raw, dtype=name, shape=(2,), big_endian=True)
    assert swapped.read("w").tobytes() == table.read("w").byteswap().tobytes()
    strided = table_over(raw, dtype=name, shape=(2,), strides=(1,))
    assert strided.read("w").tobytes() == raw.tobytes()


@pytest.mark.parametrize("spellings", [SAFETENSORS, TORCH, TORCH_STORAGES])
def test_every_spelling_is_in_the_table(spellings):
    assert set(spellings.values()) <= set(DTYPES)


@pytest.mark.parametrize(
    ("name", "count", "nbytes"), [("float32", 3, 12), ("float4_e2m1fn", 3, 2), ("quint2x4", 5, 2)]
)
def test_bytes_of_packed_types_round_up(name, count, nbytes):
    assert DTYPES[name].nbytes(count) == nbytes


LAYERS = {
    "layer1.0.bn1.running_var": "layer1.0.bn1",
    "weight": "",
    "model_weights/bn/moving_mean:0": "model_weights/bn",
    "a.b/c.d": "a.b",
}


@pytest.mark.parametrize(("name", "layer"), LAYERS.items())
def test_the_layer_is_the_name_without_its_last_component(name, layer):
    assert TensorInfo(name=name, path=(name,), dtype="bool", shape=()).layer == layer


def test_the_framework_s_layer_name_wins():
    info = TensorInfo(name="a/vars/0", path=("a",), dtype="bool", shape=(), layer_name="post_bn")
    assert info.layer == "post_bn"


def test_what_is_not_there_is_wrong_usage():
    table = TensorTable.from_arrays({"w": [1.0]})
    with pytest.raises(UsageError, match="no tensor 'v'"):
        table.read("v")
    absent = table_over(np.zeros(1), encoding="absent")
    with pytest.raises(UsageError, match="no stored values"):
        absent.read("w")
