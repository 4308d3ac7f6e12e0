"""What a stored Keras configuration would make a loader import or run (CK002).

Keras rebuilds a model from JSON in which each object names a module and a class or function.
Older loaders import any module named there; newer ones deny step by step.  Here everything is
denied that is not on a list: modules of Keras and its sister packages, in the parts of them that
hold layers, losses and the like.  The lists are data with a reason per row.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..findings import Finding, Severity, container_finding

__all__ = ["judge_code"]

MAX_DEPTH = 500
MAX_TOLD = 16

PACKAGES: Mapping[str, str] = {
    "keras": "Keras itself",
    "tf_keras": "Keras 2 as a package of its own",
    "keras_core": "Keras 3 before its release",
    "keras_hub": "the Keras team's model collection",
    "keras_nlp": "the Keras team's models for text, now keras_hub",
    "keras_cv": "the Keras team's models for vision, now keras_hub",
    "keras_rs": "the Keras team's recommender layers",
    "tensorflow.keras": "Keras 2 within TensorFlow, by its public name",
    "tensorflow.python.keras": "Keras 2 within TensorFlow, by its private name",
    "tensorflow_addons": "layers and losses for Keras 2, archived by its maintainers",
}
"""Packages whose classes a configuration may name."""

CLASS_PARTS: Mapping[str, str] = {
    "": "the package's top level: Model, Sequential, Variable, DTypePolicy",
    "activations": "plain functions and layers of numbers",
    "applications": "model classes; building one downloads nothing unless asked by an argument",
    "backend": "tensors and variables",
    "constraints": "functions of weights",
    "dtype_policies": "names of types",
    "engine": "Functional, Sequential, InputSpec in Keras 2",
    "initializers": "functions of shapes",
    "layers": "layers; Lambda is judged by what it holds",
    "legacy": "layers of Keras 2 kept by Keras 3",
    "losses": "losses",
    "metrics": "metrics",
    "mixed_precision": "dtype policies and the loss scaling optimizer",
    "models": "Functional, Sequential, Model, and the collections' networks",
    "optimizers": "optimizers and schedules",
    "ops": "tensor operations as layers",
    "quantizers": "functions of weights",
    "random": "seed generators",
    "regularizers": "functions of weights",
    "rnn": "recurrent cells (tensorflow_addons)",
    "seq2seq": "decoders (tensorflow_addons)",
    "tokenizers": "tables of words, read from the archive's own assets",
    "samplers": "functions of logits",
}
"""Parts of those packages whose classes may be named, after `src`, `api` and the like."""

FUNCTION_PARTS: Mapping[str, str] = {
    "activations": "functions of tensors",
    "constraints": "functions of weights",
    "initializers": "functions of shapes",
    "losses": "functions of tensors",
    "metrics": "functions of tensors",
    "ops": "functions of tensors",
    "regularizers": "functions of weights",
}
"""Parts whose functions may be named: not utils, config, saving, datasets, which read, fetch, unlock."""

TENSORFLOW_OPS = (
    r"(math|nn|linalg|image|signal|strings|sparse|ragged|random|bitwise|quantization|audio|sets|dtypes"
    r"|__operators__|compat\.v1\.(math|nn|image|layers|linalg|transpose|shape|gather|reshape)"
    r"|keras\.(backend|activations|losses|metrics|ops|regularizers|initializers)|experimental\.numpy)"
    r"(\.\w+)+|(?!load_|import_|py_|numpy_function|function|eval|print|Module|init_scope|no_gradient)"
    r"[a-z_]\w*"
)
"""Names a TFOpLambda layer may call: pure operations; not io, raw_ops, saved_model, py_function."""

_NEUTRAL = frozenset(("src", "api", "_tf_keras", "keras", "v1", "v2"))
_INTERPRETER = {"builtins", "__builtin__", "sys", "os", "posix", "nt", "subprocess"}


class _Verdict(NamedTuple):
    severity: Severity
    text: str
    unsafe: bool = False
    code: str = "CK002"


def judge_code(config: object, *, where: str, safe_mode: bool) -> tuple[Finding, ...]:
    """Report everything a configuration names that is code.

    Parameters
    ----------
    config
        Parsed JSON.
    where
        File and member, for the findings.
    safe_mode
        Whether the framework that the file states refuses Lambda bytecode unless told otherwise.

    Examples
    --------
    >>> layer = {"module": "os", "class_name": "function", "config": "system"}
    >>> judge_code(layer, where="m.keras", safe_mode=True)[0].message
    "the configuration names the function 'os.system': code outside Keras"
    """
    seen: dict[str, _Verdict] = {}
    counts: dict[str, int] = {}
    for node in _objects(config):
        verdict = _judge(node, safe_mode)
        if verdict is not None:
            seen.setdefault(verdict.text, verdict)
            counts[verdict.text] = counts.get(verdict.text, 0) + 1
    worst = sorted(seen.values(), key=lambda v: -v.severity)
    findings = [
        container_finding(
            v.code, v.severity, v.text, where=where, unsafe=v.unsafe, count=counts[v.text]
        )
        for v in worst[:MAX_TOLD]
    ]
    if len(worst) > MAX_TOLD:
        more = worst[MAX_TOLD:]
        text = f"{len(more)} more names of code in the configuration"
        unsafe = any(v.unsafe for v in more)
        findings.append(
            container_finding("CK002", more[0].severity, text, where=where, unsafe=unsafe)
        )
    return tuple(findings)


def _objects(config: object) -> Iterator[Mapping[str, Any]]:
    """Every JSON object that Keras would take for the description of an object, without recursion."""
    todo = [config]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _judge(node: Mapping[str, Any], safe_mode: bool) -> _Verdict | None:
    kind, module, config = node.get("class_name"), node.get("module"), node.get("config")
    if kind == "__lambda__":
        return _bytecode(safe_mode)
    if kind == "Lambda" and isinstance(config, dict) and _holds_bytecode(config):
        return _bytecode(safe_mode)
    if kind == "TorchModuleWrapper":
        text = "a TorchModuleWrapper layer holds a pickled torch module: loading it runs code"
        return _Verdict(Severity.ERROR, text, unsafe=True)
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        text = f"the layer {_shown(config.get('name'))} reads its vocabulary from"
        text += f" {_shown(config['vocabulary'])}, outside the checkpoint"
        return _Verdict(Severity.ERROR, text, unsafe=True, code="CK006")
    if kind in ("TFOpLambda", "SlicingOpLambda") and isinstance(config, dict):
        return _operation(config.get("function"))
    if kind == "__typespec__":
        fine = str(node.get("spec_name")).endswith("Spec") and _below(module, "tensorflow")
        return None if fine else _outside("type specification", module, node.get("spec_name"))
    if kind == "function":
        return _function(module, config)
    return _class(module, kind, node.get("registered_name"))


def _class(module: object, kind: object, registered: object) -> _Verdict | None:
    custom = registered if isinstance(registered, str) and registered != kind else None
    if module is None or module == "":
        if isinstance(kind, str) and kind in _OWN:
            return None
        if custom or registered is not None or (isinstance(kind, str) and ">" in kind):
            return _custom("class", custom or kind)
        return None if _plain(kind) and "." not in str(kind) else _outside("class", "", kind)
    part = _part(module)
    if part is not None and _is_class(kind):
        first = part.partition(".")[0]
        if first in CLASS_PARTS or (first, kind) == ("utils", "FeatureSpace"):
            return None
        return _outside("class", module, kind)
    mine = custom is not None and ">" in custom and not _is_stdlib(module)
    mine = mine and str(module).partition(".")[0] not in _LIBRARIES
    if _plain(module) and _is_class(kind) and (mine or module == "__main__"):
        return _custom("class", f"{module}.{kind}")
    return _outside("class", module, kind)


def _function(module: object, name: object) -> _Verdict | None:
    if module is None or module == "builtins":
        # Keras looks such a name up among its own functions and those that the caller hands in;
        # versions up to 3.8 then tried Python's builtins.
        if not _plain(name) or "." in str(name) or hasattr(builtins, str(name)):
            return _outside("function", module, name)
        return None if name in _KNOWN_FUNCTIONS else _custom("function", name)
    part = _part(module)
    if part is not None and part.partition(".")[0] in FUNCTION_PARTS and _plain(name):
        return None
    return _outside("function", module, name)


def _operation(name: object) -> _Verdict | None:
    if isinstance(name, str) and re.fullmatch(TENSORFLOW_OPS, name):
        return None
    return _outside("operation", "tensorflow", name)


def _holds_bytecode(config: Mapping[str, Any]) -> bool:
    """Whether a Lambda layer holds marshalled code the Keras 1 and 2 way: [code, defaults, closure]."""
    for key in ("function", "output_shape", "mask"):
        value = config.get(key)
        if config.get(f"{key}_type") in ("lambda", "raw"):
            return True
        if key == "function" and isinstance(value, list) and value and isinstance(value[0], str):
            return True
    return False


def _bytecode(safe_mode: bool) -> _Verdict:
    stop = "Keras 3 refuses it by default" if safe_mode else "its Keras runs it when loading"
    return _Verdict(
        Severity.WARNING, f"a Lambda layer holds Python bytecode: {stop}", not safe_mode
    )


def _custom(what: str, name: object) -> _Verdict:
    return _Verdict(Severity.NOTE, f"the configuration needs the custom {what} {_shown(name)}")


def _outside(what: str, module: object, name: object) -> _Verdict:
    full = f"{_label(module)}.{_label(name)}" if module else _label(name)
    text = f"the configuration names the {what} {_shown(full)}: code outside Keras"
    if _part(module) is not None:
        text = f"the configuration names the {what} {_shown(full)}: no part of a model"
    return _Verdict(Severity.ERROR, text, unsafe=True)


def _part(module: object) -> str | None:
    """Tell which part of an allowed package a module is: ``layers`` of ``keras.src.layers.core``."""
    if not isinstance(module, str) or not _plain(module):
        return None
    for package in PACKAGES:
        if _below(module, package):
            rest = module[len(package) :].strip(".").split(".")
            while rest and rest[0] in _NEUTRAL:
                rest.pop(0)
            return ".".join(rest)
    return None


def _below(module: object, package: str) -> bool:
    return isinstance(module, str) and (module == package or module.startswith(f"{package}."))


def _plain(name: object) -> bool:
    if not isinstance(name, str) or not name.isascii():
        return False
    return all(part.isidentifier() for part in name.split("."))


def _is_class(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_*[A-Z]\w*", name, re.ASCII) is not None


_LIBRARIES = frozenset(("numpy", "torch", "tensorflow", "joblib", "scipy", "pandas", "jax", "h5py"))
"""Packages that are there when a model is loaded, but where no model's own classes live."""


def _is_stdlib(module: object) -> bool:
    first = str(module).partition(".")[0]
    return first in sys.stdlib_module_names or first in _INTERPRETER


def _label(name: object) -> str:
    return name if isinstance(name, str) else f"<{type(name).__name__}>"


def _shown(name: object) -> str:
    text = _label(name)
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


_OWN = frozenset(
    f"Custom>{name}"
    for name in (
        "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lion",
        "LossScaleOptimizer", "LossScaleOptimizerV3", "Nadam", "RMSprop", "SGD",
    )
)  # fmt: skip
"""How Keras 2.11 to 2.15 spelled its own optimizers."""

_KNOWN_FUNCTIONS = frozenset(
    """
    relu relu6 elu selu gelu silu swish sigmoid hard_sigmoid hard_silu hard_swish tanh softmax
    log_softmax softplus softsign leaky_relu exponential linear mish celu glu log_sigmoid
    hard_tanh hard_shrink tanh_shrink soft_shrink squareplus sparse_plus sparsemax threshold
    mse mae mape msle mean_squared_error mean_absolute_error mean_absolute_percentage_error
    mean_squared_logarithmic_error binary_crossentropy categorical_crossentropy bce cce
    sparse_categorical_crossentropy categorical_focal_crossentropy binary_focal_crossentropy
    kl_divergence kld poisson hinge squared_hinge categorical_hinge huber log_cosh logcosh
    cosine_similarity dice tversky ctc circle accuracy acc binary_accuracy categorical_accuracy
    sparse_categorical_accuracy top_k_categorical_accuracy sparse_top_k_categorical_accuracy
    glorot_uniform glorot_normal he_normal he_uniform lecun_normal lecun_uniform zeros ones
    random_normal random_uniform truncated_normal variance_scaling orthogonal constant identity
    l1 l2 l1_l2 max_norm non_neg unit_norm min_max_norm
    """.split()  # noqa: SIM905
)
