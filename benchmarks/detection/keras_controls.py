"""Healthy Keras files: traps of names, layouts and training that are no illness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from keras import layers

from .keras_patient import SUFFIX, KerasPatient, numpy_batch
from .patients import Array
from .tasks import CLASSES, IMAGES, LENGTH, SEQUENCES, SIDE, VOCABULARY

Control = Callable[[int, Path], keras.Model]
STEPS = 40


def data(seed: int, task: Any = IMAGES) -> tuple[Array, Array]:
    return numpy_batch(task, torch.Generator().manual_seed(seed), 32 * STEPS)


def fit(net: keras.Model, x: Array, y: Array, optimizer: Any = None) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer or keras.optimizers.Adam(3e-3), loss)
    net.fit(x, y, batch_size=32, verbose=0)
    return net


def plain(norm: Callable[[], Any], **conv: Any) -> keras.Model:
    """Two convolutions with some normalisation behind each."""
    return keras.Sequential([
        layers.Input((SIDE, SIDE, 3)), layers.Conv2D(8, 3, 2, **conv), norm(), layers.ReLU(),
        layers.Conv2D(16, 3, 2, **conv), norm(), layers.ReLU(), layers.Flatten(), layers.Dense(CLASSES),
    ])  # fmt: skip


def normed(
    norm: Callable[[], Any], optimizer: Callable[[], Any] | None = None, **conv: Any
) -> Control:
    def control(seed: int, _: Path) -> keras.Model:
        return fit(plain(norm, **conv), *data(seed), optimizer() if optimizer else None)

    return control


def raw(scale: float) -> Control:
    def control(seed: int, _: Path) -> keras.Model:
        x, y = data(seed)
        return fit(
            plain(layers.BatchNormalization), np.round(np.clip(x / 6 + 0.5, 0, 1) * scale), y
        )

    return control


def input_norm(seed: int, _: Path) -> keras.Model:
    x, y = data(seed)
    inner = plain(layers.BatchNormalization)
    net = keras.Sequential(
        [layers.Input((SIDE, SIDE, 3)), layers.BatchNormalization(name="input_bn"), inner]
    )
    return fit(net, x * np.array([1e-2, 1.0, 3e4], np.float32) + 1, y)


def untrained(model: str) -> Control:
    from .keras_models import MODELS

    return lambda *_: MODELS[model][0](8)


def policy(name: str) -> Control:
    """Mixed or half precision; the optimizer becomes a LossScaleOptimizer for float16."""

    def control(seed: int, _: Path) -> keras.Model:
        keras.config.set_dtype_policy(name)
        try:
            net = plain(layers.BatchNormalization)
            rule: Any = keras.optimizers.SGD(0.01)
            rule = keras.optimizers.LossScaleOptimizer(rule) if "float16" in name[-7:] else rule
            return fit(net, *data(seed), rule)
        finally:
            keras.config.set_dtype_policy("float32")

    return control


def frozen(seed: int, cache: Path) -> keras.Model:
    base = KerasPatient("resnet_v2", seed, cache).net
    base.trainable = False
    body = keras.Model(base.input, base.layers[-2].output, name="backbone")
    inputs = layers.Input((SIDE, SIDE, 3))
    return fit(
        keras.Model(inputs, layers.Dense(CLASSES)(body(inputs, training=False))), *data(seed)
    )


def sequences(seed: int, _: Path) -> keras.Model:
    """Bidirectional GRU over an embedding with padding."""
    net = keras.Sequential([
        layers.Input((LENGTH,)), layers.Embedding(VOCABULARY, 16, mask_zero=True),
        layers.Bidirectional(layers.GRU(16)), layers.Dense(4),
    ])  # fmt: skip
    return fit(net, *data(seed, SEQUENCES), keras.optimizers.RMSprop(1e-3))


def attention(seed: int, _: Path) -> keras.Model:
    inputs = layers.Input((LENGTH,))
    x = layers.Embedding(VOCABULARY, 16)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True))
    return fit(
        keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x))),
        *data(seed, SEQUENCES),
    )


def separable(seed: int, _: Path) -> keras.Model:
    """Separable convolutions; the residual branch's last gamma starts at zero."""
    inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.SeparableConv2D(8, 3)(layers.Rescaling(0.5)(inputs))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    branch = layers.SeparableConv2D(8, 3, padding="same")(x)
    x = layers.Add()([x, layers.BatchNormalization(gamma_initializer="zeros")(branch)])
    x = layers.GlobalMaxPooling2D()(layers.SpatialDropout2D(0.1)(x))
    net = keras.Model(inputs, layers.Dense(CLASSES, kernel_regularizer="l2")(x))
    return fit(net, *data(seed))


CONTROLS: Mapping[str, Control] = {
    "raw input 0..255": raw(255.0),
    "raw input 0..65535": raw(65535.0),
    "BatchNorm on the input": input_norm,
    "BatchNorm without gamma": normed(lambda: layers.BatchNormalization(scale=False)),
    "BatchNorm without beta": normed(lambda: layers.BatchNormalization(center=False)),
    "BatchNorm without either": normed(
        lambda: layers.BatchNormalization(scale=False, center=False)
    ),
    "BatchNorm with momentum 0.9": normed(
        lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    ),
    "GroupNormalization": normed(lambda: layers.GroupNormalization(4)),
    "kernels of zeros before a norm": normed(layers.LayerNormalization, bias_initializer="zeros"),
    "RMSprop": normed(layers.BatchNormalization, lambda: keras.optimizers.RMSprop(1e-3)),
    "SGD with an EMA": normed(
        layers.BatchNormalization, lambda: keras.optimizers.SGD(0.01, use_ema=True)
    ),
    "Adagrad": normed(layers.BatchNormalization, lambda: keras.optimizers.Adagrad(0.01)),
    "mixed_float16": policy("mixed_float16"),
    "mixed_bfloat16": policy("mixed_bfloat16"),
    "bfloat16": policy("bfloat16"),
    "float16": policy("float16"),
    "frozen nested backbone": frozen,
    "bidirectional GRU with padding": sequences,
    "attention": attention,
    "separable, zero-init residual": separable,
    **{
        f"untrained {model}": untrained(model)
        for model in ("resnet_v2", "mobilenet", "mlp_bn", "lstm", "unet")
    },
}


def controls(seed: int, cache: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every control in two of the three formats."""
    for number, (name, make) in enumerate(CONTROLS.items()):
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        net = make(seed, cache)
        for shift in (0, 1):
            layout = list(SUFFIX)[(number + seed + shift) % 3]
            path = folder / SUFFIX[layout]
            net.save_weights(path) if layout == "weights.h5" else net.save(path)
            yield f"{name} as {layout}", path
