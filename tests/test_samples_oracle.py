"""Real torch, Keras, safetensors, NumPy and h5py see in each sample the bytes that the table gives."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_files import FOLDER, READABLE, Expected

import ckptdoctor

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


def rows(*formats: str, but: tuple[str, ...] = ()) -> Any:
    """Samples of these formats that their framework is able to load; ``but`` are words in names."""
    but = ("sick/ck", "interrupted", *but)
    chosen = [r for r in READABLE if r.format in formats and not any(w in r.name for w in but)]
    return pytest.mark.parametrize("row", [pytest.param(r, id=r.name) for r in chosen])


def table_bytes(path: Path) -> dict[str, bytes]:
    """What our table gives; None for tensors without values."""
    with ckptdoctor.open_checkpoint(path) as table:
        return {
            name: b"" if info.encoding == "absent" else table.read(name).tobytes()
            for name, info in table.items()
        }


def torch_bytes(tensor: Any) -> bytes:
    """Elements of a dense tensor in row-major order; none of a meta tensor."""
    return b"" if tensor.is_meta else bytes(tensor.detach().contiguous().clone().untyped_storage())


def torch_parts(name: str, tensor: Any) -> Iterator[tuple[str, bytes]]:
    """Rows that DESIGN's names give to one tensor: itself, or the parts it is made of."""
    import torch

    if tensor.layout == torch.sparse_coo:
        yield f"{name}.indices", torch_bytes(tensor.indices())
        yield f"{name}.values", torch_bytes(tensor.values())
    elif tensor.layout == torch.sparse_csr:
        for part in ("crow_indices", "col_indices", "values"):
            yield f"{name}.{part}", torch_bytes(getattr(tensor, part)())
    elif tensor.is_quantized:
        yield name, torch_bytes(tensor.int_repr())
        if tensor.qscheme() == torch.per_channel_affine:
            yield f"{name}.scale", torch_bytes(tensor.q_per_channel_scales())
            yield f"{name}.zero_point", torch_bytes(tensor.q_per_channel_zero_points())
    else:
        yield name, torch_bytes(tensor)


def flattened(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Every tensor of what ``torch.load`` gave, by the path to it."""
    import torch

    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, torch.Tensor):
        yield from torch_parts(".".join(path), value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flattened(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from flattened(item, (*path, str(index)))


@rows("torch-zip", "torch-legacy", "torch-legacy-tar")
def test_torch_loads_the_bytes_that_the_table_gives(row: Expected, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(FOLDER)  # one sample pickles a class of `recipes`
    loaded = torch.load(row.path, map_location="cpu", weights_only=False)
    assert table_bytes(row.path) == dict(flattened(loaded))


@rows("torch-sharded")
def test_torch_loads_the_bytes_of_every_shard(row: Expected):
    torch = pytest.importorskip("torch")
    shards = [torch.load(path, weights_only=True) for path in row.path.glob("*.bin")]
    assert table_bytes(row.path) == dict(flattened({k: v for s in shards for k, v in s.items()}))


@rows("torchscript")
def test_torch_jit_loads_the_bytes_that_the_table_gives(row: Expected):
    torch = pytest.importorskip("torch")
    found = table_bytes(row.path)
    constants = {name: found.pop(name) for name in list(found) if name.startswith("constants.")}
    assert found == dict(flattened(torch.jit.load(row.path).state_dict()))
    assert len(constants) == ("traced" in row.name)


@rows("safetensors", "safetensors-sharded")
def test_safetensors_loads_the_bytes_that_the_table_gives(row: Expected):
    pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    files = list(row.path.glob("*.safetensors")) if row.path.is_dir() else [row.path]
    loaded = {name: t for file in files for name, t in load_file(file).items()}
    assert table_bytes(row.path) == dict(flattened(loaded))


@rows("npz")
def test_numpy_loads_the_bytes_that_the_table_gives(row: Expected):
    with np.load(row.path) as archive:
        loaded = {name: archive[name] for name in archive.files}
    native = {name: a.astype(a.dtype.newbyteorder("=")).tobytes() for name, a in loaded.items()}
    assert table_bytes(row.path) == native


@rows("keras-h5", "keras-weights-h5")
def test_h5py_reads_the_bytes_that_the_table_gives(row: Expected):
    import h5py

    loaded: dict[str, bytes] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub":
            values = np.asarray(item[()])
            loaded[name] = values.astype(values.dtype.newbyteorder("=")).tobytes()

    with h5py.File(row.path) as file:
        file.visititems(visit)
    found = table_bytes(row.path)
    assert {name: found[name] for name in loaded} == loaded
    assert not {name for name in found if name not in loaded} - {"dense/label"}


@rows("keras-h5", "keras-zip", but=("keras2-weights", "chunked"))  # these hold no model
def test_keras_loads_weights_that_the_table_gives(row: Expected):
    pytest.importorskip("tensorflow")
    framework = pytest.importorskip("tf_keras" if "keras2" in row.name else "keras")
    framework.backend.clear_session()
    model = framework.models.load_model(row.path, compile=False)
    loaded = [np.asarray(weight).tobytes() for weight in model.weights]
    assert loaded
    found = list(table_bytes(row.path).values())
    assert not [value for value in loaded if value not in found]


@pytest.mark.parametrize("name", ["healthy/mlp-adam.weights.h5", "healthy/keras2-weights.h5"])
def test_keras_loads_weights_files_that_the_table_reads(name: str, monkeypatch):
    pytest.importorskip("tensorflow")
    framework = pytest.importorskip("tf_keras" if "keras2" in name else "keras")
    monkeypatch.syspath_prepend(FOLDER)
    pytest.importorskip("torch")
    from recipes.keras_files import dense_net

    model = dense_net(framework)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    model.load_weights(FOLDER / name)
    found = list(table_bytes(FOLDER / name).values())
    assert all(np.asarray(weight).tobytes() in found for weight in model.weights)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_the_founding_case_is_as_its_story_says(suffix: str):
    """Finite in train mode, NaN in eval mode: what its user saw."""
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    keras.backend.clear_session()
    path = FOLDER / f"sick/bn001-overflow-skipped-step.{suffix}"
    model = keras.models.load_model(path, compile=False)
    images = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)
    assert np.isnan(np.asarray(model(images, training=False))).all()
    assert np.isfinite(np.asarray(model(images, training=True))).all()


@pytest.mark.parametrize("folder", ["healthy/sharded-safetensors", "healthy/sharded-bin"])
def test_index_and_shards_name_the_same_tensors(folder: str):
    (index,) = (FOLDER / folder).glob("*.index.json")
    assert set(json.loads(index.read_text())["weight_map"]) == set(table_bytes(FOLDER / folder))


def test_samples_are_made_by_the_versions_that_are_installed():
    """Or else `samples` would compare what two versions write."""
    torch = pytest.importorskip("torch")
    pins = (FOLDER.parent / ".ci/constraints.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}" in pins, sys.version
