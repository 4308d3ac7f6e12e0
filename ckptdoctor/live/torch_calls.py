"""Calls of a model's layers during one run: who is at work, who is told, what is rounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CkptDoctorError, UsageError
from .subject import Call, Observer
from .torch_values import floats_of, rounded, shapes_of

if TYPE_CHECKING:
    import torch

__all__ = ["Calls", "Kind"]


class Kind(NamedTuple):
    """What is known of a layer before it is called: see `ckptdoctor.live.subject.Call`."""

    class_name: str
    leaf: bool


class _Open(NamedTuple):
    name: str
    given: Any
    call: Call | None


class Calls:
    """The calls of one run, whoever sees them begin and end.

    Parameters
    ----------
    kinds
        Layers that can be seen, by name.
    observer
        Told of the calls; None for nobody.
    only
        Names of the layers that the observer is told of; None for all.
    narrow
        Type that every layer's inputs and outputs are rounded to; None for none.  Those of layers
        with others inside too: what a residual block adds overflows between two leaves.

    Raises
    ------
    UsageError
        If there is no such layer.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        observer: Observer | None,
        only: Collection[str] | None,
        narrow: torch.dtype | None,
    ) -> None:
        self.kinds, self.observer, self.narrow = kinds, observer, narrow
        unknown = next((name for name in only or () if name not in kinds), None)
        if unknown is not None:
            raise UsageError(f"the model has no layer {unknown!r:.200} that can be watched")
        self.only = None if only is None else frozenset(only)
        self.open: list[_Open] = []
        self._counts: Counter[str] = Counter()
        self._depth = 0
        self._raised: BaseException | None = None
        self._words: tuple[Any, ...] = ()
        self._failed: BaseException | None = None
        self._failed_in: tuple[str, str] = ("", "")

    def enter(self, name: str, values: Any) -> Any:
        """Begin a call; returns what the layer is to be given."""
        if self.narrow is not None:
            values = rounded(values, self.narrow)
        told = self.observer is not None and (self.only is None or name in self.only)
        if not told:
            self.open.append(_Open(name, values, None))
            return values
        kind = self.kinds[name]
        call = Call(
            layer=name,
            class_name=kind.class_name,
            index=self._counts[name],
            depth=self._depth,
            leaf=kind.leaf,
        )
        self._counts[name] += 1
        self._depth += 1
        self.open.append(_Open(name, values, call))
        self._tell("before", call, values)
        return values

    def leave(self, name: str, outputs: Any) -> Any:
        """End a call; returns what the layer is to have returned."""
        if self.narrow is not None:
            outputs = rounded(outputs, self.narrow)
        call = self._close(name)
        if call is not None:
            self._tell("after", call, outputs)
        return outputs

    def fail(self, name: str, error: BaseException) -> None:
        """End a call by an exception; the innermost is the one that is told of."""
        given = next((each.given for each in reversed(self.open) if each.name == name), ())
        self._close(name)
        if self._failed is not error:
            self._failed, self._failed_in = error, (name, shapes_of(given))

    def _close(self, name: str) -> Call | None:
        if not self.open or self.open[-1].name != name:
            return None  # it never began: another hook raised before ours was asked
        call = self.open.pop().call
        if call is not None:
            self._depth -= 1
        return call

    def _tell(self, method: str, call: Call, values: Any) -> None:
        try:
            getattr(self.observer, method)(call, floats_of(values))
        except BaseException as error:
            self._raised, self._words = error, error.args
            raise

    def check(self) -> None:
        """Raise what an observer raised and the model caught."""
        if self._raised is not None:
            self._raised.args = self._words  # torch.fx adds where it was to what it says
            raise self._raised

    def reason(self, error: Exception, given: str) -> UsageError | None:
        """Turn what ended a run into what the caller is to be told; None if it is that already.

        Raises
        ------
        BaseException
            What an observer raised, if that is what ended it.
        """
        self.check()
        if isinstance(error, CkptDoctorError):
            return None
        name, shapes = "", given
        if self._failed is error:
            name, shapes = self._failed_in
        elif self.open:
            name, shapes = self.open[-1].name, shapes_of(self.open[-1].given)
        who = f"layer {name!r:.200} ({self.kinds[name].class_name})" if name else "the model"
        hint = f"the run was given {given}" if name else ""
        return UsageError(f"{who} fails on {shapes}: {_first_line(error)}", hint=hint)


def _first_line(error: Exception) -> str:
    """Return the framework's reason in one line; TorchScript says it last, behind its own traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "TorchScript interpreter" in lines[0]:
        return lines[-1].partition("Error: ")[2][:300] or lines[-1][:300]
    prefix = "" if type(error) in (RuntimeError, ValueError) else f"{type(error).__name__}: "
    return prefix + lines[0][:300]
