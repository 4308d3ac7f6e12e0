"""Stored Keras configuration: layers and their graph, numbers, and the code named in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.findings import Finding, Severity
from ckptdoctor.keras.code import judge_code
from ckptdoctor.keras.config import parse_json, read_model_config, read_scalars

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def layer(name: str, class_name: str, *fed: str, keras: int = 3, **config: Any) -> dict[str, Any]:
    if keras == 3:
        tensors = [
            {"class_name": "__keras_tensor__",
             "config": {"shape": [None, 4], "dtype": "float32", "keras_history": [f, 0, 0]}}
            for f in fed
        ]  # fmt: skip
        nodes: list[Any] = [{"args": [tensors], "kwargs": {}}] if fed else []
    else:
        nodes = [[[f, 0, 0, {}] for f in fed]] if fed else []
    return {"module": "keras.layers", "class_name": class_name, "config": {"name": name, **config},
            "name": name, "inbound_nodes": nodes, "registered_name": None}  # fmt: skip


def model(name: str, layers: list[Any], first: Any, last: Any, **more: Any) -> dict[str, Any]:
    config = {"name": name, "layers": layers, "input_layers": first, "output_layers": last}
    return {"class_name": "Functional", "config": config, "name": name, **more}


def nested(keras: int) -> dict[str, Any]:
    inner = model(
        "encoder",
        [layer("in", "InputLayer", keras=keras), layer("bn", "BatchNormalization", "in", keras=keras),
         layer("act", "ReLU", "bn", keras=keras)],
        ["in", 0, 0], [["act", 0, 0]],
    )  # fmt: skip
    inner["inbound_nodes"] = layer("x", "X", "image", keras=keras)["inbound_nodes"]
    sequential = {
        "class_name": "Sequential", "name": "seq",
        "config": {"name": "seq", "layers": [layer("d1", "Dense"), layer("bn", "BatchNormalization")]},
        "inbound_nodes": layer("x", "X", "encoder", keras=keras)["inbound_nodes"],
    }  # fmt: skip
    head = layer("head", "Add", "seq", "encoder", keras=keras)
    image = layer("image", "InputLayer", keras=keras)
    return model("outer", [head, image, inner, sequential], [["image", 0, 0]], ["head", 0, 0])


@pytest.mark.parametrize("keras", [2, 3])
def test_nested_models_are_flattened_in_data_flow_order(keras: int) -> None:
    config, _, findings = read_model_config(json.dumps(nested(keras)), where="m")
    assert findings == ()
    assert {name: each.inputs for name, each in config.layers.items()} == {
        "image": (),
        "encoder/in": ("image",),
        "encoder/bn": ("encoder/in",),
        "encoder/act": ("encoder/bn",),
        "seq/d1": ("encoder/act",),
        "seq/bn": ("seq/d1",),
        "head": ("seq/bn", "encoder/act"),
    }
    assert list(config.layers)[-1] == "head"


def test_bare_names_keep_the_model_only_where_they_would_clash() -> None:
    config, _, _ = read_model_config(json.dumps(nested(3)), where="m", bare=True)
    assert set(config.layers) == {"image", "in", "encoder/bn", "act", "d1", "seq/bn", "head"}
    assert config.layers["head"].inputs == ("seq/bn", "act")
    assert config.paths["layers/functional/layers/batch_normalization"] == "encoder/bn"
    assert config.paths["layers/sequential/layers/dense"] == "d1"


def test_settings_are_plain_data() -> None:
    policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    one = layer(
        "bn", "BatchNormalization", epsilon=1e-3, momentum=0.9, dtype=policy, axis=[3], center=True,
        gamma_initializer={"class_name": "Ones", "config": {}}, activation="relu", units=None,
        strides=[2, 2], deep=[[[1]]], huge=10**30,
    )  # fmt: skip
    config, _, _ = read_model_config(
        json.dumps({"class_name": "Sequential", "config": [one]}), where="m"
    )
    (found,) = config.layers.values()
    assert (found.epsilon, found.momentum, found.activation) == (1e-3, 0.9, "relu")
    assert found.dtype_policy == "mixed_float16"
    assert found.settings == {
        "axis": (3,), "center": True, "gamma_initializer": "Ones", "strides": (2, 2),
    }  # fmt: skip


def test_wrapped_layers_are_layers() -> None:
    bn = {"class_name": "BatchNormalization", "config": {"name": "bn", "epsilon": 0.01}}
    lstm = {"class_name": "LSTM", "config": {"name": "lstm"}}
    layers = [layer("td", "TimeDistributed", layer=bn), layer("bi", "Bidirectional", layer=lstm)]
    text = json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": layers}})
    config, _, _ = read_model_config(text, where="m")
    assert list(config.layers) == ["td", "td/bn", "bi", "bi/forward_lstm", "bi/backward_lstm"]
    assert config.layers["td/bn"].epsilon == 0.01
    assert config.paths["layers/bidirectional/backward_layer"] == "bi/backward_lstm"


def test_optimizer_numbers_are_scalars() -> None:
    inner = {"class_name": "Adam", "config": {"learning_rate": 1e-3, "amsgrad": False, "name": "a"}}
    outer = {"class_name": "LossScale", "config": {"inner_optimizer": inner, "initial_scale": 2.0}}
    assert read_scalars({"optimizer": outer, "loss_weights": 3}, "c") == {
        "c/optimizer/config/inner_optimizer/config/learning_rate": 1e-3,
        "c/optimizer/config/initial_scale": 2.0,
    }


# --- code ----------------------------------------------------------------------------------------


def verdicts(document: Any, *, safe_mode: bool = True) -> list[tuple[Severity, bool]]:
    found: tuple[Finding, ...] = judge_code(document, where="m", safe_mode=safe_mode)
    assert {f.code for f in found} <= {"CK002"}
    return [(f.severity, f.unsafe) for f in found]


def thing(module: Any, name: Any, registered: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": name,
        "config": {},
        "registered_name": registered,
        **more,
    }


def function(module: Any, name: Any) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


LAMBDA = {"class_name": "Lambda", "config": {"function": ["4wEAAA==\n", None, None],
          "function_type": "lambda", "module": "__main__"}}  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [
        thing("keras.layers", "Dense"), thing("keras", "Functional"),
        thing("keras.src.models.functional", "Functional", "Functional"),
        thing("keras.src.engine.functional", "Functional", "Functional"),
        thing("tensorflow.keras.layers", "Dense"), thing("keras_hub.src.layers.x", "Y", "keras_hub>Y"),
        thing("keras.mixed_precision", "Policy"), thing(None, "Dense"), {"class_name": "Dense", "config": {}},
        {"class_name": "Custom>Adam", "config": {}}, function("keras.losses", "my_mse"),
        function("builtins", "mean_squared_error"), function("keras.ops", "add"),
        {"class_name": "TFOpLambda", "config": {"function": "math.reduce_mean"}},
        {"class_name": "TFOpLambda", "config": {"function": "cast"}},
        {"class_name": "SlicingOpLambda", "config": {"function": "__operators__.getitem"}},
        {"class_name": "__typespec__", "spec_name": "RaggedTensorSpec", "config": [],
         "module": "tensorflow.python.ops.ragged.ragged_tensor"},
        {"module": "os", "function": "system"},  # nothing that Keras takes for an object
    ],
    ids=str,
)  # fmt: skip
def test_ordinary_objects_are_silent(document: Any) -> None:
    assert verdicts({"deep": [{"er": document}]}) == []


@pytest.mark.parametrize(
    "document",
    [
        thing("os", "system"), thing("subprocess", "Popen", "Popen"), thing("subprocess", "Popen", "x>Popen"),
        thing("mypkg.layers", "Mine", "Mine"), thing("keras.layers.", "X"), thing("k\u0435ras.layers", "Dense"),
        thing("keras_evil.layers", "Dense"), thing("keras.utils", "get_file"), thing("keras.config", "X"),
        thing({"a": 1}, "Dense"), thing("keras.layers", ["x"]), thing("builtins", "eval"),
        {"class_name": "os.system", "config": {}}, function("os", "system"),
        function("keras.utils", "get_file"), function("keras.config", "enable_unsafe_deserialization"),
        function("keras.saving", "load_model"), function("builtins", "exec"), function(None, "a.b"),
        function("builtins", 3),
        {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
        {"class_name": "TFOpLambda", "config": {"function": "raw_ops.WriteFile"}},
        {"class_name": "TFOpLambda", "config": {"function": "py_function"}},
        {"class_name": "TFOpLambda", "config": {"function": None}},
        {"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess", "config": []},
    ],
    ids=str,
)  # fmt: skip
def test_code_outside_models_is_an_error(document: Any) -> None:
    assert verdicts({"deep": [{"er": document}]}) == [(ERROR, True)]


@pytest.mark.parametrize(
    "document",
    [thing("mypkg.layers", "Mine", "mypkg>Mine"), thing(None, "Mine", "Mine"),
     thing("__main__", "Mine", "Mine"), function("builtins", "my_loss"),
     {"class_name": "Addons>GELU", "config": {}}],
    ids=str,
)  # fmt: skip
def test_custom_objects_are_notes(document: Any) -> None:
    assert verdicts(document) == [(NOTE, False)]


@pytest.mark.parametrize(
    "document", [LAMBDA, thing("keras.layers", "Lambda", function={"class_name": "__lambda__"})]
)
def test_bytecode_is_a_warning_and_unsafe_where_no_safe_mode_stops_it(document: Any) -> None:
    assert verdicts(document) == [(WARNING, False)]
    assert verdicts(document, safe_mode=False) == [(WARNING, True)]


def test_findings_are_bounded_and_counted() -> None:
    found = judge_code([thing("os", f"f{i}") for i in range(50)] * 2, where="m", safe_mode=True)
    assert len(found) == 17
    assert found[0].measured["count"] == 2
    assert len(judge_code(thing("os", "x" * 10**6), where="m", safe_mode=True)[0].message) < 300


# --- hostile JSON --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ('{"a": NaN}', WARNING), ('{"a": -Infinity}', WARNING), ('{"a": 1, "a": 2}', WARNING),
        ("[" * 100_000, ERROR), ('{"a":' * 100_000, ERROR), ("", ERROR), ("{", ERROR), ("\x80", ERROR),
        (b"\xff\xfe\x00", ERROR), ("9" * 5000, ERROR),
    ],
    ids=["nan", "inf", "twice", "deep list", "deep object", "empty", "open", "control", "bytes", "digits"],
)  # fmt: skip
def test_json_that_is_none_is_a_finding(text: str | bytes, severity: Severity) -> None:
    _, findings = parse_json(text, where="m")
    assert [(f.code, f.severity) for f in findings] == [("CK005", severity)]


def test_models_nested_without_end_are_left_alone() -> None:
    document: dict[str, Any] = layer("d", "Dense")
    for i in range(60):
        document = {"class_name": "Sequential", "config": {"name": f"s{i}", "layers": [document]}}
    config, _, findings = read_model_config(json.dumps(document), where="m")
    assert config.layers == {}
    assert [f.code for f in findings] == ["CK005"]


def test_a_graph_with_a_cycle_ends() -> None:
    layers = [
        layer("a", "Dense", "b"),
        layer("b", "Dense", "a", "a", "c"),
        layer("a", "Dense", "a"),
    ]
    config, _, _ = read_model_config(json.dumps(model("m", layers, [], [])), where="m")
    assert set(config.layers) == {"a", "b"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(
        ["name", "Dense", "keras.layers", "Sequential", "a", "os", "function", "Lambda"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["class_name", "config", "layers", "name", "module", "inbound_nodes", "layer",
                         "input_layers", "output_layers", "function", "optimizer", "registered_name"]),
        inner, max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(json_values, st.booleans())
def test_any_json_gives_layers_and_findings(value: Any, bare: bool) -> None:
    config, document, _ = read_model_config(json.dumps(value), where="m", bare=bare)
    read_scalars(document, "x")
    for each in config.layers.values():
        assert all(name in config.layers for name in each.inputs)


GADGETS = {
    "a pickled torch module": (
        {
            "module": "keras.layers",
            "class_name": "TorchModuleWrapper",
            "config": {"module": "gA=="},
        },
        "CK002",
    ),
    "a vocabulary file": (
        {
            "module": "keras.layers",
            "class_name": "StringLookup",
            "config": {"vocabulary": "/etc/x"},
        },
        "CK006",
    ),
    "a function as class": (
        {"module": "keras.models", "class_name": "load_model", "config": {}},
        "CK002",
    ),
    "a dotted class": (
        {"module": "keras.layers", "class_name": "os.system", "config": {}},
        "CK002",
    ),
    "a function registered": (
        {"module": "numpy", "class_name": "load", "config": {}, "registered_name": "a>b"},
        "CK002",
    ),
    "a library's class registered": (
        {"module": "torch.hub", "class_name": "Load", "config": {}, "registered_name": "a>b"},
        "CK002",
    ),
}


@pytest.mark.parametrize(("node", "code"), GADGETS.values(), ids=GADGETS.keys())
def test_gadgets_in_keras_own_modules_are_errors(node: dict[str, object], code: str) -> None:
    (finding,) = judge_code(node, where="m.keras", safe_mode=True)
    assert (finding.code, finding.severity, finding.unsafe) == (code, Severity.ERROR, True)
