"""Weights of files into live modules: what fits, what is refused, and what is told."""
# ruff: noqa: ARG001  (all writers are called alike)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import patients
import pytest

from ckptdoctor.api import open_checkpoint
from ckptdoctor.errors import UsageError
from ckptdoctor.live.loaded import Loaded
from ckptdoctor.tensors import TensorTable

pytestmark = pytest.mark.oracle


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch")
    found.manual_seed(0)
    return found


def network(torch: Any) -> Any:
    nn = torch.nn
    net = nn.Sequential()
    for i in (1, 2, 3):
        net.add_module(f"conv{i}", nn.Conv2d(*patients.WIDTHS[i - 1 : i + 1], 3, bias=False))
        net.add_module(f"bn{i}", nn.BatchNorm2d(patients.WIDTHS[i]))
    net.add_module("fc", nn.Linear(16, 4))
    return net


def load(module: Any, table: TensorTable | Path, **more: Any) -> Loaded:
    from ckptdoctor.live.torch_weights import load_weights

    if isinstance(table, TensorTable):
        return load_weights(module, table, **more)
    with open_checkpoint(table) as opened:
        return load_weights(module, opened, **more)


def equal(module: Any, state: dict[str, np.ndarray]) -> bool:
    held = module.state_dict()
    return all(np.array_equal(held[name].numpy(), value) for name, value in state.items())


def tensors(torch: Any) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in patients.state().items()}


def zip_file(torch: Any, path: Path) -> Path:
    torch.save(tensors(torch), path / "m.pt")
    return path / "m.pt"


def old_file(torch: Any, path: Path) -> Path:
    torch.save(tensors(torch), path / "m.pt", _use_new_zipfile_serialization=False)
    return path / "m.pt"


def training_file(torch: Any, path: Path) -> Path:
    state = {f"module._orig_mod.{name}": value for name, value in tensors(torch).items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": torch.ones(3)}}, path / "m.pt")
    return path / "m.pt"


def whole_file(torch: Any, path: Path) -> Path:
    net = network(torch)
    net.load_state_dict(tensors(torch))
    torch.save({"model": net.half().float()}, path / "m.pt")
    net.load_state_dict(tensors(torch))
    torch.save({"model": net}, path / "m.pt")
    return path / "m.pt"


def safe_file(torch: Any, path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file(patients.state(), path / "m.safetensors")
    return path / "m.safetensors"


def arrays(torch: Any, path: Path) -> Path:
    np.savez(path / "m.npz", **patients.state())
    return path / "m.npz"


@pytest.mark.parametrize(
    "write", [zip_file, old_file, training_file, whole_file, safe_file, arrays]
)
def test_a_module_is_filled_from_every_kind_of_file(torch, tmp_path, write):
    net = network(torch)
    held = dict(net.named_parameters())
    found = load(net, write(torch, tmp_path))
    assert equal(net, patients.state())
    assert set(found.pairs) == set(patients.state())
    assert found.pairs["bn1.running_var"].endswith("bn1.running_var")
    assert (found.surplus, found.notes) == ((), ())
    assert all(held[name] is each for name, each in net.named_parameters())


def test_values_are_cast_to_what_the_module_holds(torch):
    net = network(torch).to(torch.bfloat16)
    wide = {name: value.astype(np.float64) for name, value in patients.state().items()}
    load(net, TensorTable.from_arrays(wide))
    assert net.fc.weight.dtype == torch.bfloat16
    told = torch.tensor(wide["fc.weight"]).to(torch.bfloat16)
    assert torch.equal(net.fc.weight.data, told)
    assert net.bn1.num_batches_tracked.item() == 1200


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int16", "bool", "uint8"]
)
def test_types_that_numpy_does_not_have_arrive_too(torch, tmp_path, dtype):
    values = (torch.arange(6) - 2).to(getattr(torch, dtype)).reshape(2, 3)
    torch.save({"weight": values}, tmp_path / "m.pt")
    net = torch.nn.Linear(3, 2, bias=False)
    load(net, tmp_path / "m.pt")
    assert torch.equal(net.weight.data, values.float())


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.dtype(">f4")])
def test_unsigned_and_foreign_numbers_arrive_too(torch, tmp_path, dtype):
    np.savez(tmp_path / "m.npz", weight=np.arange(6).reshape(2, 3).astype(dtype))
    net = torch.nn.Linear(3, 2, bias=False)
    load(net, tmp_path / "m.npz")
    assert net.weight.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_large_tensors_and_those_with_gaps_are_filled_whole(torch):
    net = torch.nn.Module()
    net.wide = torch.nn.Parameter(torch.zeros(1300, 1000))  # more than a block
    net.across = torch.nn.Parameter(torch.zeros(1000, 1200).t())
    net.none = torch.nn.Parameter(torch.zeros(0, 3).t())
    random = np.random.default_rng(0)
    state = {
        "wide": random.normal(size=(1300, 1000)).astype(np.float32),
        "across": random.normal(size=(1200, 1000)).astype(np.float32),
        "none": np.zeros((3, 0), np.float32),
    }
    load(net, TensorTable.from_arrays(state))
    assert equal(net, state)
    assert net.across.stride() == (1, 1200)


def test_tied_weights_need_one_of_their_names(torch):
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    state = {"a.weight": np.ones((2, 2), np.float32), "b.bias": np.ones(2, np.float32)}
    found = load(net, TensorTable.from_arrays(state))
    assert found.pairs["b.weight"] == "a.weight"
    assert net["b"].weight.tolist() == [[1, 1], [1, 1]]


def test_a_count_may_be_missing_or_a_vector_of_one(torch):
    state = patients.state()
    del state["bn1.num_batches_tracked"]
    state["bn2.num_batches_tracked"] = np.array([5], np.int64)
    net = network(torch)
    found = load(net, TensorTable.from_arrays(state))
    assert net.bn2.num_batches_tracked.item() == 5
    assert found.notes == (
        "<memory> does not hold 'bn1.num_batches_tracked': the model's own stay",
    )


def test_buffers_that_nobody_trained_may_be_missing(torch):
    net = torch.nn.Linear(2, 2, bias=False)
    net.register_buffer("position_ids", torch.arange(3))
    found = load(net, TensorTable.from_arrays({"weight": np.ones((2, 2), np.float32)}))
    assert net.position_ids.tolist() == [0, 1, 2]
    assert "'position_ids'" in found.notes[0]


def test_what_has_no_place_in_the_model_is_told(torch):
    state = patients.state() | {f"extra{i}.weight": np.ones((2, 2), np.float32) for i in range(7)}
    found = load(network(torch), TensorTable.from_arrays(state))
    assert len(found.surplus) == 7
    (note,) = found.notes
    assert note == (
        "'extra0.weight', 'extra1.weight', 'extra2.weight', 'extra3.weight', 'extra4.weight'"
        " and 2 more of <memory> have no place in the model"
    )


@pytest.mark.parametrize("gone", ["conv2.weight", "bn2.bias", "bn3.running_var"])
def test_a_model_is_not_run_with_weights_that_nobody_trained(torch, gone):
    state = patients.state()
    del state[gone]
    net = network(torch)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UsageError) as told:
        load(net, TensorTable.from_arrays(state))
    assert str(told.value) == (
        f"<memory>: does not hold 1 of 20 tensors of the model: '{gone}'; is it of another model?"
    )
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_another_shape_is_refused(torch):
    state = patients.state() | {"fc.weight": np.ones((5, 16), np.float32)}
    with pytest.raises(UsageError) as told:
        load(network(torch), TensorTable.from_arrays(state))
    assert str(told.value) == (
        "<memory>: 'fc.weight' does not fit the model: 'fc.weight' is (4, 16) in the model,"
        " (5, 16) in it"
    )


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_refused(torch, tmp_path):
    whole = torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 2, torch.qint8)
    torch.save({"weight": whole}, tmp_path / "m.pt")
    with pytest.raises(
        UsageError, match="'weight' is stored as quantised qint8, and cannot be put"
    ):
        load(torch.nn.Linear(3, 2, bias=False), tmp_path / "m.pt")


def test_weights_without_values_are_refused(torch, tmp_path):
    torch.save({"weight": torch.ones(2, 3, device="meta")}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match="'weight' is stored without values"):
        load(torch.nn.Linear(3, 2, bias=False), tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
def test_complex_halves_are_refused(torch, tmp_path):
    torch.save({"weight": torch.ones(2, 3, dtype=torch.complex32)}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match="'weight' is stored as plain complex32, and cannot"):
        load(torch.nn.Linear(3, 2, bias=False), tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_packed_weights_is_refused(torch):
    net = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(torch.nn.Linear(4, 3)), {torch.nn.Linear}
    )
    with pytest.raises(UsageError, match=r"the model keeps '0.scale' packed: no weights fit; have"):
        load(net, TensorTable.from_arrays({"0.weight": np.ones((3, 4), np.float32)}))


def averaged() -> TensorTable:
    plain, mean = np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32)
    arrays = {"model.weight": plain, "ema.weight": mean}
    return TensorTable.from_arrays(arrays, {"model.weight": "model", "ema.weight": "ema"})


@pytest.mark.parametrize(("which", "value"), [("model", 1), ("ema", 2)])
def test_the_average_is_taken_when_it_is_asked_for(torch, which, value):
    net = torch.nn.Linear(3, 2, bias=False)
    load(net, averaged(), which=which)
    assert net.weight[0, 0].item() == value


def test_a_file_without_the_weights_asked_for_is_refused(torch):
    net = torch.nn.Linear(3, 2, bias=False)
    alone = TensorTable.from_arrays({"ema.weight": np.ones((2, 3))}, {"ema.weight": "ema"})
    with pytest.raises(UsageError) as told:
        load(net, alone)
    assert str(told.value) == (
        "<memory>: holds no weights of a model; it holds a moving average of them"
    )
    plain = TensorTable.from_arrays({"weight": np.ones((2, 3))})
    with pytest.raises(UsageError, match=r"^<memory>: holds no moving average of a model$"):
        load(net, plain, which="ema")


def test_a_module_that_holds_its_own_average_takes_both(torch):
    net = torch.nn.ModuleDict({k: torch.nn.Linear(3, 2, bias=False) for k in ("net", "ema")})
    arrays = {"net.weight": np.ones((2, 3)), "ema.weight": np.full((2, 3), 2)}
    load(net, TensorTable.from_arrays(arrays, {"net.weight": "model", "ema.weight": "ema"}))
    assert (net["net"].weight[0, 0].item(), net["ema"].weight[0, 0].item()) == (1, 2)


def test_a_model_made_in_inference_mode_is_filled(torch):
    with torch.inference_mode():
        net = torch.nn.Linear(3, 2, bias=False)
    load(net, TensorTable.from_arrays({"weight": np.ones((2, 3), np.float32)}))
    assert net.weight.sum().item() == 6


def test_wrappers_around_the_model_do_not_matter(torch):
    net = torch.nn.DataParallel(torch.nn.Linear(3, 2, bias=False))
    found = load(net, TensorTable.from_arrays({"weight": np.ones((2, 3), np.float32)}))
    assert found.pairs == {"weight": "weight"}
    assert net.module.weight.sum().item() == 6
