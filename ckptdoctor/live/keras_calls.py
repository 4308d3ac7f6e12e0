"""Every layer's call of a Keras model heard of: ``call`` is wrapped on the instance for one run."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

from .keras_arrays import flatten, floating, is_tensor, rounded
from .keras_tree import Node
from .subject import Arrays, Call, Observer

__all__ = ["Calls", "Stopped", "reason_of"]

MAX_REASON = 400


class Stopped(BaseException):
    """An observer raised: on its way through Keras, which rewrites every `Exception`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Calls:
    """Wrappers around the layers of a model, for the time of a ``with``.

    An attribute of the instance hides the method of its class; it goes into ``__dict__`` past
    ``__setattr__``, where Keras would track it.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        observer: Observer | None,
        only: Collection[str] | None,
        rounding: str,
    ) -> None:
        self.observer, self.rounding = observer, rounding
        self.watched = [
            (node, observer is not None and (only is None or node.name in only)) for node in nodes
        ]
        if not rounding and only is not None:
            self.watched = [(node, told) for node, told in self.watched if told]
        self.counts: dict[str, int] = {}
        self.depth = 0
        self.failed = ""
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> Self:
        try:
            for node, told in self.watched:
                self._wrap(node, told)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _wrap(self, node: Node, told: bool) -> None:
        quantised = getattr(node.layer, "quantization_mode", None) is not None
        name = "quantized_call" if quantised else "call"
        held = node.layer.__dict__
        call = getattr(node.layer, name)
        self._before.append((held, name, held.get(name, _ABSENT)))
        held[name] = self._wrapper(node, call, told)

    def _restore(self) -> None:
        while self._before:
            held, name, old = self._before.pop()
            if old is _ABSENT:
                held.pop(name, None)
            else:
                held[name] = old

    def _wrapper(self, node: Node, call: Callable[..., Any], told: bool) -> Callable[..., Any]:
        takes_rounded = _casts_inputs(node.layer)

        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.rounding and takes_rounded:
                args, kwargs = rounded(args, self.rounding), rounded(kwargs, self.rounding)
            heard = self._begin(node, (args, kwargs)) if told else None
            try:
                outputs = call(*args, **kwargs)
            except Exception:
                self.failed = self.failed or _described(node, (args, kwargs))
                raise
            finally:
                self.depth -= heard is not None
            self.failed = ""  # whatever failed inside, the model lives with it
            if self.rounding:
                outputs = rounded(outputs, self.rounding)
            if heard is not None:
                self._end(heard, outputs)
            return outputs

        return wrapper

    def _begin(self, node: Node, inputs: Any) -> Call | None:
        arrays = floating(inputs)
        if arrays is None:
            return None
        index = self.counts.get(node.name, 0)
        self.counts[node.name] = index + 1
        call = Call(
            layer=node.name,
            class_name=type(node.layer).__name__,
            index=index,
            depth=self.depth,
            leaf=node.leaf,
        )
        self._tell("before", call, arrays)
        self.depth += 1
        return call

    def _end(self, call: Call, outputs: Any) -> None:
        arrays = floating(outputs)
        self._tell("after", call, () if arrays is None else arrays)

    def _tell(self, when: str, call: Call, arrays: Arrays) -> None:
        try:
            getattr(self.observer, when)(call, arrays)
        except Exception as error:
            raise Stopped(error) from error


_ABSENT = object()


def _casts_inputs(layer: Any) -> bool:
    """Whether Keras would cast what the layer is given to its compute type: no indices."""
    return bool(
        getattr(layer, "autocast", getattr(layer, "_autocast", True))
        and getattr(layer, "_convert_input_args", True)
    )


def _described(node: Node, inputs: Any) -> str:
    shapes = [str(tuple(leaf.shape)) for leaf in flatten(inputs) if is_tensor(leaf)]
    given = f" given {', '.join(shapes[:4])}" if shapes else ""
    return f"layer {node.name!r:.200} ({type(node.layer).__name__}){given}"


def reason_of(error: BaseException) -> str:
    r"""Give one line of what a framework says in a screenful.

    Examples
    --------
    >>> reason_of(ValueError("Exception encountered when calling D.call().\n\n\x1b[1mno\x1b[0m"))
    'no'
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)[:20_000])
    text = text.rpartition("Exception encountered: ")[2]
    text = re.split(r"\n\s*(?:Arguments|Call arguments) received by|Full object config:", text)[0]
    text = re.sub(r"(?m)^Exception encountered when calling .*$", "", text)
    text = re.sub(r"\{\{.*?\}\}\s*|\[Op:.*?\].*", "", text)
    return " ".join(text.split())[:MAX_REASON] or type(error).__name__
