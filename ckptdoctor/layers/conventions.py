"""One table of conventions: which tensors make up a layer, and what each of them is to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["CONVENTIONS", "KERAS_CLASSES", "TORCH_CLASSES", "Convention", "Kind", "Variables"]

Kind = Literal[
    "batchnorm",  # running statistics; InstanceNorm with tracking too
    "norm",  # LayerNorm, GroupNorm, RMSNorm; BatchNorm without statistics: gamma, beta
    "normalization",  # mean and variance of the input, no gamma: Keras Normalization
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
        Regular expression that the component above (the last that is no number) must match
        whole; empty for any.
    lacks
        Last components with which it is no such layer.
    """

    kind: Kind
    parts: Mapping[str, str]
    needs: tuple[str, ...]
    example: str
    seen_in: str
    dims: tuple[int, int] = (0, 99)
    above: str = ""
    lacks: tuple[str, ...] = ()


_TORCH_NORM = {"weight": "gamma", "bias": "beta", "gamma": "gamma", "beta": "beta",
               "running_mean": "mean", "running_var": "var",
               "num_batches_tracked": "count"}  # fmt: skip
_KERAS_NORM = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var",
               "moving_var": "var"}  # fmt: skip
_KERNEL = {"weight": "kernel", "bias": "bias"}
_KERAS_KERNEL = {"kernel": "kernel", "bias": "bias", "lora_kernel_a": "down", "lora_kernel_b": "up"}
_SCALES = {"weight_scale": "scale", "weight_scale_inv": "scale", "weight_scale_2": "scale_2",
           "input_scale": "input_scale", "scales": "scale", "scale": "scale",
           "zero_point": "zero_point", "qzeros": "zero_point", "weight_zero_point": "zero_point",
           "SCB": "scale", "weight.absmax": "scale", "weight.scale": "scale",
           "weight.zero_point": "zero_point"}  # fmt: skip
_SPECTRAL = {"_u": "u", "_v": "v", "bias": "bias"}
_LORA = {"lora_A": "down", "lora_B": "up", "lora_embedding_A": "down", "lora_embedding_B": "up",
         **_KERNEL}  # fmt: skip
_EMBEDDING = (
    r"(.*_)?(embed|embeds|embedding|embeddings|embed_tokens|tok_embeddings|emb|embs|wte|wpe|lookup"
    r"|relative_attention_bias)(_\w*)?|shared"
)
_NORM_WORD = r"(.*_)?(ln|(layer_?|rms_?|group_?|batch_?)?norm(ali[sz]ation)?)(_?\w*)?"
_NO_NORM = r"(?!.*(prelu|(^|_)p?re_?lu|(^|_)act|activation|loss|criterion|magnitude|(^|_)ce($|_)))"

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
    Convention("batchnorm", {"batch_stats.mean": "mean", "batch_stats.var": "var",
                             "scale": "gamma", "bias": "beta"},
               ("batch_stats.var",), "batch_stats/BatchNorm_0/var", "Flax BatchNorm"),
    Convention("normalization", {"mean": "mean", "variance": "var", "count": "count"},
               ("variance", "mean"), "normalization/variance", "Keras Normalization"),
    Convention("normalization", {"mean": "mean", "var": "var", "count": "count"},
               ("var", "mean", "count"), "obs_rms.var", "running statistics of observations"),
    Convention("weightnorm", {"original0": "g", "original1": "v", "bias": "bias"},
               ("original1", "original0"), "fc.parametrizations.weight.original1",
               "torch.nn.utils.parametrizations"),
    Convention("weightnorm", {"weight_g": "g", "weight_v": "v", "bias": "bias"},
               ("weight_v", "weight_g"), "fc.weight_v", "torch.nn.utils.weight_norm"),
    Convention("spectralnorm", {"weight_orig": "kernel", "weight_u": "u", "weight_v": "v",
                                "bias": "bias", "weight": "copy"},
               ("weight_orig", "weight_u"), "fc.weight_orig", "torch.nn.utils.spectral_norm"),
    Convention("spectralnorm", {"original": "kernel", **_SPECTRAL}, ("original", "_u"),
               "fc.parametrizations.weight.original", "torch.nn.utils.parametrizations"),
    Convention("conv", {"original": "kernel", "bias": "bias"}, ("original",),
               "fc.parametrizations.weight.original", "any other parametrization of torch", (3, 99)),
    Convention("dense", {"original": "kernel", "bias": "bias"}, ("original",),
               "fc.parametrizations.weight.original", "any other parametrization of torch", (2, 2)),
    Convention("conv", {"weight_orig": "kernel", "weight_mask": "mask", "bias": "bias"},
               ("weight_orig", "weight_mask"), "conv1.weight_orig", "torch.nn.utils.prune", (3, 99)),
    Convention("dense", {"weight_orig": "kernel", "weight_mask": "mask", "bias": "bias"},
               ("weight_orig", "weight_mask"), "fc.weight_orig", "torch.nn.utils.prune", (2, 2)),
    Convention("lora", {"down": "down", "up": "up", "alpha": "alpha"}, ("down", "up"),
               "q_proj.lora_A.weight", "PEFT, diffusers, kohya"),
    Convention("lora", {"down": "down"}, ("down",), "q_proj.lora_A.weight", "one half of a pair"),
    Convention("lora", {"up": "up"}, ("up",), "q_proj.lora_B.weight", "one half of a pair"),
    Convention("lora", _LORA, ("lora_A",), "q_proj.lora_A", "loralib"),
    Convention("lora", _LORA, ("lora_embedding_A",), "wte.lora_embedding_A", "PEFT"),
    Convention("quantised", {"qweight": "kernel", "bias": "bias", **_SCALES}, ("qweight", "scales"),
               "q_proj.qweight", "GPTQ, AWQ"),
    *(Convention("quantised", {**_KERNEL, **_SCALES}, ("weight", scale), f"q_proj.{scale}",
                 writer)
      for scale, writer in (("weight_scale", "compressed-tensors"),
                            ("weight_scale_inv", "DeepSeek fp8"), ("scale", "torch.ao"),
                            ("SCB", "bitsandbytes, 8 bits"),
                            ("weight.absmax", "bitsandbytes, 4 bits"),
                            ("weight.scale", "a torch tensor quantised per channel"))),
    Convention("quantised", {**_KERAS_KERNEL, "kernel_scale": "scale"}, ("kernel", "kernel_scale"),
               "dense/kernel_scale", "Keras, int8 and float8"),
    Convention("recurrent", {"recurrent_kernel": "recurrent", **_KERAS_KERNEL},
               ("recurrent_kernel",), "lstm/lstm_cell/recurrent_kernel", "Keras LSTM, GRU"),
    Convention("recurrent", {"weight_hh": "recurrent", "weight_ih": "kernel", "bias_ih": "bias",
                             "bias_hh": "recurrent_bias", "weight_hr": "projection"},
               ("weight_hh",), "rnn.weight_hh_l0", "torch LSTM, GRU, RNN and their cells"),
    Convention("attention", {"in_proj_weight": "kernel", "in_proj_bias": "bias", "bias_k": "bias_k",
                             "bias_v": "bias_v"},
               ("in_proj_weight",), "attn.in_proj_weight", "torch MultiheadAttention"),
    Convention("attention", {"q_proj_weight": "kernel", "k_proj_weight": "kernel_k",
                             "v_proj_weight": "kernel_v", "in_proj_bias": "bias"},
               ("q_proj_weight", "k_proj_weight"), "attn.q_proj_weight",
               "torch MultiheadAttention over keys of another size"),
    Convention("embedding", {"embeddings": "kernel"}, ("embeddings",), "embedding/embeddings",
               "Keras Embedding"),
    Convention("embedding", {"embedding": "kernel"}, ("embedding",), "Embed_0/embedding",
               "Flax Embed", (2, 2)),
    Convention("embedding", _KERNEL, ("weight",), "wte.weight", "torch Embedding, told by its name",
               (2, 2), _EMBEDDING, ("bias",)),
    Convention("conv", {"depthwise_kernel": "kernel", "pointwise_kernel": "pointwise",
                        "bias": "bias"},
               ("depthwise_kernel",), "sep/depthwise_kernel", "Keras separable and depthwise"),
    Convention("dense", _KERAS_KERNEL, ("kernel",), "attn/query/kernel",
               "Keras and Flax attention: one axis per head", (3, 3),
               r"query|key|value|attention_output|out|(.*_)?einsum_dense(_\d+)?"),
    Convention("conv", _KERAS_KERNEL, ("kernel",), "conv1/kernel", "Keras and Flax convolutions",
               (3, 99)),
    Convention("conv", _KERNEL, ("weight",), "conv1.weight", "torch convolutions", (3, 99)),
    Convention("dense", _KERAS_KERNEL, ("kernel",), "fc/kernel", "Keras and Flax Dense", (2, 2)),
    Convention("dense", _KERNEL, ("weight",), "fc.weight", "torch Linear", (2, 2)),
    Convention("conv", {"weights": "kernel", "biases": "bias"},
               ("weights",), "resnet/conv1/weights", "TensorFlow slim", (3, 99)),
    Convention("dense", {"weights": "kernel", "biases": "bias"}, ("weights",), "logits/weights",
               "TensorFlow slim", (2, 2)),
    Convention("norm", _TORCH_NORM, ("weight",), "ln_1.weight",
               "torch LayerNorm, GroupNorm, RMSNorm, BatchNorm without statistics", (1, 1),
               rf"{_NO_NORM}.*"),
    Convention("norm", _KERAS_NORM, ("gamma", "beta"), "ln/gamma",
               "Keras LayerNormalization, GroupNormalization"),
    Convention("norm", _KERAS_NORM, ("gamma",), "norm.gamma", "one gain, told by its name", (1, 1),
               _NORM_WORD),
    Convention("norm", {"scale": "gamma", "bias": "beta"}, ("scale",), "ln/scale",
               "Flax LayerNorm, Keras and Flax RMSNorm", (1, 1), "", ("zero_point",)),
)  # fmt: skip
"""The first row that fits decides."""


class Variables(NamedTuple):
    """What the numbered variables of a Keras class are, in their order; see FACTS of `vars/N`."""

    kind: Kind | None
    parts: tuple[str, ...]


KERAS_CLASSES: tuple[tuple[str, Variables], ...] = (
    (r"(sync_)?batch_normalization(_v1|_v2)?",
     Variables("batchnorm", ("gamma", "beta", "mean", "var"))),
    (r"(layer|group|rms|instance)_normalization", Variables("norm", ("gamma", "beta"))),
    (r"normalization", Variables("normalization", ("mean", "var", "count"))),
    (r"separable_conv[12]d", Variables("conv", ("kernel", "pointwise", "bias"))),
    (r"(depthwise_)?conv[123]d(_transpose)?", Variables("conv", ("kernel", "bias"))),
    (r"(einsum_)?dense|(query|key|value|output)_dense", Variables("dense", ("kernel", "bias"))),
    (r"embedding", Variables("embedding", ("kernel",))),
    (r"(.*_)?(cell|lstm|gru|simple_rnn|lstm1d|lstm2d|lstm3d)",
     Variables("recurrent", ("kernel", "recurrent", "bias"))),
    (r"p_re_lu|spectral_normalization|seed_generator|random_generator", Variables(None, ())),
)  # fmt: skip
"""Class name in snake case -> its variables in `.weights.h5` and `.keras` files."""

TORCH_CLASSES: Mapping[str, Kind | None] = {
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "Linear": "dense",
    "Bilinear": "dense",
    "PReLU": None,
    "CrossEntropyLoss": None,
    "NLLLoss": None,
}
"""Stored class names that decide where the names and shapes of tensors would mislead."""
