"""Layers: which tensors form one, told from real files of every writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptdoctor import open_checkpoint
from ckptdoctor.layers import CONVENTIONS, KERAS_CLASSES, Convention, Layer, read_layers
from ckptdoctor.tensors import LayerConfig, TensorTable

ARRAYS = {1: [1.0, 2.0], 2: np.ones((2, 3)), 3: np.ones((2, 3, 4)), 4: np.ones((2, 3, 1, 1))}


def layers_of(tensors: dict[str, Any], *configs: LayerConfig) -> dict[str, Layer]:
    arrays = {k: np.asarray(v, np.float32) for k, v in tensors.items()}
    table = TensorTable.from_arrays(arrays, layers=configs)
    return {layer.name: layer for layer in read_layers(table).all}


def parts_of(layer: Layer) -> dict[str, str]:
    return {part: info.name for part, info in layer.parts.items()}


# --- one file per row of the table -----------------------------------------------------------------


def vector(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, np.ones(3, np.float32))


def matrix(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


WRITTEN_BY_HAND: dict[str, dict[str, Any]] = {
    # writers that are not installed here; the names are those of their files
    "MXNet exports": vector("bn0.gamma", "bn0.beta", "bn0.moving_mean", "bn0.moving_var"),
    "Flax BatchNorm": vector(
        "params/BatchNorm_0/scale", "params/BatchNorm_0/bias",
        "batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"),
    "running statistics of observations": {
        **vector("obs_rms.mean", "obs_rms.var"), "obs_rms.count": np.float64(10)},
    "PEFT, diffusers, kohya": {
        "q.lora_A.default.weight": matrix(2, 6), "q.lora_B.default.weight": matrix(6, 2)},
    "one half of a pair": {"q.lora_B.weight": matrix(6, 2)},
    "loralib": {"q.weight": matrix(6, 6), "q.lora_A": matrix(2, 6), "q.lora_B": matrix(6, 2)},
    "PEFT": {"wte.lora_embedding_A": matrix(2, 9), "wte.lora_embedding_B": matrix(6, 2)},
    "GPTQ, AWQ": {"q.qweight": np.ones((4, 4), np.int32), "q.scales": matrix(1, 4)},
    "compressed-tensors": {"q.weight": matrix(4, 4), "q.weight_scale": matrix(4, 1)},
    "DeepSeek fp8": {"q.weight": matrix(4, 4), "q.weight_scale_inv": matrix(1, 1)},
    "bitsandbytes, 8 bits": {"q.weight": np.ones((4, 4), np.int8), **vector("q.SCB")},
    "bitsandbytes, 4 bits": {"q.weight": np.ones((8, 1), np.uint8), **vector("q.weight.absmax")},
    "Flax Embed": {"params/Embed_0/embedding": matrix(9, 4)},
    "TensorFlow slim": {"resnet/conv1/weights": matrix(3, 3, 2, 4), **vector("resnet/conv1/biases"),
                        "logits/weights": matrix(4, 2)},
    "one gain, told by its name": vector("attn.norm.gamma"),
    "Keras and Flax attention: one axis per head": {"params/attn/query/kernel": matrix(8, 2, 4)},
    "Keras and Flax convolutions": {"params/Conv_0/kernel": matrix(3, 3, 2, 4)},
    "Keras and Flax Dense": {"params/Dense_0/kernel": matrix(4, 2)},
    "Flax LayerNorm, Keras and Flax RMSNorm": vector("params/LayerNorm_0/scale"),
}  # fmt: skip


def torch_modules(torch: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    """State of a real module by the ``seen_in`` of the row that it shows."""
    nn = torch.nn

    def without(module: Any, *leaves: str) -> dict[str, Any]:
        return {f"m.{k}": v for k, v in module.state_dict().items() if k not in leaves}

    def wrapped(module: Any, wrap: Callable[..., Any], **options: Any) -> dict[str, Any]:
        return without(wrap(module, **options))

    def pruned(module: Any) -> dict[str, Any]:
        from torch.nn.utils import prune

        return without(prune.l1_unstructured(module, "weight", 0.5))

    def per_channel() -> dict[str, Any]:
        scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 0])
        return {
            "q.weight": torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.qint8)
        }

    param, old = nn.utils.parametrizations, nn.utils
    return {
        "torch BatchNorm, SyncBatchNorm, FrozenBatchNorm, InstanceNorm with tracking":
            lambda: without(nn.SyncBatchNorm(4)) | {
                f"i.{k}": v for k, v in nn.InstanceNorm2d(4, track_running_stats=True)
                .state_dict().items()},
        "the same with its variance missing": lambda: without(nn.BatchNorm1d(4), "running_var"),
        "torch.nn.utils.parametrizations/weightnorm":
            lambda: wrapped(nn.Linear(3, 4), param.weight_norm),
        "torch.nn.utils.weight_norm": lambda: wrapped(nn.Linear(3, 4), old.weight_norm),
        "torch.nn.utils.spectral_norm": lambda: wrapped(nn.Linear(3, 4), old.spectral_norm),
        "torch.nn.utils.parametrizations/spectralnorm":
            lambda: wrapped(nn.Linear(3, 4), param.spectral_norm),
        "any other parametrization of torch/dense":
            lambda: wrapped(nn.Linear(3, 4), param.orthogonal),
        "any other parametrization of torch/conv":
            lambda: wrapped(nn.Conv2d(3, 4, 1), param.orthogonal),
        "torch.nn.utils.prune/conv": lambda: pruned(nn.Conv2d(3, 4, 1)),
        "torch.nn.utils.prune/dense": lambda: pruned(nn.Linear(3, 4)),
        "a torch tensor quantised per channel": per_channel,
        "torch.ao": lambda: without(torch.ao.nn.quantized.Conv2d(3, 4, 1)),
        "torch LSTM, GRU, RNN and their cells": lambda: without(nn.LSTMCell(3, 4)),
        "torch MultiheadAttention": lambda: without(nn.MultiheadAttention(4, 2)),
        "torch MultiheadAttention over keys of another size":
            lambda: without(nn.MultiheadAttention(4, 2, kdim=3)),
        "torch Embedding, told by its name":
            lambda: {"model.embed_tokens.weight": nn.Embedding(9, 4).weight},
        "torch convolutions": lambda: without(nn.Conv2d(3, 4, 1)),
        "torch Linear": lambda: without(nn.Linear(3, 4)),
        "torch LayerNorm, GroupNorm, RMSNorm, BatchNorm without statistics":
            lambda: without(nn.GroupNorm(2, 4)) | {
                f"b.{k}": v for k, v in nn.BatchNorm1d(4, track_running_stats=False)
                .state_dict().items()},
    }  # fmt: skip


def keras_layers(keras: Any) -> dict[str, Callable[[], Any]]:
    """Real layer, and the shape of its input, by the ``seen_in`` of the row that it shows."""
    layers = keras.layers
    return {
        "Keras in .h5, TensorFlow exports": lambda: (layers.BatchNormalization(), (4,)),
        "Keras Normalization": lambda: (layers.Normalization(), (4,)),
        "Keras LSTM, GRU": lambda: (layers.GRU(3), (5, 4)),
        "Keras Embedding": lambda: (layers.Embedding(9, 4), (5,)),
        "Keras separable and depthwise": lambda: (layers.SeparableConv2D(3, 2), (5, 5, 2)),
        "Keras LayerNormalization, GroupNormalization":
            lambda: (layers.GroupNormalization(2), (5, 4)),
    }  # fmt: skip


def told_in(path: Path) -> dict[str, set[str]]:
    with open_checkpoint(path) as table:
        found: dict[str, set[str]] = {}
        for layer in read_layers(table).all:
            found.setdefault(layer.told_by, set()).add(layer.kind)
        return found


def row_id(row: Convention) -> str:
    return f"{row.kind}: {row.seen_in}"


def by_hand(row: Convention) -> bool:
    return row.seen_in in WRITTEN_BY_HAND


@pytest.mark.parametrize("row", [row for row in CONVENTIONS if by_hand(row)], ids=row_id)
def test_row_tells_a_file_with_the_names_of_its_writer(tmp_path: Path, row: Convention) -> None:
    np.savez(tmp_path / "a.npz", **WRITTEN_BY_HAND[row.seen_in])
    assert row.kind in told_in(tmp_path / "a.npz").get(row.seen_in, ())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", [row for row in CONVENTIONS if not by_hand(row)], ids=row_id)
def test_row_tells_a_file_that_its_framework_wrote(tmp_path: Path, row: Convention) -> None:
    torch = pytest.importorskip("torch")
    state = torch_modules(torch)
    key = row.seen_in if row.seen_in in state else f"{row.seen_in}/{row.kind}"
    if key in state and not row.example.startswith("post_bn"):
        path = tmp_path / "a.pt"
        torch.save(state[key](), path)
    else:
        path = keras_file(tmp_path, row)
    assert row.kind in told_in(path).get(row.seen_in, ())


def keras_file(tmp_path: Path, row: Convention) -> Path:
    keras = pytest.importorskip("keras")
    path = tmp_path / "a.h5"
    if row.seen_in == "Keras, int8 and float8":
        dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        dense.quantize("int8")
        kernel = {f"dense/{v.name}": np.asarray(v) for v in dense.layers[0].weights}
        np.savez(tmp_path / "a.npz", **kernel)
        return tmp_path / "a.npz"
    if row.seen_in == "the same with its variance missing":  # no framework writes it: damage
        np.savez(tmp_path / "a.npz", **vector("bn/gamma", "bn/moving_mean"))
        return tmp_path / "a.npz"
    layer, shape = keras_layers(keras)[row.seen_in]()
    keras.Sequential([keras.Input(shape), layer]).save(path)
    return path


NUMBERED = {
    "batchnorm": ("BatchNormalization", (4,), {"gamma", "beta", "mean", "var"}),
    "norm": ("LayerNormalization", (4,), {"gamma", "beta"}),
    "normalization": ("Normalization", (4,), {"mean", "var", "count"}),
    "embedding": ("Embedding", (5,), {"kernel"}),
    "recurrent": ("LSTM", (5, 4), {"kernel", "recurrent", "bias"}),
    "dense": ("Dense", (4,), {"kernel", "bias"}),
    "conv": ("DepthwiseConv2D", (5, 5, 4), {"kernel", "bias"}),
    "separable": ("SeparableConv2D", (5, 5, 4), {"kernel", "pointwise", "bias"}),
    None: ("PReLU", (5, 4), set()),
}
ARGUMENTS = {"Embedding": (9, 4), "LSTM": (3,), "Dense": (3,), "DepthwiseConv2D": (3,),
             "SeparableConv2D": (3, 2)}  # fmt: skip


def test_every_numbered_class_has_a_file() -> None:
    assert {row.kind for _, row in KERAS_CLASSES} <= set(NUMBERED)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(NUMBERED), ids=str)
def test_numbered_variables_are_named_by_their_class(tmp_path: Path, kind: str | None) -> None:
    keras = pytest.importorskip("keras")
    class_name, shape, parts = NUMBERED[kind]  # type: ignore[index]
    layer = getattr(keras.layers, class_name)(*ARGUMENTS.get(class_name, ()))
    keras.Sequential([keras.Input(shape), layer]).save_weights(tmp_path / "a.weights.h5")
    with open_checkpoint(tmp_path / "a.weights.h5") as table:
        found = read_layers(table).all
    assert [set(one.parts) for one in found] == ([parts] if parts else [])
    if kind in ("batchnorm", "norm", "normalization", "embedding", "recurrent", "dense", "conv"):
        assert [one.kind for one in found] == [kind]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scale", "center"), [(True, True), (True, False), (False, True), (False, False)]
)
@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
def test_keras_batchnorm_is_whole_without_gamma_or_beta(
    tmp_path: Path, suffix: str, scale: bool, center: bool
) -> None:
    keras = pytest.importorskip("keras")
    bn = keras.layers.BatchNormalization(scale=scale, center=center, epsilon=0.02, name="my_bn")
    model = keras.Sequential([keras.Input((3,)), bn])
    path = tmp_path / f"m{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    with open_checkpoint(path) as table:
        (layer,) = read_layers(table).batchnorms
        values = {part: table.read(info.name) for part, info in layer.parts.items()}
    expected = {"mean", "var"} | ({"gamma"} if scale else set()) | ({"beta"} if center else set())
    if suffix == ".weights.h5" and scale != center:
        expected = {"mean", "var", "gamma_or_beta"}  # nothing in the file tells which
    assert set(values) == expected
    assert (values["var"] == 1).all()
    assert (values["mean"] == 0).all()
    assert layer.name == "my_bn"
    assert layer.epsilon == (
        (0.02, "stored") if suffix != ".weights.h5" else (1e-3, "Keras' default")
    )


@pytest.mark.oracle
def test_epsilon_of_a_pickled_module_is_read_and_of_a_state_dict_the_default(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3, eps=0.5))
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    found = []
    for name in ("module.pt", "state.pt"):
        with open_checkpoint(tmp_path / name) as table:
            found += [layer.epsilon for layer in read_layers(table).all]
    assert found == [(0.5, "stored"), (1e-5, "torch's default")]


# --- what belongs together although names differ ---------------------------------------------------


def test_both_halves_of_an_adapter_are_one_layer_under_every_writers_names() -> None:
    for down, up in [
        ("q.lora_A.weight", "q.lora_B.weight"),
        ("q.lora_A.default.weight", "q.lora_B.default.weight"),
        ("q.lora.down.weight", "q.lora.up.weight"),
        ("q_lora.down.weight", "q_lora.up.weight"),
        ("lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight"),
    ]:
        (layer,) = layers_of({down: ARRAYS[2], up: ARRAYS[2]}).values()
        assert (layer.kind, parts_of(layer)) == ("lora", {"down": down, "up": up})


def test_adapters_of_one_layer_stay_apart_and_alpha_joins() -> None:
    names = [f"q.lora_{side}.{adapter}.weight" for adapter in "xy" for side in "AB"]
    found = layers_of(dict.fromkeys(names, ARRAYS[2]))
    assert [parts_of(layer)["down"] for layer in found.values()] == names[::2]
    found = layers_of(
        {"k.lora_down.weight": ARRAYS[2], "k.lora_up.weight": ARRAYS[2], "k.alpha": 4.0}
    )
    assert set(found["k.lora"].parts) == {"down", "up", "alpha"}


def test_flax_batchnorm_joins_two_trees_and_has_flax_epsilon() -> None:
    found = layers_of(WRITTEN_BY_HAND["Flax BatchNorm"])
    (layer,) = found.values()
    assert set(layer.parts) == {"mean", "var", "gamma", "beta"}
    assert layer.epsilon == (1e-5, "Flax' default")


def test_parametrized_layer_has_its_bias_and_its_plain_name() -> None:
    names = ["fc.bias", "fc.parametrizations.weight.original", "fc.parametrizations.weight.0._u"]
    found = layers_of({names[0]: ARRAYS[1], names[1]: ARRAYS[2], names[2]: ARRAYS[1]})
    assert parts_of(found["fc"]) == {"bias": names[0], "kernel": names[1], "u": names[2]}


def test_every_direction_and_layer_of_a_recurrent_net_is_a_layer() -> None:
    ends = ["l0", "l0_reverse", "l1", "l1_reverse"]
    names = {f"rnn.weight_{way}_{end}": ARRAYS[2] for end in ends for way in ("ih", "hh")}
    found = layers_of(names)
    assert list(found) == ["rnn", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]
    assert parts_of(found["rnn.l1"]) == {
        "kernel": "rnn.weight_ih_l1", "recurrent": "rnn.weight_hh_l1"}  # fmt: skip


def test_layers_stand_in_file_order_even_where_they_were_joined() -> None:
    found = layers_of(
        {"a.lora_A.weight": ARRAYS[2], "b.weight": ARRAYS[2], "a.lora_B.weight": ARRAYS[2]}
    )
    assert list(found) == ["a.lora", "b"]


# --- what is taken for nothing, or not for something else ------------------------------------------


@pytest.mark.parametrize(
    "tensors",
    [
        {"act.weight": [0.25]},
        {"prelu1.weight": [0.25, 0.25]},
        {"scales.0.scale": [1.0]},
        {"pos_embed": ARRAYS[3], "cls_token": ARRAYS[3]},
        {"blocks.0.ls1.gamma": [1e-6, 1e-6]},
        {"blocks.0.gamma": [1e-6, 1e-6]},
        {"criterion.weight": [1.0, 2.0]},
        {"quant.scale": [1.0, 1.0], "quant.zero_point": [0, 0]},
        {"normalizer.mean": 0.0, "normalizer.std": 1.0},
        {"bn/moving_variance/biased": [1.0], "bn/moving_variance/local_step": 3.0},
    ],
    ids=["one-slope", "slopes", "learned-scale", "parameters", "layer-scale", "convnext-scale",
         "class-weights", "observer", "normalizer", "tf1-slots"],
)  # fmt: skip
def test_tensors_that_form_no_layer(tensors: dict[str, Any]) -> None:
    assert not layers_of(tensors)


def test_embedding_has_no_bias_and_a_stored_class_decides() -> None:
    assert layers_of({"embedding.weight": ARRAYS[2]})["embedding"].kind == "embedding"
    with_bias = {"embedding.weight": ARRAYS[2], "embedding.bias": ARRAYS[1]}
    assert layers_of(with_bias)["embedding"].kind == "dense"
    linear = LayerConfig(name="embedding", class_name="Linear")
    assert layers_of({"embedding.weight": ARRAYS[2]}, linear)["embedding"].kind == "dense"
    table = LayerConfig(name="codes", class_name="Embedding")
    assert layers_of({"codes.weight": ARRAYS[2]}, table)["codes"].kind == "embedding"
    slopes = LayerConfig(name="a", class_name="PReLU")
    assert not layers_of({"a.weight": [0.1, 0.2]}, slopes)


def test_batchnorm_is_told_whatever_is_missing() -> None:
    for leaves in (["running_var"], ["running_mean"], ["running_mean", "running_var", "weight"]):
        (layer,) = layers_of({f"bn.{leaf}": ARRAYS[1] for leaf in leaves}).values()
        assert layer.kind == "batchnorm"


def test_doubled_and_suffixed_names_keep_their_parts() -> None:
    found = layers_of({"bn/gamma:0": [1.0], "bn/moving_variance:0": [2.0]})
    assert parts_of(found["bn"]) == {"gamma": "bn/gamma:0", "var": "bn/moving_variance:0"}


@pytest.mark.parametrize(
    ("name", "shape", "bias", "class_name", "axes", "units"),
    [
        ("c.weight", (8, 3, 3, 3), None, "", (0,), 8),
        ("c.weight", (8, 3, 3, 3), 8, "", (0,), 8),
        ("c.weight", (8, 3, 3, 3), 3, "", (1,), 3),
        ("c.weight", (8, 3, 3, 3), None, "ConvTranspose2d", (1,), 3),
        ("c/kernel", (3, 3, 2, 8), 8, "", (3,), 8),
        ("c/kernel", (3, 3, 8, 2), 8, "Conv2DTranspose", (2,), 8),
        ("c/kernel", (3, 3, 4, 2), 8, "DepthwiseConv2D", (2, 3), 8),
        ("c/depthwise_kernel", (3, 3, 4, 1), 4, "", (2, 3), 4),
        ("fc.weight", (4, 12), 12, "", (1,), 12),  # GPT-2 stores inputs first
    ],
)
def test_outputs_are_counted_by_the_right_axes(
    name: str, shape: tuple[int, ...], bias: int | None, class_name: str, axes: Any, units: int
) -> None:
    group = name[: max(name.rfind("."), name.rfind("/"))]
    tensors = {name: np.ones(shape)}
    if bias:
        tensors[group + name[len(group)] + "bias"] = np.ones(bias)
    configs = [LayerConfig(name=group, class_name=class_name)] if class_name else []
    layer = layers_of(tensors, *configs)[group]
    assert (layer.unit_axes, layer.units) == (axes, units)


def test_lookups_by_tensor_agree_with_the_layers() -> None:
    table = TensorTable.from_arrays({"fc.weight": ARRAYS[2], "fc.bias": ARRAYS[1], "x": 1.0})
    layers = read_layers(table)
    (fc,) = layers.all
    assert layers.of("fc.bias") is fc
    assert layers.part_of("fc.bias") == "bias"
    assert (layers.of("x"), layers.part_of("x")) == (None, "")


def test_optimizer_tensors_form_no_layers() -> None:
    table = TensorTable.from_arrays({"o.weight": ARRAYS[2]}, {"o.weight": "optimizer"})
    assert not read_layers(table).all


def test_quantised_tensor_owns_the_scales_that_stand_below_its_name() -> None:
    found = layers_of(
        {"q.weight": ARRAYS[2], "q.weight.scale": ARRAYS[1], "q.weight.zero_point": ARRAYS[1]}
    )
    assert found["q"].kind == "quantised"
    assert set(found["q"].parts) == {"kernel", "scale", "zero_point"}
