"""The Keras architectures, tiny; they learn from the same data as the torch ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers

from .tasks import BLOBS, CLASSES, IMAGES, LENGTH, SEQUENCES, SIDE, TABLES, VOCABULARY, Task


def resnet_v2(width: int) -> keras.Model:
    """Pre-activation, as keras.applications has it: pre-activation BatchNorms fed by sums."""
    x = inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(width, 3, padding="same", name="conv1_conv")(x)
    x = layers.MaxPooling2D(2, name="pool1_pool")(x)
    for stage in range(2):
        for block in range(2):
            name, filters = f"conv{stage + 2}_block{block + 1}", width << stage
            pre = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_preact_bn")(x)
            pre = layers.Activation("relu")(pre)
            out = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_1_conv")(pre)
            out = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_1_bn")(out)
            out = layers.Activation("relu")(out)
            out = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_2_conv")(
                out
            )
            out = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_2_bn")(out)
            out = layers.Activation("relu")(out)
            out = layers.Conv2D(filters * 2, 1, name=f"{name}_3_conv")(out)
            skip = layers.Conv2D(filters * 2, 1, name=f"{name}_0_conv")(pre) if block == 0 else x
            x = layers.Add()([skip, out])
        x = layers.MaxPooling2D(2)(x) if stage == 0 else x
    x = layers.BatchNormalization(epsilon=1.001e-5, name="post_bn")(x)
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, name="predictions")(x))


def mobilenet(width: int) -> keras.Model:
    x = inputs = layers.Input((SIDE, SIDE, 3))

    def norm(x: Any) -> Any:
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    x = norm(layers.Conv2D(width, 3, padding="same", use_bias=False)(x))
    for i, filters in enumerate((width * 2, width * 2, width * 4)):
        x = norm(layers.DepthwiseConv2D(3, strides=1 + i % 2, padding="same", use_bias=False)(x))
        x = norm(layers.Conv2D(filters, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def mlp_bn(width: int) -> keras.Model:
    normalise = layers.Normalization()
    rng = keras.random.normal((256, 20), seed=3)
    normalise.adapt(rng * 3.0 + 1.0)
    inputs = layers.Input((20,))
    x = normalise(inputs)
    for _ in range(3):
        x = layers.Dense(width * 4)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def lstm(width: int) -> keras.Model:
    inputs = layers.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, width * 2)(inputs)
    x = layers.LSTM(width * 4, return_sequences=True)(x)
    x = layers.LayerNormalization()(layers.LSTM(width * 4)(x))
    return keras.Model(inputs, layers.Dense(4)(x))


def unet(width: int) -> keras.Model:
    inputs = layers.Input((SIDE, SIDE, 3))

    def double(x: Any, filters: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same")(x)
            x = layers.Activation("relu")(layers.BatchNormalization()(x))
        return x

    one = double(inputs, width)
    two = double(layers.MaxPooling2D(2)(one), width * 2)
    low = double(layers.MaxPooling2D(2)(two), width * 4)
    x = double(layers.Concatenate()([two, layers.Conv2DTranspose(width * 2, 2, 2)(low)]), width * 2)
    x = double(layers.Concatenate()([one, layers.Conv2DTranspose(width, 2, 2)(x)]), width)
    return keras.Model(inputs, layers.Conv2D(1, 1)(x))


MODELS: Mapping[str, tuple[Callable[[int], keras.Model], Task]] = {
    "resnet_v2": (resnet_v2, IMAGES),
    "mobilenet": (mobilenet, IMAGES),
    "mlp_bn": (mlp_bn, TABLES),
    "lstm": (lstm, SEQUENCES),
    "unet": (unet, BLOBS),
}
