"""Saved PyTorch programs as subjects: TorchScript files and exported programs."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, UsageError
from .subject import NormLayer
from .torch_calls import Calls, Kind
from .torch_hooks import hooked, kind_of, watched
from .torch_markers import mark, mark_operators, marked
from .torch_modules import require_torch
from .torch_subject import TorchSubject

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..tensors import TensorTable

__all__ = ["ExportedSubject", "ScriptedSubject", "exported_subject", "scripted_subject"]

_FROZEN = "the program was frozen: its layers are gone, and its operators are shown instead"
_UNSEEN = "this version of torch does not show the layers of such a program: only its outputs are"
_TRAINING = (
    "the program was saved in training mode: BatchNorms use the statistics of each batch, and"
    " those that are stored are not used"
)
_BATCH_NORMS = {
    "batch_norm": (5, 7),
    "_native_batch_norm_legit": (5, 7),
    "_native_batch_norm_legit_functional": (5, 7),
    "_native_batch_norm_legit_no_training": (None, 6),
    "native_batch_norm": (5, 7),
    "cudnn_batch_norm": (5, 7),
}
"""Operators that normalise by a batch's or stored statistics: which argument says by which of both,
and which is epsilon."""


def scripted_subject(path: str | os.PathLike[str]) -> ScriptedSubject:
    """Load a TorchScript file, on the CPU.

    Its code runs when it is loaded and called: in TorchScript's interpreter, which can do anything
    that torch's operators can (read files among it).

    Raises
    ------
    UsageError
        If torch is not installed, or there is no such file.
    FormatError
        If torch cannot load it.
    """
    torch, where = require_torch(), os.fspath(path)

    def load() -> Any:
        return _loaded(path, "a TorchScript", lambda: torch.jit.load(where, map_location="cpu"))

    return ScriptedSubject(load(), load)


def exported_subject(path: str | os.PathLike[str]) -> ExportedSubject:
    """Load a file of `torch.export.save`.

    `torch.export.load` unpickles what such a file may hold pickled (constants that are no tensors,
    tensors of unusual classes), and evaluates its symbolic shapes: arbitrary code may run.

    Raises
    ------
    UsageError
        If torch is not installed, or there is no such file.
    FormatError
        If torch cannot load it.
    """
    torch = require_torch()
    return ExportedSubject(_loaded(path, "an exported", lambda: torch.export.load(os.fspath(path))))


def _loaded(path: str | os.PathLike[str], kind: str, load: Callable[[], Any]) -> Any:
    where = os.fspath(path)
    if not Path(where).is_file():
        raise UsageError("no such file", where=where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load()
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].strip()[:200] if lines else type(error).__name__
        message = f"torch cannot load it as {kind} program: {reason}"
        raise FormatError(message, where=where) from error


class _ProgramSubject(TorchSubject):
    """What both kinds of program have in common: what is constant in their graphs.

    Attributes
    ----------
    told
        By layer, of its batch normalisation: whether it uses the batch's statistics, and epsilon.
    """

    told: Mapping[str, tuple[bool, float | None]]

    @property
    def training(self) -> bool:
        """Whether a BatchNorm of it uses the statistics of each batch."""
        return any(by_batch for by_batch, _ in self.told.values())

    @cached_property
    def norms(self) -> Mapping[str, NormLayer]:
        """BatchNorms that use their running statistics."""
        found = {}
        for name, norm in super().norms.items():
            training, epsilon = self.told.get(name, (False, None))
            if not training and name == _plain(name):
                found[name] = norm if epsilon is None else replace(norm, epsilon=epsilon)
        return found

    def table(self) -> TensorTable:
        """Tensors of the program, with what its graphs say of its layers."""
        table = super().table()
        layers = {
            name: replace(
                layer,
                class_name=self.kinds[name].class_name if name in self.kinds else layer.class_name,
                epsilon=self.told.get(name, (False, None))[1] or layer.epsilon,
            )
            for name, layer in table.layers.items()
            if name == _plain(name)
        }
        infos = {name: info for name, info in table.infos.items() if name == _plain(name)}
        return replace(table, infos=infos, layers=layers)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Put back what a program that was saved in training mode writes into its buffers."""
        import torch  # noqa: PLC0415

        held = list(self.module.buffers()) if self.training else []
        copies = [each.detach().clone() for each in held]
        try:
            yield
        finally:
            with torch.no_grad():
                for each, copy in zip(held, copies, strict=True):
                    each.copy_(copy)


class ScriptedSubject(_ProgramSubject):
    """A TorchScript module; its layers are seen through marks in its graphs.

    Parameters
    ----------
    module
        As it was loaded, not run yet; its graphs are changed.
    reload
        Loads it once more, for the case that torch does not take the marks.
    """

    def __init__(self, module: nn.Module, reload: Callable[[], nn.Module]) -> None:
        super().__init__(module)
        self.told = _scripted_norms(self.module)
        self.notes = (_TRAINING,) if self.training else ()
        self._operators: dict[str, str] = {}
        try:
            if not mark(self.module):
                self._operators = mark_operators(self.module)
        except Exception:  # noqa: BLE001  (the graph's Python face is not a stable one)
            self.module = reload()
            self._seen = False
            self.notes = (*self.notes, _UNSEEN)
        else:
            self._seen = True
            if self._operators:
                self.notes = (*self.notes, _FROZEN)

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Layers that a run can tell of; of a frozen program, its operators."""
        if not self._seen:
            return super().kinds
        own = {name: kind_of(each) for name, each in self.module.named_modules()}
        return {**own, **{name: Kind(kind, leaf=True) for name, kind in self._operators.items()}}

    def _called(self, inputs: Any, calls: Calls) -> Any:
        with self._kept(), marked(calls):
            by_name = isinstance(inputs, Mapping)
            given = calls.enter("", inputs)
            outputs = self.module(**given) if by_name else self.module(*given)
            return calls.leave("", outputs)


def _scripted_norms(module: Any) -> dict[str, tuple[bool, float | None]]:
    """Return what the graphs of BatchNorms say of them, where it is constant there."""
    found: dict[str, tuple[bool, float | None]] = {}
    for name, each in module.named_modules():
        for method in each._c._method_names():
            for node in each._c._get_method(method).graph.findAllNodes("aten::batch_norm"):
                training = _constant(node.inputsAt(5))
                epsilon = _constant(node.inputsAt(7))
                found[name] = training is True, float(epsilon) if epsilon else None
    return found


def _constant(value: Any) -> Any:
    return value.toIValue() if value.node().kind() == "prim::Constant" else None


class ExportedSubject(_ProgramSubject):
    """An exported program with its modules restored from what its nodes say of them.

    Parameters
    ----------
    program
        As `torch.export.load` gives it.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.told = _exported_norms(program)
        seen = True
        try:
            from torch.export import unflatten  # noqa: PLC0415

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says to itself
                module: Any = unflatten(program)
        except Exception:  # noqa: BLE001  (absent before torch 2.3, and not every program unflattens)
            module, seen = program.module(), False
        super().__init__(module)
        self.notes = () if seen else (_UNSEEN,)
        if self.training:
            self.notes = (*self.notes, _TRAINING)

    def inputs(self) -> Sequence[tuple[tuple[int | None, ...], str]]:
        """Shapes and dtypes the program was exported for; None where it takes any."""
        names = set(self.program.graph_signature.user_inputs)
        values = [
            node.meta.get("val")
            for node in self.program.graph.nodes
            if node.op == "placeholder" and node.name in names
        ]
        return [
            (
                tuple(n if isinstance(n, int) else None for n in value.shape),
                str(value.dtype).removeprefix("torch."),
            )
            for value in values
            if hasattr(value, "shape")
        ]

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Layers by name, with the classes that were exported."""
        classes = _exported_classes(self.program)
        found: dict[str, Kind] = {}
        for name, kind in super().kinds.items():
            plain = _plain(name)
            known = Kind(classes.get(plain, kind.class_name), kind.leaf)
            found.setdefault(plain, known)
        return found

    def _called(self, inputs: Any, calls: Calls) -> Any:
        from torch.utils import _pytree  # noqa: PLC0415

        spec = self.program.call_spec.in_spec
        args, kwargs = (), inputs
        if not isinstance(inputs, Mapping):
            args, kwargs = inputs, {}
            if spec is not None and len(inputs) == spec.num_leaves:  # as it was exported
                args, kwargs = _pytree.tree_unflatten(inputs, spec)
        with self._kept(), hooked(watched(self.module), calls, _plain):
            return self.module(*args, **kwargs)


def _plain(name: str) -> str:
    """Name of a module; torch numbers the later calls of one whose graphs differ (``bn@1``)."""
    return re.sub(r"@\d+(?=\.|$)", "", name)


def _stack(node: Any) -> list[tuple[str, str]]:
    """Modules around a node from the outermost, by name and class."""
    stack = node.meta.get("nn_module_stack") or {}
    return [
        (_plain(path), kind if isinstance(kind, str) else kind.__name__)
        for path, kind in stack.values()
    ]


def _exported_classes(program: Any) -> dict[str, str]:
    return {
        path: kind.rpartition(".")[2] for node in program.graph.nodes for path, kind in _stack(node)
    }


def _exported_norms(program: Any) -> dict[str, tuple[bool, float | None]]:
    found: dict[str, tuple[bool, float | None]] = {}
    for node in program.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        places = _BATCH_NORMS.get(getattr(packet, "__name__", ""))
        stack = _stack(node)
        if node.op == "call_function" and places is not None and stack:
            by, eps = places
            training = by is not None and len(node.args) > by and node.args[by] is True
            epsilon = node.args[eps] if len(node.args) > eps else None
            found[stack[-1][0]] = training, epsilon if isinstance(epsilon, float) else None
    return found
