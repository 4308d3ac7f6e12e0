"""Tensor names -> layers: which tensors make up a BatchNorm, a kernel, a weight-norm pair.

One table of conventions; a row names the tensors a layer needs and what each of them is to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .tensors import LayerConfig, Role, TensorInfo, TensorTable

__all__ = ["CONVENTIONS", "KERAS_CLASSES", "Convention", "Kind", "Layer", "Layers", "read_layers"]

Kind = Literal[
    "batchnorm",  # running statistics; InstanceNorm with tracking too
    "norm",  # LayerNorm, GroupNorm, RMSNorm; BatchNorm without statistics: gamma, beta
    "normalization",  # Keras Normalization: mean and variance of the input, no gamma
    "conv",
    "dense",
    "embedding",
    "recurrent",
    "attention",  # packed projections: in_proj_weight
    "lora",
    "weightnorm",
    "spectralnorm",
    "quantised",  # a kernel with scales of its own
]


@dataclass(frozen=True, slots=True)
class Convention:
    """Tensors that make up a layer of some kind.

    Parameters
    ----------
    kind
        See `Kind`.
    parts
        Last component of a tensor's name -> what it is to the layer: ``mean``, ``var``,
        ``gamma``, ``beta``, ``count``, ``kernel``, ``bias``, ``scale`` ...
    needs
        Last components without which it is no such layer.
    example
        A name from a real file.
    seen_in
        Who writes it.
    dims
        Least and most dimensions of the first of ``needs``.
    above
        Regular expression that the component above must match whole; empty for any.
    """

    kind: Kind
    parts: Mapping[str, str]
    needs: tuple[str, ...]
    example: str
    seen_in: str
    dims: tuple[int, int] = (0, 99)
    above: str = ""


_TORCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var",
               "num_batches_tracked": "count"}  # fmt: skip
_KERAS_NORM = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var",
               "moving_var": "var"}  # fmt: skip
_KERNEL = {"weight": "kernel", "bias": "bias"}
_KERAS_KERNEL = {"kernel": "kernel", "bias": "bias"}
_SCALES = {"weight_scale": "scale", "weight_scale_inv": "scale", "input_scale": "input_scale",
           "scales": "scale", "scale": "scale", "zero_point": "zero_point", "qzeros": "zero_point",
           "absmax": "scale", "SCB": "scale"}  # fmt: skip
_LORA = r"lora_?(A|B|up|down)|lora_embedding_(A|B)"

CONVENTIONS: tuple[Convention, ...] = (
    Convention("batchnorm", _TORCH_NORM, ("running_var",), "bn1.running_var",
               "torch BatchNorm, SyncBatchNorm, FrozenBatchNorm, InstanceNorm with tracking"),
    Convention("batchnorm", _TORCH_NORM, ("running_mean",), "bn1.running_mean",
               "the same with its variance missing"),
    Convention("batchnorm", _KERAS_NORM, ("moving_variance",), "post_bn/moving_variance",
               "Keras in .h5, TensorFlow exports"),
    Convention("batchnorm", _KERAS_NORM, ("moving_var",), "bn0.moving_var", "MXNet exports"),
    Convention("batchnorm", _KERAS_NORM, ("moving_mean",), "post_bn/moving_mean",
               "the same with its variance missing"),
    Convention("normalization", {"mean": "mean", "variance": "var", "count": "count"},
               ("variance", "mean"), "normalization/variance", "Keras Normalization", (0, 99)),
    Convention("weightnorm", {"original0": "g", "original1": "v"}, ("original1", "original0"),
               "fc.parametrizations.weight.original1", "torch.nn.utils.parametrizations"),
    Convention("weightnorm", {"weight_g": "g", "weight_v": "v", "bias": "bias"},
               ("weight_v", "weight_g"), "fc.weight_v", "torch.nn.utils.weight_norm"),
    Convention("spectralnorm", {"weight_orig": "kernel", "weight_u": "u", "weight_v": "v",
                                "bias": "bias", "weight": "copy"},
               ("weight_orig",), "fc.weight_orig", "torch.nn.utils.spectral_norm"),
    Convention("spectralnorm", {"original": "kernel"}, ("original",),
               "fc.parametrizations.weight.original", "torch.nn.utils.parametrizations"),
    Convention("quantised", {"qweight": "kernel", "bias": "bias", **_SCALES}, ("qweight", "scales"),
               "q_proj.qweight", "GPTQ, AWQ"),
    *(Convention("quantised", {**_KERNEL, **_SCALES}, ("weight", scale), f"q_proj.{scale}",
                 "compressed-tensors, DeepSeek fp8, bitsandbytes, torch.ao")
      for scale in ("weight_scale", "weight_scale_inv", "scale", "SCB")),
    Convention("recurrent", {"recurrent_kernel": "recurrent", **_KERAS_KERNEL},
               ("recurrent_kernel",), "lstm/lstm_cell/recurrent_kernel", "Keras LSTM, GRU"),
    Convention("recurrent", {"weight_hh_l0": "recurrent", "weight_ih_l0": "kernel",
                             "bias_ih_l0": "bias", "bias_hh_l0": "recurrent_bias"},
               ("weight_hh_l0",), "rnn.weight_hh_l0", "torch LSTM, GRU, RNN; deeper layers too"),
    Convention("recurrent", {"weight_hh": "recurrent", "weight_ih": "kernel", "bias_ih": "bias",
                             "bias_hh": "recurrent_bias"},
               ("weight_hh",), "cell.weight_hh", "torch LSTMCell, GRUCell"),
    Convention("attention", {"in_proj_weight": "kernel", "in_proj_bias": "bias"},
               ("in_proj_weight",), "attn.in_proj_weight", "torch MultiheadAttention"),
    Convention("lora", {"weight": "kernel"}, ("weight",), "q_proj.lora_A.weight", "PEFT, diffusers",
               (2, 99), _LORA),
    Convention("lora", {"lora_A": "down", "lora_B": "up"}, ("lora_A",), "q_proj.lora_A", "loralib"),
    Convention("embedding", {"embeddings": "kernel"}, ("embeddings",), "embedding/embeddings",
               "Keras Embedding"),
    Convention("embedding", _KERNEL, ("weight",), "wte.weight", "torch Embedding, told by its name",
               (2, 2), r"(.*_)?(embed|embedding|embeddings|embed_tokens|tok_embeddings|emb|wte|wpe"
               r"|lookup)(_\w*)?|embeddings?_?\d+"),
    Convention("conv", {"depthwise_kernel": "kernel", "pointwise_kernel": "pointwise",
                        "bias": "bias"},
               ("depthwise_kernel",), "sep/depthwise_kernel", "Keras separable and depthwise"),
    Convention("conv", _KERAS_KERNEL, ("kernel",), "conv1/kernel", "Keras convolutions", (3, 99)),
    Convention("conv", _KERNEL, ("weight",), "conv1.weight", "torch convolutions", (3, 99)),
    Convention("dense", _KERAS_KERNEL, ("kernel",), "fc/kernel", "Keras Dense", (2, 2)),
    Convention("dense", _KERNEL, ("weight",), "fc.weight", "torch Linear", (2, 2)),
    Convention("norm", _TORCH_NORM, ("weight",), "ln_1.weight",
               "torch LayerNorm, GroupNorm, RMSNorm, BatchNorm without statistics", (1, 1)),
    Convention("norm", _KERAS_NORM, ("gamma",), "ln/gamma", "Keras LayerNormalization"),
    Convention("norm", {"scale": "gamma", "bias": "beta"}, ("scale",), "ln/scale",
               "Flax LayerNorm, RMSNorm", (1, 1)),
)  # fmt: skip
"""The first row that fits decides."""


class _Variables(NamedTuple):
    """What the numbered variables of a Keras class are, in their order; see FACTS of `vars/N`."""

    kind: Kind
    parts: tuple[str, ...]


KERAS_CLASSES: tuple[tuple[str, _Variables], ...] = (
    (r"(sync_)?batch_normalization(_v1|_v2)?",
     _Variables("batchnorm", ("gamma", "beta", "mean", "var"))),
    (r"(layer|group|rms|instance)_normalization", _Variables("norm", ("gamma", "beta"))),
    (r"normalization", _Variables("normalization", ("mean", "var", "count"))),
    (r"separable_conv[12]d", _Variables("conv", ("kernel", "pointwise", "bias"))),
    (r"(depthwise_)?conv[123]d(_transpose)?", _Variables("conv", ("kernel", "bias"))),
    (r"(einsum_)?dense|(query|key|value|output)_dense", _Variables("dense", ("kernel", "bias"))),
    (r"embedding", _Variables("embedding", ("kernel",))),
    (r"(.*_)?(cell|lstm|gru|simple_rnn)", _Variables("recurrent", ("kernel", "recurrent", "bias"))),
)  # fmt: skip
"""Class name in snake case -> its variables in `.weights.h5` and `.keras` files."""


class Layer(NamedTuple):
    """Tensors that work together, and what the file says about them.

    Parameters
    ----------
    name
        As the framework's user knows it: the stored name, else the path of its tensors.
    kind
        See `Kind`.
    role
        ``model`` or ``ema``.
    parts
        What it is -> the tensor: ``mean``, ``var``, ``gamma``, ``kernel`` ...
    told_by
        How it was recognised, for messages.
    class_name
        As stored, empty where the file does not say.
    config
        Stored configuration, None where there is none.
    key
        Group of the tensors' names: unique in the table.
    """

    name: str
    kind: Kind
    role: Role
    parts: Mapping[str, TensorInfo]
    told_by: str
    class_name: str
    config: LayerConfig | None
    key: str

    @property
    def keras(self) -> bool:
        """Whether its kernel is laid out as Keras does: inputs before outputs."""
        return "/" in self.key or "/" in next(iter(self.parts.values())).name

    @property
    def channels(self) -> int:
        """Channels of a BatchNorm or units of a kernel; 0 where that is not known."""
        for part in ("var", "mean", "gamma", "beta"):
            if part in self.parts:
                return self.parts[part].size
        return self.units

    @property
    def unit_axes(self) -> tuple[int, ...]:
        """Axes of the kernel that count its outputs; empty without a kernel.

        A transposed convolution of torch has the shape of an ordinary one: unless its class is
        stored, it is taken for one.
        """
        info = self.parts.get("pointwise") or self.parts.get("kernel") or self.parts.get("v")
        if info is None or len(info.shape) < 2:
            return ()
        rank, name = len(info.shape), self.class_name.lower()
        if "transpose" in name:
            return (rank - 2,) if self.keras else (1,)
        if not self.keras:
            return (0,)
        if "depthwise" in name or info.name.rpartition("/")[2].startswith("depthwise"):
            return (rank - 2, rank - 1)
        return (rank - 1,)

    @property
    def units(self) -> int:
        """Outputs of the kernel: the channels that a BatchNorm behind it has."""
        info = self.parts.get("pointwise") or self.parts.get("kernel") or self.parts.get("v")
        count = 1 if self.unit_axes else 0
        for axis in self.unit_axes:
            count *= info.shape[axis] if info else 0
        return count

    @property
    def epsilon(self) -> tuple[float, str]:
        """Value added to the variance, and where it is known from."""
        if self.config is not None and self.config.epsilon is not None:
            return self.config.epsilon, "stored"
        return (1e-3, "Keras' default") if self.keras else (1e-5, "torch's default")


class Layers:
    """Layers of a checkpoint in file order.

    Parameters
    ----------
    all
        Every layer that a convention recognises.
    """

    def __init__(self, all: tuple[Layer, ...]) -> None:  # noqa: A002
        self.all = all
        self._by_tensor: dict[str, Layer] = {}

    def of_kind(self, *kinds: Kind) -> Iterator[Layer]:
        """Yield the layers of these kinds."""
        return (layer for layer in self.all if layer.kind in kinds)

    @property
    def batchnorms(self) -> Iterator[Layer]:
        """Yield the layers with running statistics."""
        return self.of_kind("batchnorm")

    def of(self, tensor: str) -> Layer | None:
        """Layer that a tensor is part of, None where no convention knows it."""
        if not self._by_tensor:
            self._by_tensor = {
                info.name: layer for layer in self.all for info in layer.parts.values()
            }
        return self._by_tensor.get(tensor)

    def part_of(self, tensor: str) -> str:
        """What a tensor is to its layer; empty where no convention knows it."""
        layer = self.of(tensor)
        if layer is None:
            return ""
        return next(part for part, info in layer.parts.items() if info.name == tensor)


def read_layers(table: TensorTable) -> Layers:
    """Group the model's and the EMA's tensors into layers.

    Examples
    --------
    >>> table = TensorTable.from_arrays({"bn1.weight": [1.0], "bn1.running_var": [2.0]})
    >>> [(layer.name, layer.kind, sorted(layer.parts)) for layer in read_layers(table).all]
    [('bn1', 'batchnorm', ['gamma', 'var'])]
    """
    groups: dict[str, dict[str, TensorInfo]] = {}
    for info in table.infos.values():
        if info.role != "model" and info.role != "ema":
            continue
        # 100,000 names pass here: two string operations each, and nothing else
        key, _, leaf = info.name.rpartition("/" if "/" in info.name else ".")
        group = groups.get(key)
        if group is None:
            group = groups[key] = {}
        group[leaf] = info
    memo: dict[object, tuple[Kind, Mapping[str, str], str] | None] = {}
    found: list[Layer] = []
    for key, group in groups.items():
        layer = _layer(table, key, group, memo)
        if layer is not None:
            found.append(layer)
    return Layers(tuple(found))


_Memo = dict[object, tuple[Kind, Mapping[str, str], str] | None]


def _layer(
    table: TensorTable, key: str, group: Mapping[str, TensorInfo], memo: _Memo
) -> Layer | None:
    first = next(iter(group.values()))
    config = table.layers.get(first.layer) if table.layers else None
    above = key[max(key.rfind("."), key.rfind("/")) + 1 :]
    if above == "vars" and "/" in key:
        return _numbered(key, group, config)
    word = above if "weight" in group and len(group) < 3 else ""
    signature = (word, *[(leaf, len(info.shape)) for leaf, info in group.items()])
    if signature not in memo:
        memo[signature] = _conventional(group, above)
    told = memo[signature]
    if told is None:
        return None
    kind, parts, seen_in = told
    class_name = config.class_name if config is not None else ""
    if class_name == "Embedding" and kind == "dense":
        kind = "embedding"
    return Layer(
        name=_name(first, key),
        kind=kind,
        role=first.role,
        parts={parts[leaf]: info for leaf, info in group.items() if leaf in parts},
        told_by=seen_in,
        class_name=class_name,
        config=config,
        key=key,
    )


def _conventional(
    group: Mapping[str, TensorInfo], above: str
) -> tuple[Kind, Mapping[str, str], str] | None:
    """First row that fits, with the leaves as this file spells them (``kernel:0``)."""
    plain = {_plain(leaf): leaf for leaf in group}
    for row in CONVENTIONS:
        if not all(leaf in plain for leaf in row.needs):
            continue
        rank = len(group[plain[row.needs[0]]].shape)
        if not row.dims[0] <= rank <= row.dims[1]:
            continue
        if row.above and not re.fullmatch(row.above, above, re.IGNORECASE):
            continue
        spelt = {plain[leaf]: part for leaf, part in row.parts.items() if leaf in plain}
        return row.kind, spelt, row.seen_in
    return None


def _plain(leaf: str) -> str:
    return re.sub(r"(:\d+|#\d+)+$", "", leaf) if ":" in leaf or "#" in leaf else leaf


def _name(info: TensorInfo, key: str) -> str:
    return re.sub(r"\.parametrizations\.weight$", "", info.layer or key)


def _numbered(
    key: str, group: Mapping[str, TensorInfo], config: LayerConfig | None
) -> Layer | None:
    """Layer of a Keras 3 weights file: numbered variables, in the order their class makes them."""
    infos = [group[leaf] for leaf in sorted(group, key=lambda leaf: (len(leaf), leaf))]
    if config is not None:
        class_name = config.class_name
        word = _snake(class_name)
    else:
        class_name, word = "", re.sub(r"_\d+$", "", key.split("/")[-2]) if "/" in key else ""
    row = next((row for words, row in KERAS_CLASSES if re.fullmatch(words, word)), None)
    told_by = "its class" if config is not None else "the group's name"
    if row is None:
        row, told_by = _by_shape(infos), "its shapes"
    if row is None:
        return None
    names = _parts(row, infos, config)
    return Layer(
        name=infos[0].layer_name or key.removesuffix("/vars"),
        kind=row.kind,
        role=infos[0].role,
        parts=dict(zip(names, infos, strict=False)),
        told_by=told_by,
        class_name=class_name or word,
        config=config,
        key=key,
    )


def _by_shape(infos: list[TensorInfo]) -> _Variables | None:
    """Two to four vectors of one length are a normalisation; a name that says so must agree."""
    if len({info.shape for info in infos}) != 1 or len(infos[0].shape) != 1:
        if len(infos) <= 2 and len(infos[0].shape) >= 2:
            kind: Kind = "dense" if len(infos[0].shape) == 2 else "conv"
            return _Variables(kind, ("kernel", "bias"))
        return None
    if len(infos) == 4:
        return _Variables("batchnorm", ("gamma", "beta", "mean", "var"))
    named = re.search(r"(^|[/_])(bn|batch_?norm)", infos[0].layer, re.IGNORECASE)
    if named and 2 <= len(infos) <= 3:
        return _Variables("batchnorm", ("gamma", "beta", "mean", "var"))
    return _Variables("norm", ("gamma", "beta")) if len(infos) == 2 else None


def _parts(row: _Variables, infos: list[TensorInfo], config: LayerConfig | None) -> list[str]:
    """Names of the variables that are there: variance last, mean before it, absent ones dropped."""
    settings = config.settings if config is not None else {}
    if row.kind in ("batchnorm", "norm"):
        absent = {"gamma"} if settings.get("scale") is False else set()
        absent |= {"beta"} if settings.get("center") is False else set()
        names = [part for part in row.parts if part not in absent]
        if row.kind == "norm" or len(names) == len(infos):
            return names
        # without a configuration, of three it cannot be told whether gamma or beta is missing
        return [["gamma", "beta"], ["gamma_or_beta"], []][4 - len(infos)] + ["mean", "var"] if (
            2 <= len(infos) <= 4
        ) else list(row.parts)
    if row.kind == "conv" and len(infos) == 2 and "pointwise" in row.parts:
        return ["kernel", "pointwise"]
    return list(row.parts)


def _snake(name: str) -> str:
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name.rpartition(">")[2])
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
