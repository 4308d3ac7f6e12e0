"""What feeds a BatchNorm, in which order, and when the answer is that nobody knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor import open_checkpoint
from ckptdoctor.graph import Feed, Graph, read_graph
from ckptdoctor.layers import Layers, read_layers
from ckptdoctor.tensors import LayerConfig, TensorInfo, TensorTable

Shapes = Mapping[str, tuple[int, ...]]


def table_of(
    shapes: Shapes, *, alphabetical: bool = False, configs: Sequence[LayerConfig] = ()
) -> TensorTable:
    names = sorted(shapes) if alphabetical else list(shapes)
    infos = {
        name: TensorInfo(
            name=name,
            path=tuple(name.split("/")) if "/" in name else (name,),
            dtype="float32",
            shape=shapes[name],
        )
        for name in names
    }
    layers = {config.name: config for config in configs}
    return TensorTable(path="x", format="memory", infos=infos, layers=layers)


def net(*layers: str, stats: str = "running_var") -> dict[str, tuple[int, ...]]:
    """Shapes from ``name:out,in,k,k`` for kernels and ``name:channels`` for BatchNorms."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        name, _, numbers = layer.partition(":")
        shape = tuple(int(n) for n in numbers.split(","))
        if len(shape) > 1:
            shapes[f"{name}.weight"] = shape
        else:  # weight before bias: no torch file is alphabetical
            shapes |= {f"{name}.{leaf}": shape for leaf in ("weight", "bias", stats)}
    return shapes


def graph_of(shapes: Shapes, **options: Any) -> tuple[Graph, Layers]:
    table = table_of(shapes, **options)
    layers = read_layers(table)
    return read_graph(table, layers), layers


def kernels_of(shapes: Shapes, **options: Any) -> dict[str, str]:
    """BatchNorm -> name of the kernel that feeds it, else the source."""
    graph, _ = graph_of(shapes, **options)
    return {key: f.kernel.name if f.kernel else f.source for key, f in graph.feeds.items()}


# --- names and shapes --------------------------------------------------------------------------------

STEM = ("conv1:8,3,3,3", "bn1:8")

PAIRS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "numbers": (("conv2:8,4,3,3", "bn2:8"), {"bn2": "conv2"}),
    "dense layers": (("fc1:8,4", "bn1:8"), {"bn1": "fc1"}),
    "words in a block": (("a.conv:8,4,3,3", "a.bn:8"), {"a.bn": "a.conv"}),
    "norm for bn": (("a.conv:8,4,3,3", "a.norm:8"), {"a.norm": "a.conv"}),
    "a Sequential": (("a.0:8,4,3,3", "a.1:8"), {"a.1": "a.0"}),
    "a Sequential with gaps": (("a.0:8,4,3,3", "a.3:8", "a.4:9,8,3,3", "a.10:9"),
                               {"a.3": "a.0", "a.10": "a.4"}),
    "downsample": (("l.downsample.0:8,4,1,1", "l.downsample.1:8"),
                   {"l.downsample.1": "l.downsample.0"}),
    "a word around": (("a.point_conv1:8,4,1,1", "a.point_bn1:8", "a.depth_conv:8,1,3,3", "a.depth_bn:8"),
                      {"a.point_bn1": "a.point_conv1", "a.depth_bn": "a.depth_conv"}),
    "the kernel's name and more": (("conv1:8,4,3,3", "conv1_bn:8"), {"conv1_bn": "conv1"}),
    "Keras applications": (("c5_block3_2_conv:8,4,3,3", "c5_block3_2_bn:8", "c5_block3_3_conv:8,4,1,1"),
                           {"c5_block3_2_bn": "c5_block3_2_conv"}),
    "Keras ResNet50 of old": (("res2a_branch2a:8,4,1,1", "bn2a_branch2a:8"),
                              {"bn2a_branch2a": "res2a_branch2a"}),
    "a kernel with a suffix": (("conv1_1x1:8,4,1,1", "norm1:8", "conv2_kxk:8,4,3,3", "norm2:8"),
                               {"norm1": "conv1_1x1", "norm2": "conv2_kxk"}),
    "class names": (("Conv_0:8,4,3,3", "BatchNorm_0:8"), {"BatchNorm_0": "Conv_0"}),
    "two lists": (("convs.0:8,4,3,3", "convs.1:9,8,3,3", "bns.0:8", "bns.1:9"),
                  {"bns.0": "convs.0", "bns.1": "convs.1"}),
    "two lists of other words": (("layers.0:8,4", "layers.1:9,8", "norms.0:8", "norms.1:9"),
                                 {"norms.0": "layers.0", "norms.1": "layers.1"}),
    "a fused layer": (("conv1:8,4,3,3", "conv1.bn:8"), {"conv1.bn": "conv1"}),
    "timm's mobile block": (("b.conv_pw:8,4,1,1", "b.bn1:8", "b.conv_dw:8,1,3,3", "b.bn2:8",
                             "b.conv_pwl:4,8,1,1", "b.bn3:4"),
                            {"b.bn1": "b.conv_pw", "b.bn2": "b.conv_dw", "b.bn3": "b.conv_pwl"}),
    "a separable block": (("b.sep1.dw:4,1,3,3", "b.sep1.pw:8,4,1,1", "b.bn1:8"), {"b.bn1": "b.sep1.pw"}),
    "a deep stem": (("conv1.0:4,3,3,3", "conv1.1:4", "conv1.3:8,4,3,3", "bn1:8"),
                    {"conv1.1": "conv1.0", "bn1": "conv1.3"}),
}  # fmt: skip


@pytest.mark.parametrize("alphabetical", [False, True], ids=["file order", "alphabetical"])
@pytest.mark.parametrize("case", list(PAIRS))
def test_names_pair_a_norm_with_its_kernel(case: str, alphabetical: bool) -> None:
    layers, expected = PAIRS[case]
    assert kernels_of(net(*layers), alphabetical=alphabetical) == expected


IN_ORDER: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "unlike names": (("a.proj_in:8,4,3,3", "a.q:8", "a.proj_out:9,8,3,3", "a.r:9"),
                     {"a.q": "a.proj_in", "a.r": "a.proj_out"}),
    "the nearest that fits": (("a.x:8,4,3,3", "a.y:9,8,3,3", "a.z:8"), {"a.z": "a.x"}),
    "none that fits": (("a.x:9,4,3,3", "a.z:8"), {"a.z": "unknown"}),
    "another norm between": (("a.x:8,4,3,3", "a.y:8", "a.z:8"), {"a.y": "a.x", "a.z": "unknown"}),
    "a block between": (("a.x:8,4,3,3", "a.b.c:8,8,3,3", "a.b.n:8", "a.z:8"),
                        {"a.b.n": "a.b.c", "a.z": "unknown"}),
    "a block before in a Sequential": (("a.0.c:8,8,3,3", "a.0.n:8", "a.1:8"),
                                       {"a.0.n": "a.0.c", "a.1": "unknown"}),
    "a norm before in a Sequential": (("a.0:8,8,3,3", "a.1:8", "a.3:8"), {"a.1": "a.0", "a.3": "norm"}),
    "a shortcut before": (("a.conv:8,4,3,3", "a.shortcut:8,4,1,1", "a.z:8"), {"a.z": "a.conv"}),
    "norm of a whole net": (("a.conv:8,4,3,3", "a.final_q:8"), {"a.final_q": "unknown"}),
}  # fmt: skip


@pytest.mark.parametrize("case", list(IN_ORDER))
def test_file_order_tells_where_names_do_not(case: str) -> None:
    layers, expected = IN_ORDER[case]
    assert {k: v for k, v in kernels_of(net(*STEM, *layers)).items() if k != "bn1"} == expected


def test_alphabetical_neighbours_are_not_believed() -> None:
    two = net("a.x:8,8,3,3", "a.y:8,8,3,3", "a.z:8", "a.z2:8")
    assert set(kernels_of(two, alphabetical=True).values()) == {"unknown"}


def test_only_kernel_beside_the_only_norm_is_taken_in_any_order() -> None:
    assert kernels_of(net("a.conv:8,4,3,3", "a.bn1:8"), alphabetical=True) == {"a.bn1": "a.conv"}


PREACT = (
    "conv1:8,3,3,3",
    "l.0.bn1:8", "l.0.conv1:8,8,3,3", "l.0.bn2:8", "l.0.conv2:8,8,3,3",
    "l.1.bn1:8", "l.1.conv1:16,8,3,3", "l.1.bn2:16", "l.1.conv2:16,16,3,3",
)  # fmt: skip


@pytest.mark.parametrize("alphabetical", [False, True], ids=["file order", "alphabetical"])
def test_preactivation_norms_are_not_fed_by_the_kernel_of_their_name(alphabetical: bool) -> None:
    assert kernels_of(net(*PREACT), alphabetical=alphabetical) == {
        "l.0.bn1": "unknown", "l.0.bn2": "l.0.conv1",
        "l.1.bn1": "unknown", "l.1.bn2": "l.1.conv1",
    }  # fmt: skip


def test_dense_net_norms_before_a_growing_concatenation_are_unknown() -> None:
    block = ("b.norm1:8", "b.conv1:16,8,1,1", "b.norm2:16", "b.conv2:4,16,3,3")
    for alphabetical in (False, True):
        found = kernels_of(net("conv0:8,3,7,7", "norm0:8", *block), alphabetical=alphabetical)
        assert found == {"norm0": "conv0", "b.norm1": "unknown", "b.norm2": "b.conv1"}


def test_equal_widths_are_settled_by_blocks_that_leave_no_choice() -> None:
    same = ("l.0.conv1:8,8,3,3", "l.0.bn1:8")
    assert kernels_of(net(*same), alphabetical=True) == {"l.0.bn1": "unknown"}
    behind = kernels_of(net(*same, "l.1.conv1:16,8,3,3", "l.1.bn1:16"), alphabetical=True)
    assert behind == {"l.0.bn1": "l.0.conv1", "l.1.bn1": "l.1.conv1"}
    before = kernels_of(net(*same, "l.1.conv1:16,8,3,3", "l.1.bn1:8"), alphabetical=True)
    assert before == {"l.0.bn1": "unknown", "l.1.bn1": "unknown"}


def test_norm_registered_before_its_kernel_of_equal_width_is_not_fed_by_it() -> None:
    assert kernels_of(net(*STEM, "a.bn1:8", "a.conv1:8,8,3,3"))["a.bn1"] == "unknown"


def test_grouped_kernel_behind_its_norm_is_no_feed_among_preactivation_blocks() -> None:
    blocks = [
        part
        for i in range(3)
        for part in (
            f"l.{i}.bn1:8",
            f"l.{i}.conv1:16,8,1,1",
            f"l.{i}.bn2:16",
            f"l.{i}.conv2:16,5,3,3",
        )
    ]
    grouped = [part.replace("16,5,", "16,8,") for part in blocks]
    found = kernels_of(net("conv1:8,3,3,3", *grouped))
    assert {found[f"l.{i}.bn2"] for i in range(3)} == {f"l.{i}.conv1" for i in range(3)}


def test_transposed_convolutions_are_told_by_the_axis_that_fits() -> None:
    generator = net("m.0:100,64,4,4", "m.1:64", "m.3:64,32,4,4", "m.4:32", "m.6:32,3,4,4")
    graph, _ = graph_of(generator)
    assert [(f.kernel.name, f.axes) for f in graph.feeds.values() if f.kernel] == [
        ("m.0", (1,)), ("m.3", (1,))]  # fmt: skip


def test_bias_or_name_or_class_excludes_the_other_axis() -> None:
    shapes = net("conv1:8,4,3,3", "bn1:4")
    assert kernels_of(shapes)["bn1"] == "conv1"  # could be transposed
    assert kernels_of(shapes | {"conv1.bias": (8,)})["bn1"] == "unknown"
    assert kernels_of(shapes | {"conv1.bias": (4,)})["bn1"] == "conv1"
    ordinary = LayerConfig(name="conv1", class_name="Conv2d")
    assert kernels_of(shapes, configs=[ordinary])["bn1"] == "unknown"
    named = net("deconv1:8,4,3,3", "bn1:8")
    assert kernels_of(named)["bn1"] == "unknown"


def test_recurrent_and_attention_layers_feed_no_batchnorm() -> None:
    shapes = {"rnn.weight_ih_l0": (8, 4), "rnn.weight_hh_l0": (8, 8), **net("bn:8")}
    assert kernels_of(shapes) == {"bn": "unknown"}


@pytest.mark.parametrize(
    ("kernel", "axes"),
    [((3, 3, 8, 1), (2, 3)), ((3, 3, 4, 2), ()), ((3, 3, 4, 8), (3,)), ((3, 3, 8, 4), (2,)), ((4, 8), (1,))],
)  # fmt: skip
def test_keras_kernels_without_a_class_are_told_by_their_axes(kernel: Any, axes: Any) -> None:
    graph, _ = graph_of({"conv1/kernel": kernel, "bn_conv1/moving_variance": (8,)})
    assert graph.feeds["bn_conv1"].axes == axes
    named, _ = graph_of({"dw1/depthwise_kernel": (3, 3, 4, 2), "dw1_bn/moving_variance": (8,)})
    assert named.feeds["dw1_bn"].axes == (2, 3)


def test_image_stem_is_no_grouped_kernel_but_one_of_many_narrow_ones_is() -> None:
    stem = ("a.bn1:4", "a.conv1:8,4,3,3", "b.bn1:8", "b.conv1:8,4,3,3")
    found = kernels_of(net(*stem), alphabetical=True)
    assert found == {"a.bn1": "unknown", "b.bn1": "unknown"}  # grouped: another takes four too
    alone = ("a.bn1:4", "a.conv1:8,4,3,3", "b.bn1:9", "b.conv1:9,3,3,3")
    assert kernels_of(net(*alone), alphabetical=True)["b.bn1"] == "b.conv1"


def test_pointwise_half_feeds_the_only_norm_of_a_block() -> None:
    block = ("a.conv_x_dw:8,1,3,3", "a.conv_x_pw:8,8,1,1", "a.bn:8")
    rest = ("z.conv:9,8,3,3", "z.bn:9")
    assert kernels_of(net(*block, *rest), alphabetical=True)["a.bn"] == "a.conv_x_pw"


@pytest.mark.parametrize(("channels", "first"), [(1, False), (2, True), (4, True), (5, False)])
def test_branches_are_on_the_input_only_if_they_look_like_images(
    channels: int, first: bool
) -> None:
    branches = net(f"x.conv1:8,{channels},3,3", "x.bn1:8", f"y.conv1:8,{channels},3,3", "y.bn1:8")
    graph, _ = graph_of(branches)
    assert ("y.bn1" in graph.first) is first


# --- order and the first BatchNorm -------------------------------------------------------------------


def test_torch_order_is_the_files_and_alphabetical_order_the_natural_one() -> None:
    layers = ("layers.0:8,3,3,3", "layers.4:8", "layers.6:9,8,3,3", "layers.10:9", "head:2,9")
    graph, _ = graph_of(net(*layers))
    assert graph.order_from == "the file's order"
    sorted_graph, found = graph_of(net(*layers), alphabetical=True)
    assert sorted_graph.order_from == "the names' natural order"
    assert (
        list(sorted_graph.order)
        == list(graph.order)
        == [layer.partition(":")[0] for layer in layers]
    )
    assert [sorted_graph.depth(layer) for layer in found.all if layer.name == "head"] == [4]


def test_words_that_begin_and_end_a_net_find_their_place_in_alphabetical_files() -> None:
    layers = ("stem.conv:8,3,3,3", "stem.bn:8", "encoder.0:9,8,3,3", "encoder.1:9",
              "bottleneck.0:9,9,3,3", "bottleneck.1:9", "decoder.0:8,9,3,3", "decoder.1:8", "fc:2,8")  # fmt: skip
    graph, _ = graph_of(net(*layers), alphabetical=True)
    assert list(graph.order) == [layer.partition(":")[0] for layer in layers]
    assert graph.first == {"stem.bn"}


def test_norm_on_the_input_is_told_apart_from_the_first_behind_a_kernel() -> None:
    graph, _ = graph_of(net("input_norm:4", "conv1:8,4,3,3", "conv2:9,8,3,3"))
    assert (graph.feeds["input_norm"].source, graph.first) == ("input", {"input_norm"})
    for alphabetical in (False, True):
        graph, _ = graph_of(net(*STEM, "conv2:9,8,3,3", "bn2:9"), alphabetical=alphabetical)
        assert (graph.feeds["bn1"].source, graph.first) == ("kernel", {"bn1"})


def test_kernels_alone_do_not_end_the_input_but_other_norms_and_embeddings_do() -> None:
    graph, _ = graph_of(net("c.0:8,3,3,3", "c.1:9,8,3,3", "c.2:9"))
    assert graph.first == {"c.2"}
    for before in ({"ln.weight": (8,), "ln.bias": (8,)}, {"embed.weight": (50, 8)}):
        graph, _ = graph_of(before | net("conv1:8,8,3,3", "bn1:8"))
        assert not graph.first


def test_second_branch_on_the_image_has_a_first_norm_too() -> None:
    graph, _ = graph_of(net("rgb.conv1:8,3,3,3", "rgb.bn1:8", "flow.conv1:8,3,3,3", "flow.bn1:8",
                            "conv2:9,8,3,3", "bn2:9"))  # fmt: skip
    assert graph.first == {"rgb.bn1", "flow.bn1"}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("netG", "netD"),
        ("generator", "discriminator"),
        ("student", "teacher"),
        ("model.netG", "model.netD"),
    ],
)
def test_each_net_of_a_file_has_its_own_first_norm(a: str, b: str) -> None:
    shapes = net(*(f"{name}.{layer}" for name in (a, b) for layer in STEM))
    for alphabetical in (False, True):
        graph, _ = graph_of(shapes, alphabetical=alphabetical)
        assert graph.first == {f"{a}.bn1", f"{b}.bn1"}


def test_encoder_and_decoder_of_one_state_dict_are_one_net() -> None:
    shapes = net(*(f"encoder.{layer}" for layer in STEM), "decoder.conv1:8,8,3,3", "decoder.bn1:8")
    for alphabetical in (False, True):
        graph, _ = graph_of(shapes, alphabetical=alphabetical)
        assert graph.first == {"encoder.bn1"}


def test_state_dicts_side_by_side_and_roles_are_nets() -> None:
    infos = {
        f"{part}.{name}": TensorInfo(
            name=f"{part}.{name}", path=(part, name), dtype="float32", shape=shape,
            role="ema" if part == "ema" else "model")
        for part in ("model", "ema", "head")
        for name, shape in net(*STEM).items()
    }  # fmt: skip
    table = TensorTable(path="x", format="memory", infos=infos)
    graph = read_graph(table, read_layers(table))
    assert graph.first == {"model.bn1", "ema.bn1", "head.bn1"}
    assert {key: f.kernel.name for key, f in graph.feeds.items() if f.kernel} == {
        f"{part}.bn1": f"{part}.conv1" for part in ("model", "ema", "head")}  # fmt: skip


def test_numbers_of_keras_groups_order_the_norms() -> None:
    shapes = {
        f"layers/batch_normalization{n}/vars/{i}": (8,) for n in ("", "_1", "_2") for i in range(4)
    }
    shapes |= {f"layers/conv2d{n}/vars/0": (3, 3, 8, 8) for n in ("", "_1", "_2", "_10")}
    infos = {
        name: TensorInfo(name=name, path=tuple(name.split("/")), dtype="float32", shape=shapes[name],
                         layer_name=name.split("/")[1].replace("batch_normalization", "conv2d")
                         + ("_bn" if "batch" in name else ""))
        for name in sorted(shapes)
    }  # fmt: skip
    table = TensorTable(path="x", format="memory", infos=infos)
    order = [key.split("/")[1] for key in read_graph(table, read_layers(table)).order]
    assert [word for word in order if word.startswith("batch")] == [
        "batch_normalization", "batch_normalization_1", "batch_normalization_2"]  # fmt: skip
    assert order.index("conv2d_10") == len(order) - 1


def test_names_that_keras_made_up_pair_only_if_all_channels_agree() -> None:
    shapes = {f"batch_normalization_{i}/moving_variance": (i + 4,) for i in range(11)}
    agree = shapes | {f"conv2d_{i + 7}/kernel": (3, 3, 2, i + 4) for i in range(11)}
    found = kernels_of(agree, alphabetical=True)
    assert found["batch_normalization_10"] == "conv2d_17"
    same = {f"batch_normalization_{i}/moving_variance": (8,) for i in range(3)}
    more = same | {f"conv2d_{i}/kernel": (3, 3, 2, 8) for i in range(4)}
    assert set(kernels_of(more, alphabetical=True).values()) == {"unknown"}
    less = same | {"conv2d/kernel": (3, 3, 2, 8), "conv2d_1/kernel": (3, 3, 2, 9)}
    assert set(kernels_of(less, alphabetical=True).values()) == {"unknown"}
    unique = more | {"batch_normalization_3/moving_variance": (5,), "dense/kernel": (4, 5)}
    assert kernels_of(unique, alphabetical=True)["batch_normalization_3"] == "dense"


def test_kernels_of_keras_groups_stand_before_the_norm_that_needs_the_last_of_them() -> None:
    shapes = {
        f"layers/conv2d{n}/vars/0": (3, 3, 8, 8 if n != "_2" else 9) for n in ("", "_1", "_2", "_3")
    }
    for n, channels in (("", 9), ("_1", 8)):
        shapes |= {f"layers/batch_normalization{n}/vars/{i}": (channels,) for i in range(4)}
    names = {"": "b_bn", "_1": "c_bn"}
    convs = {"": "x", "_1": "y", "_2": "b_conv", "_3": "c_conv"}
    infos = {}
    for name in sorted(shapes):
        group = name.split("/")[1]
        known = names if group.startswith("batch") else convs
        label = known[group.removeprefix("batch_normalization").removeprefix("conv2d")]
        infos[name] = TensorInfo(name=name, path=tuple(name.split("/")), dtype="float32",
                                 shape=shapes[name], layer_name=label)  # fmt: skip
    table = TensorTable(path="x", format="memory", infos=infos)
    order = [key.split("/")[1] for key in read_graph(table, read_layers(table)).order]
    assert order == ["conv2d", "conv2d_1", "conv2d_2", "batch_normalization", "conv2d_3",
                     "batch_normalization_1"]  # fmt: skip


# --- the Keras configuration ---------------------------------------------------------------------------


def config(name: str, kind: str, *inputs: str, **more: Any) -> LayerConfig:
    return LayerConfig(name=name, class_name=kind, inputs=inputs, **more)


def keras_graph(configs: Sequence[LayerConfig], **kernels: tuple[int, ...]) -> Graph:
    shapes = {f"{name}/kernel": shape for name, shape in kernels.items()}
    shapes |= {
        f"{c.name}/moving_variance": (8,) for c in configs if c.class_name == "BatchNormalization"
    }
    return graph_of(shapes, configs=configs)[0]


def simple(*between: LayerConfig, last: str, **more: Any) -> Feed:
    configs = [config("in", "InputLayer"), config("c", "Conv2D", "in", **more), *between,
               config("bn", "BatchNormalization", last)]  # fmt: skip
    return keras_graph(configs, c=(3, 3, 1, 8)).feeds["bn"]


def test_config_passes_through_what_keeps_the_channels_and_says_so() -> None:
    feed = simple(
        config("p", "MaxPooling2D", "c"),
        config("a", "Activation", "p", activation="relu"),
        last="a",
    )
    assert (feed.source, feed.through, feed.how) == (
        "kernel",
        ("relu", "MaxPooling2D"),
        "the Keras config",
    )
    assert feed.kernel
    assert feed.kernel.name == "c"
    assert simple(config("p", "AveragePooling2D", "c"), last="p").through == ("AveragePooling2D",)
    assert simple(last="c", activation="relu").through == ("relu",)
    assert simple(last="c", activation="linear").through == ()


@pytest.mark.parametrize(
    ("kind", "source"),
    [("Add", "sum"), ("Multiply", "sum"), ("Concatenate", "concat"), ("LSTM", "unknown"),
     ("MyOwnLayer", "unknown"), ("LayerNormalization", "norm"), ("Normalization", "input")],
)  # fmt: skip
def test_config_names_what_is_no_kernel(kind: str, source: str) -> None:
    feed = simple(config("x", kind, "c", "in"), last="x")
    assert (feed.kernel, feed.source) == (None, source)


def test_config_finds_the_norms_that_see_the_input() -> None:
    configs = [
        config("in", "InputLayer"), config("r", "Rescaling", "in"),
        config("bn_in", "BatchNormalization", "r"), config("c", "Conv2D", "in"),
        config("bn_c", "BatchNormalization", "c"), config("d", "Conv2D", "bn_c"),
        config("bn_d", "BatchNormalization", "d"), config("s", "Add", "in", "bn_d"),
        config("bn_s", "BatchNormalization", "s"), config("n", "Normalization", "in"),
        config("e", "Conv2D", "n"), config("bn_n", "BatchNormalization", "e"),
        config("t", "Conv2D", "in", activation="tanh"), config("bn_t", "BatchNormalization", "t"),
    ]  # fmt: skip
    graph = keras_graph(configs, **dict.fromkeys("cdet", (3, 3, 1, 8)))
    assert graph.first == {"bn_in", "bn_c", "bn_s"}  # bn_t gets at most 1
    assert graph.feeds["bn_in"].source == "input"
    assert graph.feeds["bn_in"].through == ("Rescaling",)
    assert graph.order_from == "the Keras config"


def test_shared_layer_is_known_where_its_calls_agree() -> None:
    base = [config("in", "InputLayer"), config("c", "Conv2D", "in"), config("d", "Conv2D", "in")]
    kernels = {"c": (3, 3, 1, 8), "d": (3, 3, 1, 8)}
    graph = keras_graph([*base, config("bn", "BatchNormalization", "c", "d")], **kernels)
    assert graph.feeds["bn"].source == "unknown"
    graph = keras_graph([*base, config("bn", "BatchNormalization", "c", "c")], **kernels)
    assert graph.feeds["bn"].source == "kernel"


def test_time_distributed_kernel_feeds_what_stands_behind_the_wrapper() -> None:
    configs = [config("in", "InputLayer"), config("td", "TimeDistributed", "in"),
               config("td/dense", "Dense", "in"), config("bn", "BatchNormalization", "td")]  # fmt: skip
    shapes = {"td/dense/kernel": (4, 8), "bn/moving_variance": (8,)}
    graph, _ = graph_of(shapes, configs=configs)
    assert graph.feeds["bn"].kernel
    assert graph.feeds["bn"].kernel.name == "td/dense"


def test_cycle_and_missing_layers_in_a_config_are_unknown() -> None:
    cycle = [
        config("a", "Dropout", "b"),
        config("b", "Dropout", "a"),
        config("bn", "BatchNormalization", "b"),
    ]
    assert keras_graph(cycle).feeds["bn"].source == "unknown"
    assert not keras_graph(cycle).first
    absent = [config("c", "Conv2D", "in"), config("bn", "BatchNormalization", "c")]
    assert keras_graph(absent).feeds["bn"].source == "unknown"


def test_layers_that_the_config_does_not_know_are_paired_by_names() -> None:
    known = [config("in", "InputLayer"), config("x", "Dense", "in")]
    shapes = {"own/conv1/kernel": (3, 3, 1, 8), "own/bn1/moving_variance": (8,)}
    graph, _ = graph_of(shapes, configs=known)
    assert graph.feeds["own/bn1"].kernel
    assert graph.feeds["own/bn1"].how == "names that pair up"


# --- the pickled module ----------------------------------------------------------------------------------


def test_sequential_of_a_module_says_what_stands_between() -> None:
    configs = [LayerConfig(name=name, class_name=kind) for name, kind in [
        ("f", "Sequential"), ("f.0", "Conv2d"), ("f.1", "MaxPool2d"), ("f.2", "ReLU"),
        ("f.3", "BatchNorm2d")]]  # fmt: skip
    graph, _ = graph_of(net("f.0:8,3,3,3", "f.3:8"), configs=configs)
    feed = graph.feeds["f.3"]
    assert (feed.how, feed.through) == ("the module's Sequential", ("ReLU", "MaxPool2d"))
    assert graph.order_from == "the pickled module"


# --- norms of the kernel -----------------------------------------------------------------------------------


def values_of(arrays: Mapping[str, Any], *configs: LayerConfig) -> tuple[Feed, Any]:
    table = TensorTable.from_arrays(
        {name: np.asarray(value, np.float32) for name, value in arrays.items()}, layers=configs)  # fmt: skip
    (feed,) = read_graph(table, read_layers(table)).feeds.values()
    return feed, feed.squared_norms(lambda info: table.read(info.name))


def test_squared_norms_sum_over_all_but_the_outputs() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 3, 2, 2)).astype(np.float32)
    expected = np.square(kernel.astype(np.float64)).sum((1, 2, 3))
    _, found = values_of({"conv1.weight": kernel, "bn1.running_var": np.ones(5)})
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    _, keras = values_of(
        {"conv1/kernel": kernel.transpose(2, 3, 1, 0), "bn1/moving_variance": np.ones(5)}
    )
    np.testing.assert_allclose(keras, expected, rtol=1e-12)


def test_squared_norms_of_units_that_were_reshaped_are_means_over_places() -> None:
    kernel = np.arange(8.0).reshape(8, 1)  # units 0..7
    configs = [config("in", "InputLayer"), config("fc", "Dense", "in"), config("r", "Reshape", "fc"),
               config("bn", "BatchNormalization", "r")]  # fmt: skip
    _, found = values_of({"fc/kernel": kernel.T, "bn/moving_variance": np.ones(2)}, *configs)
    squares = np.square(np.arange(8.0))
    np.testing.assert_allclose(found, [squares[0::2].mean(), squares[1::2].mean()])
    _, flat = values_of({"fc/kernel": kernel.T, "bn/moving_variance": np.ones(16)}, *configs)
    np.testing.assert_allclose(flat, np.tile(squares, 2))
    _, other = values_of({"fc/kernel": kernel.T, "bn/moving_variance": np.ones(3)}, *configs)
    assert other is None


def test_separable_norms_are_those_of_the_whole_kernel() -> None:
    rng = np.random.default_rng(1)
    depthwise, pointwise = rng.normal(size=(3, 3, 2, 2)), rng.normal(size=(1, 1, 4, 5))
    arrays = {"s1/depthwise_kernel": depthwise, "s1/pointwise_kernel": pointwise,
              "s1_bn/moving_variance": np.ones(5)}  # fmt: skip
    _, found = values_of(arrays)
    whole = np.einsum("hwim,imo->hwimo", depthwise, pointwise.reshape(2, 2, 5))
    np.testing.assert_allclose(found, np.square(whole).sum((0, 1, 2, 3)), rtol=1e-5)


def test_weight_norm_gives_its_norms_directly_and_spectral_norm_none() -> None:
    v, g = np.ones((4, 3)), np.array([[1.0], [2.0], [3.0], [4.0]])
    arrays = {"fc1.weight_g": g, "fc1.weight_v": v, "bn1.running_var": np.ones(4)}
    _, found = values_of(arrays)
    np.testing.assert_array_equal(found, [1, 4, 9, 16])
    spectral = {"fc1.weight_orig": v, "fc1.weight_u": np.ones(4), "bn1.running_var": np.ones(4)}
    feed, found = values_of(spectral)
    assert feed.kernel
    assert found is None
    quantised = {
        "fc1.weight": v,
        "fc1.weight_scale": np.ones((4, 1)),
        "bn1.running_var": np.ones(4),
    }
    assert values_of(quantised)[1] is None


def test_overflowing_kernel_gives_infinity_without_a_warning() -> None:
    big = np.full((4, 3), 1e38)
    _, found = values_of({"fc1.weight": big, "bn1.running_var": np.ones(4)})
    assert (found > 1e76).all()


# --- hostile and huge ----------------------------------------------------------------------------------------


def word(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


HOSTILE: dict[str, Callable[[int], Shapes]] = {
    "letters": lambda n: net(*(x for i in range(n) for x in (f"conv{word(i)}:8,8,3,3", f"bn{word(i)}x:8"))),
    "numbers": lambda n: net(*(x for i in range(n) for x in (f"conv{i}:8,8,3,3", f"bn{i}:8"))),
    "lists": lambda n: net(*(f"c.{i}:8,8,3,3" for i in range(n)), *(f"c.{n + i}:8" for i in range(n))),
    "automatic": lambda n: {f"batch_normalization_{i}/moving_variance": (i % 50 + 1,) for i in range(n)}
    | {f"conv2d_{i}/kernel": (3, 3, 4, i % 37 + 1) for i in range(n)},
    "deep": lambda n: {".".join("0" * n) + f".bn{i}.running_var": (8,) for i in range(20)},
    "one name": lambda n: {f"bn.running_var{'#2' * i}": (8,) for i in range(min(n, 300))},
}  # fmt: skip


@pytest.mark.parametrize("alphabetical", [False, True], ids=["file order", "alphabetical"])
@pytest.mark.parametrize("case", list(HOSTILE))
def test_time_grows_with_the_file_and_not_with_its_square(case: str, alphabetical: bool) -> None:
    start = time.perf_counter()
    graph, _ = graph_of(HOSTILE[case](3000), alphabetical=alphabetical)
    len(graph.order)
    assert time.perf_counter() - start < 10  # a tenth of a second each on a quiet machine


def test_without_batchnorms_nothing_is_worked_out_before_it_is_asked_for() -> None:
    table = table_of(net(*(f"b.{i}.fc:8,8" for i in range(12))), alphabetical=True)
    graph = read_graph(table, read_layers(table))
    assert not graph.feeds
    assert list(graph.order) == [f"b.{i}.fc" for i in range(12)]
    assert graph.order["b.10.fc"] == 10


NAMES = st.lists(
    st.text(alphabet="bnconv.0123_/#:² x", max_size=12).map(lambda s: s + ".running_var")
    | st.text(alphabet="bnconv.0123_/#:² x", max_size=12).map(lambda s: s + ".weight"),
    max_size=12, unique=True,
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(names=NAMES, data=st.data())
def test_any_names_and_shapes_give_an_answer_for_every_norm(names: list[str], data: Any) -> None:
    shapes = {name: data.draw(SHAPES) for name in names}
    graph, layers = graph_of(shapes, alphabetical=data.draw(st.booleans()))
    keys = {layer.key for layer in layers.batchnorms}
    assert set(graph.feeds) == keys
    assert graph.first <= keys
    assert sorted(graph.order) == sorted(layer.key for layer in layers.all)
    assert sorted(graph.order.values()) == list(range(len(layers.all)))
    for feed in graph.feeds.values():
        assert (feed.source == "kernel") == (feed.kernel is not None)


# --- oracle: real networks ---------------------------------------------------------------------------------


def torch_nets(torch: Any) -> dict[str, Any]:
    nn = torch.nn

    def cbr(i: int, o: int, **more: Any) -> Any:
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, **more), nn.BatchNorm2d(o), nn.ReLU())

    class Block(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o)
            self.conv2, self.bn2 = nn.Conv2d(o, o, 3, padding=1), nn.BatchNorm2d(o)
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + self.downsample(x))

    class PreAct(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, padding=1)
            self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, padding=1)
            self.shortcut = nn.Conv2d(i, o, 1)

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.bn1(x))
            return self.conv2(torch.relu(self.bn2(self.conv1(y)))) + self.shortcut(y)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down1, self.down2 = cbr(3, 4), cbr(4, 8)
            self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 2, 2)
            self.up_bn = nn.BatchNorm2d(4)
            self.up1, self.out = cbr(8, 4), nn.Conv2d(4, 1, 1)

        def forward(self, x: Any) -> Any:
            a = self.down1(x)
            b = self.up_bn(self.up(self.down2(self.pool(a))))
            return self.out(self.up1(torch.cat([a, b], 1)))

    class Stem(nn.Module):
        def __init__(self, *blocks: Any) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.layer1 = nn.Sequential(*blocks)

        def forward(self, x: Any) -> Any:
            return self.layer1(torch.relu(self.bn1(self.conv1(x))))

    class Bare(nn.Module):
        def __init__(self, *blocks: Any) -> None:
            super().__init__()
            self.conv1, self.layer1 = nn.Conv2d(3, 8, 3), nn.Sequential(*blocks)
            self.bn = nn.BatchNorm2d(16)

        def forward(self, x: Any) -> Any:
            return self.bn(self.layer1(self.conv1(x)))

    image = torch.randn(2, 3, 16, 16)
    return {
        "resnet": (Stem(Block(8, 8), Block(8, 16)), image),
        "preactivation": (Bare(PreAct(8, 8), PreAct(8, 16)), image),
        "mobilenet": (nn.Sequential(cbr(3, 8), cbr(8, 8, groups=8), cbr(8, 16), cbr(16, 16, groups=16)), image),
        "unet": (UNet(), image),
        "dcgan": (nn.Sequential(nn.ConvTranspose2d(10, 16, 4), nn.BatchNorm2d(16), nn.ReLU(),
                                nn.ConvTranspose2d(16, 8, 4, 2), nn.BatchNorm2d(8), nn.ReLU(),
                                nn.ConvTranspose2d(8, 3, 4, 2)), torch.randn(2, 10, 1, 1)),
        "mlp": (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(),
                              nn.Linear(8, 8), nn.BatchNorm1d(8)), torch.randn(4, 5)),
    }  # fmt: skip


def truth_of(torch: Any, model: Any, batch: Any) -> dict[str, str]:
    """BatchNorm -> the kernel whose very output it gets, or nothing."""
    outputs: list[tuple[Any, str]] = []  # the tensors too: an id is used again once one is gone
    truth: dict[str, str] = {}
    for name, module in model.named_modules():
        if getattr(module, "running_var", None) is not None:
            module.register_forward_pre_hook(
                lambda _, args, name=name: truth.update(
                    {name: next((k for out, k in outputs if out is args[0]), "")}
                )
            )
        elif isinstance(module, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            module.register_forward_hook(lambda _, __, out, name=name: outputs.append((out, name)))
    model(batch)
    return truth


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["state.pt", "module.pt", "script.pt", "m.safetensors"])
@pytest.mark.parametrize("name", ["resnet", "preactivation", "mobilenet", "unet", "dcgan", "mlp"])
def test_feeds_are_those_of_the_running_network(tmp_path: Path, name: str, suffix: str) -> None:
    torch = pytest.importorskip("torch")
    model, batch = torch_nets(torch)[name]
    path = tmp_path / suffix
    if suffix == "state.pt":
        torch.save(model.state_dict(), path)
    elif suffix == "m.safetensors":
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)
    elif suffix == "script.pt":
        torch.jit.save(torch.jit.trace(model.eval(), batch), path)
    elif name in ("resnet", "preactivation", "unet"):
        pytest.skip("a local class cannot be pickled")
    else:
        torch.save(model, path)
    truth = truth_of(torch, model.eval(), batch)
    with open_checkpoint(path) as table:
        graph = read_graph(table, read_layers(table))
    found = {key: f.kernel.name if f.kernel else "" for key, f in graph.feeds.items()}
    missed = {"layer1.0.bn1"} if name == "preactivation" else set()  # over the rim of a block
    assert {key for key in truth if found[key] != truth[key]} == missed
    assert not any(found[key] for key in missed)
    assert sorted(graph.first) == sorted(FIRST[name])


FIRST = {"resnet": ["bn1"], "preactivation": ["layer1.0.bn1"], "mobilenet": ["0.1"],
         "unet": ["down1.1"], "dcgan": ["1"], "mlp": ["0"]}  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize(
    "build",
    [
        lambda nn: nn.Conv2d(4, 6, 3, bias=False),
        lambda nn: nn.Conv2d(6, 6, 3, groups=6, bias=False),
        lambda nn: nn.ConvTranspose2d(4, 6, 3, bias=False),
        lambda nn: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3, bias=False)),
        lambda nn: nn.Conv1d(4, 6, 3, bias=False),
    ],
    ids=["conv", "depthwise", "transposed", "weight-norm", "conv1d"],
)
def test_white_noise_through_a_kernel_has_the_variance_of_its_norms(build: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    kernel = build(torch.nn)
    inputs = 6 if getattr(kernel, "groups", 1) > 1 else 4
    shape = (256, inputs, 40) if isinstance(kernel, torch.nn.Conv1d) else (64, inputs, 24, 24)
    out = kernel(torch.randn(shape)).detach().double()
    middle = out[..., 3:-3]
    variance = middle.transpose(0, 1).reshape(6, -1).var(1).numpy()
    arrays = {f"c1.{k}": v.numpy() for k, v in kernel.state_dict().items()}
    feed, found = values_of(arrays | {"bn1.running_var": variance})
    assert feed.kernel
    margin = 0.25 if isinstance(kernel, torch.nn.ConvTranspose2d) else 0.08  # rims see fewer inputs
    np.testing.assert_allclose(variance / found, 1, atol=margin)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_keras_config_and_names_agree_with_the_model(tmp_path: Path, suffix: str) -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    start = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, name="stem_conv")(start))
    y = layers.ReLU()(layers.BatchNormalization(name="block1_preact_bn")(x))
    y = layers.SeparableConv2D(8, 3, padding="same", use_bias=False, name="block1_1_conv")(y)
    y = layers.BatchNormalization(name="block1_1_bn")(y)
    y = layers.Add()([x, layers.Conv2D(8, 1, name="block1_2_conv")(y)])
    y = layers.BatchNormalization(name="post_bn")(y)
    y = layers.Conv2DTranspose(4, 2, name="up_conv")(y)
    y = layers.BatchNormalization(name="up_bn")(y)
    path = tmp_path / f"m{suffix}"
    model = keras.Model(start, y)
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    with open_checkpoint(path) as table:
        found = read_layers(table)
        graph = read_graph(table, found)
        feeds = {layer.name: graph.feeds[layer.key] for layer in found.batchnorms}
        norms = {
            name: feed.squared_norms(lambda info: table.read(info.name))
            for name, feed in feeds.items()
        }
        first = {layer.name for layer in found.batchnorms if layer.key in graph.first}
        order = sorted((layer for layer in found.batchnorms), key=graph.depth)
    named = {name: feed.kernel.name if feed.kernel else feed.source for name, feed in feeds.items()}
    if suffix == ".weights.h5":
        assert graph.order_from == "the names' natural order"
        assert named == {"block1_preact_bn": "unknown", "block1_1_bn": "block1_1_conv",
                         "post_bn": "unknown", "up_bn": "up_conv"}  # fmt: skip
    else:
        assert named == {"block1_preact_bn": "stem_conv", "block1_1_bn": "block1_1_conv",
                         "post_bn": "sum", "up_bn": "up_conv"}  # fmt: skip
        assert feeds["block1_preact_bn"].through == ("MaxPooling2D",)
    # the stem's output reaches post_bn past every norm, which names cannot tell
    assert first == {"block1_preact_bn"} | ({"post_bn"} if suffix != ".weights.h5" else set())
    assert [layer.name for layer in order] == [
        "block1_preact_bn",
        "block1_1_bn",
        "post_bn",
        "up_bn",
    ]
    depthwise, pointwise = (
        np.asarray(w, np.float64) for w in model.get_layer("block1_1_conv").weights
    )
    whole = np.einsum("hwi,io->hwio", depthwise[..., 0], pointwise[0, 0])
    np.testing.assert_allclose(norms["block1_1_bn"], np.square(whole).sum((0, 1, 2)), rtol=1e-6)
    up = np.asarray(model.get_layer("up_conv").weights[0], np.float64)
    np.testing.assert_allclose(norms["up_bn"], np.square(up).sum((0, 1, 3)), rtol=1e-6)


def test_a_last_norm_is_not_paired_over_the_blocks_with_the_first_kernel():
    blocks = [f"layers.{i}.{layer}" for i in "01" for layer in ("bn1:16", "conv1:16,16,3,3")]
    graph, _ = graph_of(net("conv1:16,3,3,3", *blocks, "bn1:16"))
    assert graph.feeds["bn1"][:3] == (None, "unknown", "a block stands before it")
    assert graph.first == {"layers.0.bn1"}
    graph, _ = graph_of(net("conv1:16,3,3,3", "bn1:16", *blocks))
    assert graph.feeds["bn1"].kernel.name == "conv1"


@pytest.mark.parametrize("prefix", ["", "net.", "module.net."])
def test_first_norm_of_a_sequential_is_on_the_input_in_alphabetical_files_too(prefix):
    layers = [f"{prefix}{layer}" for layer in ("0:8", "1.fc.0:16,8", "1.fc.1:16", "10:8,16")]
    graph, _ = graph_of(net(*layers), alphabetical=True)
    assert graph.feeds[f"{prefix}0"].source == "input"
    assert graph.feeds[f"{prefix}1.fc.1"].kernel.name == f"{prefix}1.fc.0"
    layers[0] = f"{prefix}a:8"  # a name among the numbers: it may stand anywhere
    graph, _ = graph_of(net(*layers), alphabetical=True)
    assert graph.feeds[f"{prefix}a"].source == "unknown"
