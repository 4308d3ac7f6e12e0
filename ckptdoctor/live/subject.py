"""A model that can be run, whatever framework it is of: what probing and recalibration need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..tensors import Array, TensorTable

__all__ = ["Arrays", "Call", "NormLayer", "Observer", "Statistics", "Subject"]

Arrays = tuple[Array, ...]
"""Floating-point values of nested inputs or outputs, flattened in order; samples come first."""


class Statistics(NamedTuple):
    """Running mean and variance of one BatchNorm, shape ``(channels,)`` each, in float64."""

    mean: Array
    var: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLayer:
    """A BatchNorm of a live model that keeps running statistics.

    Parameters
    ----------
    name
        As the framework's user knows it: ``layer1.0.bn1``, ``resnet101v2/post_bn``.
    channels
        Length of its statistics.
    axis
        Dimension of its input that holds the channels; negative counts from the end.
    epsilon
        What is added to the variance.
    unbiased
        Whether the framework stores the variance over N - 1 (torch) or N (Keras).
    mean, var
        Names of its statistics in `Subject.table`.
    """

    name: str
    channels: int
    axis: int
    epsilon: float
    unbiased: bool
    mean: str
    var: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one layer during a run.

    Parameters
    ----------
    layer
        Name of the layer.
    class_name
        Its class, without modules.
    index
        Which call of this layer it is in this run, from 0: shared layers have several.
    depth
        How many watched layers around it are still at work; 0 for the model itself.
    leaf
        Whether no layer is inside it.
    """

    layer: str
    class_name: str
    index: int
    depth: int
    leaf: bool


class Observer(Protocol):
    """Told of every call, on the way in and on the way out; a layer inside another comes between."""

    def before(self, call: Call, inputs: Arrays) -> None:
        """Hear of a call that begins.

        `Subject.set_statistics` of this very layer is allowed here, and takes effect in this call.
        """

    def after(self, call: Call, outputs: Arrays) -> None:
        """Hear of a call that ended."""


class Subject(Protocol):
    """A live model, in inference mode throughout.

    A run changes nothing of the model.  What an observer sets of statistics stays until it is set
    anew.  Arrays handed to observers are float32 (float64 where the model computes in it), may
    share memory with the model's, and must neither be kept nor written to.
    """

    @property
    def framework(self) -> str:
        """``torch`` or ``keras``."""

    @property
    def norms(self) -> Mapping[str, NormLayer]:
        """BatchNorms with running statistics by name, in the order the model declares them."""

    def inputs(self) -> Sequence[tuple[tuple[int | None, ...], str]]:
        """Shapes (None where free, samples first) and dtypes of the inputs; empty if unknown."""

    def statistics(self, name: str) -> Statistics:
        """Copy of what a BatchNorm holds."""

    def set_statistics(self, name: str, statistics: Statistics) -> None:
        """Put statistics into a BatchNorm; cast to its dtype."""

    def run(
        self,
        batch: Sequence[Any],
        observer: Observer | None = None,
        *,
        only: Collection[str] | None = None,
        rounding: str = "",
    ) -> Arrays:
        """Run the model on one batch, without gradients.

        Parameters
        ----------
        batch
            One array per input, samples first.
        observer
            Told of the calls.
        only
            Names of the layers to observe; None for all of them.
        rounding
            ``float16`` or ``bfloat16``: every layer's inputs and outputs are rounded to that type on
            the way, which is where mixed precision overflows; empty for none.

        Returns
        -------
        Arrays
            The model's outputs.

        Raises
        ------
        UsageError
            If the model does not take such inputs; the framework's reason in one line.
        """

    def table(self) -> TensorTable:
        """Tensors of the model as a table over live memory, without a copy."""
