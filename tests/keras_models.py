"""Small Keras models of every kind, for Keras 3 and Keras 2 alike; each call makes a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def sequential(keras: Any) -> Any:
    make = keras.layers
    return keras.Sequential(
        [
            make.InputLayer((6, 6, 3)),
            make.Conv2D(4, 3),
            make.BatchNormalization(),
            make.ReLU(),
            make.Conv2D(4, 3),
            make.BatchNormalization(),
            make.Flatten(),
            make.Dropout(0.5),
            make.Dense(4),
        ]
    )


def functional(keras: Any) -> Any:
    """Shared layers, an unnamed and a named BatchNorm, several outputs."""
    make = keras.layers
    image = keras.Input((6, 6, 3), name="image")
    shared, norm = make.Conv2D(3, 3, padding="same", name="shared"), make.BatchNormalization()
    x = norm(shared(norm(shared(image))))
    x = make.BatchNormalization(name="post_bn")(make.Add()([x, image]))
    x = make.GlobalAveragePooling2D()(x)
    return keras.Model(image, {"label": make.Dense(2)(x), "box": make.Dense(2)(x)})


def nested(keras: Any) -> Any:
    """Models within a model, two inputs, an encoder that both go through."""
    make = keras.layers
    encoder = keras.Sequential(
        [make.Dense(4), make.BatchNormalization(), make.Dense(4), make.BatchNormalization()],
        name="encoder",
    )
    inner_in = keras.Input((8,))
    inner_out = make.BatchNormalization(name="post_bn")(make.Dense(3)(inner_in))
    inner = keras.Model(inner_in, inner_out, name="resnet101v2")
    one, other = keras.Input((6,), name="one"), keras.Input((6,), name="other")
    x = inner(make.Concatenate()([encoder(one), encoder(other)]))
    return keras.Model([one, other], make.Dense(1)(x))


def recurrent(keras: Any) -> Any:
    """Layers inside layers."""
    make = keras.layers
    steps = keras.Input((3, 4))
    x = make.Bidirectional(make.LSTM(2, return_sequences=True))(steps)
    x = make.TimeDistributed(make.Dense(4))(x)
    x = make.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(steps, make.GRU(2)(make.BatchNormalization()(x)))


def subclassed(keras: Any) -> Any:
    """Blocks with lists and dicts of layers, no configuration, nothing built before a call."""
    make = keras.layers

    class Block(make.Layer):  # type: ignore[misc,name-defined]
        __module__ = "__main__"  # a script's: a file that names other modules is unsafe to load

        def __init__(self) -> None:
            super().__init__()
            self.first = make.Dense(4)
            self.norms = [make.BatchNormalization(), make.BatchNormalization()]
            self.named = {"last": make.Dense(4)}

        def call(self, x: Any, training: bool | None = None) -> Any:
            x = self.first(x)
            for norm in self.norms:
                x = norm(x, training=training)
            return x + self.named["last"](x)

    class Net(keras.Model):  # type: ignore[misc,name-defined]
        __module__ = "__main__"

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = Block(), Block(), make.Dense(1)

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.head(self.other(self.one(x, training=training), training=training))

    return Net()


KINDS: dict[str, tuple[Callable[[Any], Any], tuple[tuple[int, ...], ...]]] = {
    "sequential": (sequential, ((6, 6, 3),)),
    "functional": (functional, ((6, 6, 3),)),
    "nested": (nested, ((6,), (6,))),
    "recurrent": (recurrent, ((3, 4),)),
    "subclassed": (subclassed, ((6,),)),
}
"""Kind -> what makes it, and the shapes of its inputs."""


def batch_for(kind: str, samples: int = 4) -> list[np.ndarray]:
    """Return the same normal samples each time."""
    random = np.random.default_rng(7)
    shapes = KINDS[kind][1]
    return [random.normal(size=(samples, *shape)).astype(np.float32) for shape in shapes]


def filled(model: Any, seed: int = 0) -> Any:
    """Give every variable of a built model values of its own, positive ones."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign((random.normal(size=variable.shape) ** 2 + 0.1).astype(np.float32))
    return model
