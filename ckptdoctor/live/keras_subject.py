"""A live Keras model as a subject: run eagerly, its layers' calls heard of, its BatchNorms set."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CkptDoctorError, UsageError
from .keras_arrays import floating, values_of
from .keras_calls import Calls, Stopped, reason_of
from .keras_inputs import input_shapes, packed_inputs
from .keras_names import named_variables, own_variables, variable_names
from .keras_tree import Node, as_norm, is_built, walk
from .subject import Arrays, NormLayer, Observer, Statistics

if TYPE_CHECKING:
    from ..tensors import Array, TensorTable

__all__ = ["KerasSubject"]

MAX_STATE = 1 << 22
"""Elements of a variable that is compared before and after a run: no table of a vocabulary."""


class KerasSubject:
    """A Keras model, of Keras 3 on any backend or of Keras 2.

    Parameters
    ----------
    model
        Any ``keras.Model``, or a single layer.  What is not built yet is built by the first run.

    Examples
    --------
    Not run here, since it needs Keras::

        subject = KerasSubject(keras.applications.ResNet50V2())
        subject.statistics("post_bn").var.max()
    """

    framework = "keras"

    def __init__(self, model: Any) -> None:
        self.model = model
        self._kept: dict[int, Array] = {}
        self._tried = False

    # --- what it is made of ----------------------------------------------------------------------

    @cached_property
    def _nodes(self) -> tuple[Node, ...]:
        return walk(self.model)

    @cached_property
    def _norms(self) -> dict[str, tuple[NormLayer, Any]]:
        names = variable_names(named_variables(self.model, self._nodes))
        told = ((node.layer, as_norm(node, names)) for node in self._nodes)
        return {norm.name: (norm, layer) for layer, norm in told if norm is not None}

    def _look_again(self) -> None:
        for known in ("_nodes", "_norms", "norms"):
            self.__dict__.pop(known, None)

    @cached_property
    def norms(self) -> Mapping[str, NormLayer]:
        """BatchNorms with running statistics by name, in the order the model declares them."""
        return MappingProxyType({name: norm for name, (norm, _) in self._norms.items()})

    def inputs(self) -> Sequence[tuple[tuple[int | None, ...], str]]:
        """Shapes (None where free, samples first) and dtypes of the inputs; empty if unknown."""
        return input_shapes(self.model)

    def table(self) -> TensorTable:
        """Tensors of the model as a table over live memory, without a copy."""
        from .keras_table import model_table  # noqa: PLC0415

        return model_table(self.model)

    # --- statistics ------------------------------------------------------------------------------

    def statistics(self, name: str) -> Statistics:
        """Copy of what a BatchNorm holds.

        Raises
        ------
        UsageError
            If the model has no such BatchNorm.
        """
        layer = self._norm(name)
        mean, var = values_of(layer.moving_mean), values_of(layer.moving_variance)
        assert mean is not None
        assert var is not None
        return Statistics(np.array(mean, np.float64), np.array(var, np.float64))

    def set_statistics(self, name: str, statistics: Statistics) -> None:
        """Put statistics into a BatchNorm; cast to its dtype.

        Raises
        ------
        UsageError
            If the model has no such BatchNorm, or it has another number of channels.
        """
        layer = self._norm(name)
        for variable, values in (
            (layer.moving_mean, statistics.mean),
            (layer.moving_variance, statistics.var),
        ):
            if np.shape(values) != tuple(variable.shape):
                message = f"{name!r:.200} has statistics of shape {tuple(variable.shape)}"
                raise UsageError(f"{message}, found {np.shape(values)}")
            held = values_of(variable)
            assert held is not None
            with np.errstate(over="ignore"):
                cast = np.asarray(values).astype(held.dtype)
            variable.assign(cast)
            self._kept[id(variable)] = cast

    def _norm(self, name: str) -> Any:
        if name not in self._norms:
            raise UsageError(f"no BatchNorm {name!r:.200} in {self.model.name!r:.200}")
        return self._norms[name][1]

    # --- runs ------------------------------------------------------------------------------------

    def build(self, batch: Sequence[Any]) -> None:
        """Make the variables of a model that makes them when it is first called.

        Raises
        ------
        UsageError
            As `run`.
        """
        if not self._tried and not is_built(self.model):
            self._call(batch, None, None, "")
            self._look_again()
        self._tried = True  # a layer that no run reaches is never built

    def run(
        self,
        batch: Sequence[Any],
        observer: Observer | None = None,
        *,
        only: Collection[str] | None = None,
        rounding: str = "",
    ) -> Arrays:
        """Run the model on one batch, without gradients; see `Subject.run`.

        Rounding applies where mixed precision would: to what layers take, unless they opt out of
        casting as Embedding does, and to what layers and operations give.

        Raises
        ------
        UsageError
            If the model does not take such inputs; the framework's reason in one line.
        """
        self.build(batch)
        return self._call(batch, observer, only, rounding)

    def _call(
        self,
        batch: Sequence[Any],
        observer: Observer | None,
        only: Collection[str] | None,
        rounding: str,
    ) -> Arrays:
        arguments = packed_inputs(self.model, batch)
        kwargs = {"training": False} if _takes_training(self.model) else {}
        # without an observer the layers are wrapped all the same: an error then names one of them
        calls = Calls(self._nodes, observer, only, rounding)
        with ExitStack() as stack:
            stack.enter_context(_inference(self.model))
            stack.enter_context(self._unchanged())
            stack.enter_context(calls)
            try:
                outputs = self.model(*arguments, **kwargs)
            except Stopped as stopped:
                raise stopped.error from None
            except CkptDoctorError:
                raise
            except Exception as error:
                where = calls.failed or f"model {self.model.name!r:.200}"
                raise UsageError(f"{where}: {reason_of(error)}") from error
        return floating(outputs) or ()

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Put back what a run writes: random states, states of stateful layers, losses.

        What `set_statistics` wrote meanwhile stays.
        """
        before = [(variable, np.array(values)) for variable, values in _state(self._nodes)]
        self._kept = {}
        try:
            yield
        finally:
            for variable, values in before:
                held = self._kept.get(id(variable), values)
                now = values_of(variable)
                if now is None or now.tobytes() != held.tobytes():
                    variable.assign(held)
            self._kept = {}
            _forget_losses(self.model, self._nodes)


def _state(nodes: Sequence[Node]) -> Iterator[tuple[Any, Array]]:
    """Variables that inference may write: those that no gradient reaches, and random states."""
    for node in nodes:
        seeds = getattr(node.layer, "_seed_generators", None) or ()
        for variable in (
            *own_variables(node.layer, "non_trainable"),
            *(each.state for each in seeds),
        ):
            values = values_of(variable)
            if values is not None and values.size <= MAX_STATE:
                yield variable, values


def _forget_losses(model: Any, nodes: Sequence[Node]) -> None:
    if any(getattr(node.layer, "_losses", None) for node in nodes):
        clear = getattr(model, "_clear_losses", None)
        if callable(clear):
            clear()


def _takes_training(model: Any) -> bool:
    """Whether ``training`` may be given: Keras 3 drops it where a model's call has none."""
    return bool(getattr(model, "_expects_training_arg", True))


@contextmanager
def _inference(model: Any) -> Iterator[None]:
    """Without gradients, and with every function run step by step, so that layers have values."""
    with ExitStack() as stack:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(model, torch.nn.Module):
            stack.enter_context(torch.no_grad())
        tensorflow = sys.modules.get("tensorflow")
        if tensorflow is not None:
            eager = tensorflow.config.functions_run_eagerly()
            tensorflow.config.run_functions_eagerly(True)
            stack.callback(tensorflow.config.run_functions_eagerly, eager)
        yield
