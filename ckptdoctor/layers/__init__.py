"""Tensor names -> layers: which tensors make up a BatchNorm, a kernel, a weight-norm pair.

One table of conventions; a row names the tensors a layer needs and what each of them is to it.
"""

from __future__ import annotations

from .conventions import CONVENTIONS, KERAS_CLASSES, Convention, Kind
from .layer import Layer, Layers
from .read import read_layers

__all__ = ["CONVENTIONS", "KERAS_CLASSES", "Convention", "Kind", "Layer", "Layers", "read_layers"]
