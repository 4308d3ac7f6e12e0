"""A Keras file against the layers of its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from patients import keras_state, save_keras

from ckptdoctor.coverage import coverage_of
from ckptdoctor.coverage.keras_layers import LAYERS, parts_of
from ckptdoctor.errors import UsageError
from ckptdoctor.findings import Severity, container_finding
from ckptdoctor.formats import open_path
from ckptdoctor.tensors import LayerConfig

DENSE = {"units": 10, "use_bias": True, "kernel_initializer": "GlorotUniform"}


def dense(name="fc", **settings):
    return LayerConfig(name=name, class_name="Dense", settings={**DENSE, **settings})


def bn(name="bn", **settings):
    settings = {"center": True, "scale": True, "axis": -1, **settings}
    return LayerConfig(name=name, class_name="BatchNormalization", settings=settings)


@pytest.fixture
def told(table_of):
    def tell(names, layers, *, format="keras-h5", **more):
        table = table_of(names, format=format, path="m.h5", layers=layers, **more)
        found = coverage_of(table, "m.h5")
        assert {finding.code for finding in found} <= {"CK003"}
        return [(finding.severity.name, finding.message) for finding in found]

    return tell


FC = ("model_weights/fc/fc/kernel:0", "model_weights/fc/fc/bias:0")
SHAPES = {FC[0]: (4, 10), FC[1]: (10,)}


def test_what_the_configuration_asks_for_is_nothing_to_tell(told):
    assert told(FC, [dense()], shapes=SHAPES) == []
    assert told(FC[:1], [dense(use_bias=False)], shapes=SHAPES) == []


def test_a_missing_weight_is_an_error(told):
    text = "1 of the layers of the model's configuration lacks weights: 'fc' (Dense): bias"
    assert told(FC[:1], [dense()], shapes=SHAPES) == [("ERROR", text)]


def test_missing_layers_are_said_once(told):
    text = "2 of the layers of the model's configuration lack weights: 'fc2' (Dense): all 2 "
    text += "weights; 'fc3' (Dense): its kernel"
    layers = [dense(), dense("fc2"), dense("fc3", use_bias=False)]
    assert told(FC, layers, shapes=SHAPES) == [("ERROR", text)]


def test_many_layers_are_capped(told):
    layers = [dense(), *(dense(f"more{i}") for i in range(9))]
    [(_, text)] = told(FC, layers, shapes=SHAPES)
    assert text.startswith("9 of the layers")
    assert text.endswith("'more5' (Dense): all 2 weights and 3 more")
    [(_, text)] = told(FC, layers[:7], shapes=SHAPES)
    assert "more5" in text
    assert " and " not in text


def test_another_shape_than_the_configuration_asks_for_is_an_error(told):
    text = f"'{FC[0]}' is [4, 9], the model's configuration asks for [?, 10]"
    assert told(FC, [dense()], shapes={**SHAPES, FC[0]: (4, 9)}) == [("ERROR", text)]
    [(_, text)] = told(FC, [dense(units=11)], shapes=SHAPES)
    assert text.endswith("asks for [?, 11] (and 1 more)")
    [(_, text)] = told(FC, [dense()], shapes={**SHAPES, FC[1]: (1, 10)})
    assert "is [1, 10]" in text


def test_a_layer_that_the_configuration_does_not_have_is_a_warning(told):
    names = [*FC, "model_weights/old/old/kernel:0", "model_weights/old/old/bias:0"]
    text = "2 weights of layers that the model's configuration does not have: 'old'"
    assert told(names, [dense()], shapes=SHAPES) == [("WARNING", text)]
    more = [f"model_weights/o{i}/k:0" for i in range(8)]
    [(_, text)] = told([*FC, *more], [dense()], shapes=SHAPES)
    assert text.endswith("'o5' and 2 more")
    top = "model_weights/top_level_model_weights/x:0"
    assert told([*FC, top], [dense()], shapes=SHAPES) == []


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, "gamma beta moving_mean moving_variance"),
        ({"scale": False}, "beta moving_mean moving_variance"),
        ({"center": False}, "gamma moving_mean moving_variance"),
        ({"center": False, "scale": False}, "moving_mean moving_variance"),
    ],
)
def test_a_batch_normalization_has_what_it_is_set_to(settings, parts, told):
    names = [f"model_weights/bn/bn/{part}:0" for part in parts.split()]
    shapes = dict.fromkeys(names, (8,))
    assert told(names, [bn(**settings)], shapes=shapes) == []
    for name in names:
        [(severity, text)] = told([n for n in names if n != name], [bn(**settings)], shapes=shapes)
        assert severity == "ERROR"
        assert text.endswith(name.rpartition("/")[2].removesuffix(":0"))


@pytest.mark.parametrize(
    ("class_name", "settings", "parts"),
    [
        ("Conv2D", {"filters": 6, "kernel_size": (3, 5), "use_bias": True, "strides": (1, 1)},
         {"kernel": (3, 5, None, 6), "bias": (6,)}),
        ("Conv1D", {"filters": 6, "kernel_size": 3, "use_bias": False, "strides": 1},
         {"kernel": (3, None, 6)}),
        ("Conv3D", {"filters": 6, "kernel_size": 3, "use_bias": False, "strides": 1},
         {"kernel": (3, 3, 3, None, 6)}),
        ("Conv1DTranspose", {"filters": 6, "kernel_size": 3, "use_bias": True, "strides": 1},
         {"kernel": (3, 6, None), "bias": (6,)}),
        ("Conv2DTranspose", {"filters": 6, "kernel_size": (2, 3), "use_bias": True, "strides": 1},
         {"kernel": (2, 3, 6, None), "bias": (6,)}),
        ("Conv3DTranspose", {"filters": 6, "kernel_size": 3, "use_bias": False, "strides": 1},
         {"kernel": (3, 3, 3, 6, None)}),
        ("DepthwiseConv1D", {"kernel_size": (3,), "use_bias": True, "depth_multiplier": 2},
         {"depthwise_kernel": (3, None, 2), "bias": (None,)}),
        ("DepthwiseConv2D", {"kernel_size": (3, 3), "use_bias": True, "depth_multiplier": 2},
         {"depthwise_kernel": (3, 3, None, 2), "bias": (None,)}),
        ("SeparableConv1D",
         {"filters": 6, "kernel_size": 3, "use_bias": False, "depth_multiplier": 1},
         {"depthwise_kernel": (3, None, 1), "pointwise_kernel": (1, None, 6)}),
        ("SeparableConv2D",
         {"filters": 6, "kernel_size": (3, 3), "use_bias": True, "depth_multiplier": 1},
         {"depthwise_kernel": (3, 3, None, 1), "pointwise_kernel": (1, 1, None, 6), "bias": (6,)}),
        ("Embedding", {"input_dim": 9, "output_dim": 4, "embeddings_initializer": "u"},
         {"embeddings": (9, 4)}),
        ("LSTM", {"units": 5, "use_bias": True, "recurrent_initializer": "o"},
         {"kernel": (None, 20), "recurrent_kernel": (5, 20), "bias": (20,)}),
        ("GRU", {"units": 5, "use_bias": True, "recurrent_initializer": "o"},
         {"kernel": (None, 15), "recurrent_kernel": (5, 15), "bias": None}),
        ("SimpleRNN", {"units": 5, "use_bias": True, "recurrent_initializer": "o"},
         {"kernel": (None, 5), "recurrent_kernel": (5, 5), "bias": (5,)}),
        ("ConvLSTM1D", {"filters": 2, "kernel_size": 3, "use_bias": False,
                        "recurrent_initializer": "o"},
         {"kernel": (3, None, 8), "recurrent_kernel": (3, 2, 8)}),
        ("ConvLSTM2D", {"filters": 2, "kernel_size": 3, "use_bias": True,
                        "recurrent_initializer": "o"},
         {"kernel": (3, 3, None, 8), "recurrent_kernel": (3, 3, 2, 8), "bias": (8,)}),
        ("LayerNormalization", {"center": True, "scale": True, "axis": -1},
         {"gamma": None, "beta": None}),
        ("LayerNormalization", {"center": True, "scale": True, "axis": -1, "rms_scaling": True},
         {"gamma": None}),
        ("GroupNormalization", {"center": True, "scale": False, "axis": -1, "groups": 2},
         {"beta": None}),
        ("PReLU", {"alpha_initializer": "z"}, {"alpha": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_class_has_its_variables(class_name, settings, parts):
    found = parts_of(class_name, settings)
    assert {part.names[0]: part.shape for part in found} == parts
    assert parts_of(class_name, {}) == ()


@pytest.mark.parametrize("class_name", ["MultiHeadAttention", "GroupQueryAttention"])
def test_attention_has_four_kernels(class_name, told):
    settings = {"num_heads": 2, "num_query_heads": 2, "key_dim": 3, "head_dim": 3}
    inner = ("query", "key", "value", "attention_output")
    for bias, parts in ((True, ("kernel", "bias")), (False, ("kernel",))):
        layer = LayerConfig(
            name="mha", class_name=class_name, settings={**settings, "use_bias": bias}
        )
        names = [f"model_weights/mha/mha/{each}/{part}:0" for each in inner for part in parts]
        assert told(names, [layer]) == []
        [(severity, _)] = told(names[1:], [layer])
        assert severity == "ERROR"


def test_a_class_that_no_row_knows_is_unknown_and_not_missing(told):
    layers = [dense(), LayerConfig(name="own", class_name="OwnLayer", settings={"units": 3})]
    assert told(FC, layers, shapes=SHAPES) == []
    assert "OwnLayer" not in LAYERS


def test_a_class_of_the_users_own_with_a_known_name_is_unknown(told):
    layers = [dense(), LayerConfig(name="own", class_name="Dense", settings={"units": 3})]
    assert told(FC, layers, shapes=SHAPES) == []


@pytest.mark.parametrize("policy", ["int8_from_float32", "float8_from_mixed_bfloat16"])
def test_quantised_layers_keep_other_variables(policy, told):
    layer = LayerConfig(name="q", class_name="Dense", dtype_policy=policy, settings=DENSE)
    assert told(FC, [dense(), layer], shapes=SHAPES) == []
    layer = LayerConfig(name="q", class_name="Dense", dtype_policy="mixed_float16", settings=DENSE)
    assert told(FC, [dense(), layer], shapes=SHAPES) != []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("enc/fc", "model_weights/enc/fc"),
        ("enc/fc", "model_weights/enc/enc/fc"),
        ("enc/fc", "model_weights/enc/fc_1"),
        ("outer/enc/fc", "model_weights/outer/fc"),
        ("block/fc", "model_weights/block/fc/block/fc"),
        ("fc", "model_weights/fc/sequential/fc"),
        ("fc", "fc/fc"),
    ],
)
def test_legacy_files_spell_groups_in_many_ways(name, path, told):
    names = [f"{path}/kernel:0", f"{path}/bias:0"]
    shapes = {names[0]: (4, 10), names[1]: (10,)}
    other = [f"{name.partition('/')[0]}2/x/kernel:0"]
    assert told(names, [dense(name)], shapes=shapes) == []
    assert told(other, [dense(name)])[0][0] == "ERROR"


def test_a_layer_of_a_nested_model_that_is_missing_is_named(told):
    names = ["model_weights/enc/a/kernel:0", "model_weights/enc/a/bias:0"]
    shapes = {names[0]: (4, 10), names[1]: (10,)}
    [(_, text)] = told(names, [dense("enc/a"), dense("enc/b")], shapes=shapes)
    assert "'enc/b' (Dense): all 2 weights" in text
    assert "enc/a" not in text


def test_layers_that_two_models_share_are_stored_once(told):
    names = [("layers", "a", "vars", "0"), ("layers", "a", "vars", "1")]
    held = ["/".join(name) for name in names]
    more = {"layer_names": dict.fromkeys(held, "a/fc"), "format": "keras-zip"}
    shapes = {held[0]: (4, 10), held[1]: (10,)}
    assert told(held, [dense("a/fc"), dense("b/fc")], shapes=shapes, **more) == []
    assert told(held, [dense("a/fc"), dense("b/fd")], shapes=shapes, **more) != []


def test_a_wrapper_may_keep_the_variables_as_its_own(told):
    wrapper = LayerConfig(name="td", class_name="TimeDistributed")
    names = ["model_weights/td/td/kernel:0", "model_weights/td/td/bias:0"]
    assert told(names, [wrapper, dense("td/fc")]) == []


def test_half_of_a_wrapper_that_is_missing_is_named(told):
    wrapper = LayerConfig(name="bi", class_name="Bidirectional")
    settings = {"units": 5, "use_bias": False, "recurrent_initializer": "o"}
    halves = [
        LayerConfig(name=f"bi/{way}_lstm", class_name="LSTM", settings=settings)
        for way in ("forward", "backward")
    ]
    names = [
        f"model_weights/bi/bi/forward_lstm/{part}:0" for part in ("kernel", "recurrent_kernel")
    ]
    shapes = {names[0]: (4, 20), names[1]: (5, 20)}
    [(_, text)] = told(names, [wrapper, *halves], shapes=shapes)
    assert text.endswith("'bi/backward_lstm' (LSTM): all 2 weights")


ZIP = ["layers/dense/vars/0", "layers/dense/vars/1"]


def test_numbered_variables_are_counted(told):
    more = {"format": "keras-zip", "layer_names": dict.fromkeys(ZIP, "fc")}
    shapes = {ZIP[0]: (4, 10), ZIP[1]: (10,)}
    assert told(ZIP, [dense()], shapes=shapes, **more) == []
    text = "1 of the layers of the model's configuration lacks weights: "
    text += "'fc' (Dense): 1 of 2 variables"
    assert told(ZIP[:1], [dense()], shapes=shapes, **more) == [("ERROR", text)]
    [(_, text)] = told(ZIP, [dense(units=11)], shapes=shapes, **more)
    assert f"'{ZIP[0]}' is [4, 10]" in text
    # more than the class has: somebody's own, of which nothing is known
    three = [*ZIP, "layers/dense/vars/2"]
    more["layer_names"] = dict.fromkeys(three, "fc")
    assert told(three, [dense(units=11)], shapes=shapes, **more) == []


def test_where_a_group_cannot_be_named_nothing_is_called_missing(told):
    more = {"format": "keras-zip", "layer_names": dict.fromkeys(ZIP[:1], "a")}
    assert told(["layers/x/vars/0"], [dense("a")], format="keras-zip") == []
    assert told(ZIP[:1], [dense("a", use_bias=False), dense("b")], shapes={ZIP[0]: (4, 10)}, **more)


def test_what_reading_has_told_is_not_told_again(told):
    error = container_finding(
        "CK003", Severity.ERROR, "the file lists the weight 'model_weights/fc/fc/bias:0' and ..."
    )
    layers = [dense(), dense("fc2")]
    [(_, text)] = told(FC[:1], layers, shapes=SHAPES, findings=(error,))
    assert "'fc2'" in text
    assert "'fc'" not in text
    more = "7 more layers or weights are listed and not there"
    error = container_finding("CK003", Severity.ERROR, more)
    assert told(FC[:1], layers, shapes=SHAPES, findings=(error,)) == []
    note = container_finding("CK003", Severity.NOTE, "about 'fc'")
    assert told(FC[:1], layers, shapes=SHAPES, findings=(note,)) != []


def test_files_without_weights_or_configuration_are_passed_by(told):
    assert told([], [dense()]) == []
    assert told(FC, []) == []


def test_a_whole_file_of_keras_2(tmp_path: Path):
    path = save_keras(tmp_path / "m.h5", keras_state())
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            settings = layer["config"]
            settings |= {"use_bias": "head" in settings["name"], "kernel_initializer": "x"}
            settings |= {"center": True, "scale": True, "strides": 1, "kernel_size": [3, 3]}
            settings |= {
                "units": 4,
                "filters": {"1": 8, "2": 16, "3": 16}.get(settings["name"][-1]),
            }
        file.attrs["model_config"] = text = json.dumps(config)
    with open_path(path) as table:
        assert coverage_of(table, str(path)) == ()
    with h5py.File(path, "r+") as file:
        group = file["model_weights/conv2"]
        del group["conv2"]
        group.attrs["weight_names"] = []
    with open_path(path) as table:
        [found] = coverage_of(table, str(path))
    assert "'conv2' (Conv2D): its kernel" in found.message
    assert dict(found.measured) == {"missing": ["conv2/kernel"], "count": 1}
    # the configuration as the expectation, for a file of weights alone
    (tmp_path / "model.json").write_text(text)
    with h5py.File(path) as file, h5py.File(tmp_path / "w.h5", "w") as weights:
        for key, value in file["model_weights"].attrs.items():
            weights.attrs[key] = value
        for name in file["model_weights"]:
            file.copy(file["model_weights"][name], weights, name)
    with open_path(tmp_path / "w.h5") as table:
        assert coverage_of(table, "w.h5") == ()
        [found] = coverage_of(table, "w.h5", tmp_path / "model.json")
    assert found.message.startswith("1 of the layers of model.json lacks weights: 'conv2'")


def test_numbered_groups_are_found_by_the_given_configuration(table_of, tmp_path: Path):
    layers = [{"class_name": "Dense", "config": {"name": f"own{i}", **DENSE}} for i in (1, 2)]
    model = {"class_name": "Sequential", "config": {"name": "net", "layers": layers}}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(model))
    for top in ("layers", "_layer_checkpoint_dependencies"):
        names = [f"{top}/{group}/vars/{i}" for group in ("dense", "dense_1") for i in (0, 1)]
        shapes = {name: (4, 10) if name[-1] == "0" else (10,) for name in names}
        table = table_of(names, format="keras-weights-h5", shapes=shapes)
        assert coverage_of(table, "m", path) == ()
        table = table_of(names[:2], format="keras-weights-h5", shapes=shapes)
        [found] = coverage_of(table, "m", path)
        assert "'own2' (Dense): all 2 weights" in found.message


def test_a_configuration_without_layers_is_refused(table_of, tmp_path: Path):
    path = tmp_path / "model.json"
    path.write_text('{"class_name": "Own", "config": {}}')
    with pytest.raises(UsageError, match="that of a subclassed model names none; give the names"):
        coverage_of(table_of(["a/vars/0"], format="keras-weights-h5"), "m", path)
