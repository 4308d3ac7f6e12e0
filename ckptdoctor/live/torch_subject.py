"""A live PyTorch module as a subject: run by hooks, in inference mode, with nothing left behind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .subject import Arrays, NormLayer, Observer, Statistics
from .torch_buffers import address, kept_buffers
from .torch_calls import Calls, Kind
from .torch_hooks import hooked, kind_of, scripted, watched
from .torch_modules import require_module, unwrapped
from .torch_norms import norm_of
from .torch_values import floats_of, rounded, shapes_of, to_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from ..tensors import TensorTable

__all__ = ["TorchSubject"]


class TorchSubject:
    """Any `torch.nn.Module`; see `ckptdoctor.live.subject.Subject`.

    Layers are called as `named_modules` calls them, a module under several names by its first;
    the model itself is the empty name.  Compiled modules run as they were written.  Buffers that a
    model's own forward writes to in inference mode are put back; what it keeps elsewhere (a cache in
    an attribute) is as after any other call.

    Parameters
    ----------
    module
        The model, with weights.

    Attributes
    ----------
    notes
        What cannot be told of this model, and why: sentences for the user.
    by_name
        Parameters that the arrays of a batch are given to; empty where they go by position.
    within
        Parameter that is given a mapping of them all; empty where each has its own.

    Raises
    ------
    UsageError
        If torch is not installed, this is no module, or it has no values yet.
    """

    framework = "torch"
    notes: tuple[str, ...] = ()
    by_name: tuple[str, ...] = ()
    within: str = ""

    def __init__(self, module: nn.Module) -> None:
        require_module(module)
        self.module = unwrapped(module)
        _check_values(self.module)
        closed = scripted(self.module)
        if closed:
            named = ", ".join(
                repr(name)[:100] if name else "the model itself" for name in closed[:5]
            )
            self.notes = (f"layers inside TorchScript modules are not seen: {named}",)

    @cached_property
    def norms(self) -> Mapping[str, NormLayer]:
        """BatchNorms with running statistics, recognised by what they hold, not by their class."""
        found = ((name, norm_of(name, each)) for name, each in self._named.items())
        return {name: norm for name, norm in found if norm is not None}

    def inputs(self) -> Sequence[tuple[tuple[int | None, ...], str]]:
        """Shapes and dtypes of the inputs, where the module states them."""
        from .torch_inputs import stated_inputs  # noqa: PLC0415

        return stated_inputs(self.module)

    def statistics(self, name: str) -> Statistics:
        """Copy of what a BatchNorm holds, in float64."""
        held = self._norm(name)
        return Statistics(_float64(held.running_mean), _float64(held.running_var))

    def set_statistics(self, name: str, statistics: Statistics) -> None:
        """Write statistics into a BatchNorm's own buffers."""
        import torch  # noqa: PLC0415

        held = self._norm(name)
        for part, values in zip((held.running_mean, held.running_var), statistics, strict=True):
            new = torch.tensor(np.asarray(values, np.float64))
            if new.shape != part.shape:
                message = f"expected {part.numel()} channels for {name!r}, found {new.numel()}"
                raise UsageError(message)
            with torch.inference_mode(mode=part.is_inference()), torch.no_grad():
                part.copy_(new)

    def run(
        self,
        batch: Sequence[Any],
        observer: Observer | None = None,
        *,
        only: Collection[str] | None = None,
        rounding: str = "",
    ) -> Arrays:
        """Run the model on one batch; with ``rounding``, every layer's inputs and outputs are rounded.

        A mapping in place of the batch gives inputs by keyword.
        """
        import torch  # noqa: PLC0415

        narrow = _narrow(rounding)
        device, dtype = self.place
        inputs: Any
        if self.by_name and not isinstance(batch, Mapping) and len(batch) == len(self.by_name):
            named = dict(zip(self.by_name, batch, strict=True))
            batch = {self.within: named} if self.within else named  # type: ignore[assignment]
        if isinstance(batch, Mapping):
            inputs = to_tensors(batch, device, dtype)
        else:
            inputs = tuple(to_tensors(each, device, dtype) for each in batch)
        if narrow is not None:
            inputs = rounded(inputs, narrow)
        calls = Calls(self.kinds, observer, only, narrow)
        with ExitStack() as stack:
            stack.enter_context(kept_buffers(self.module, self._addresses()))
            stack.enter_context(_evaluating(self.module))
            stack.enter_context(_eagerly(self.module))
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            stack.enter_context(torch.no_grad())
            stack.enter_context(_as_stored(device))
            try:
                outputs = self._called(inputs, calls)
            except Exception as error:
                reason = calls.reason(error, shapes_of(inputs))
                if reason is None:
                    raise
                raise reason from error
        calls.check()
        return floats_of(outputs)

    def table(self) -> TensorTable:
        """Tensors of the model as a table over live memory, without a copy."""
        from .torch_table import module_table  # noqa: PLC0415

        return module_table(self.module)

    @cached_property
    def _named(self) -> Mapping[str, nn.Module]:
        return dict(self.module.named_modules())

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Layers that a run can tell of, by name."""
        return {name: kind_of(each) for name, each in watched(self.module).items()}

    def _called(self, inputs: Any, calls: Calls) -> Any:
        """Run the model and have every call told."""
        with hooked(watched(self.module), calls):
            if isinstance(inputs, Mapping):
                return self.module(**inputs)
            return self.module(*inputs)

    @property
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Device and floating-point type that inputs are given in: those of the first weights."""
        import torch  # noqa: PLC0415

        held = [t for t in _values(self.module) if t.device.type != "meta"]
        usual = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        dtype = next((t.dtype for t in held if t.dtype in usual), torch.float32)
        return (held[0].device if held else torch.device("cpu")), dtype

    def _addresses(self) -> set[int]:
        """Where the running statistics are: observers set them, and they stay as they are set."""
        norms: list[Any] = [self._named[name] for name in self.norms]
        return {address(part) for n in norms for part in (n.running_mean, n.running_var)}

    def _norm(self, name: str) -> Any:
        if name not in self.norms:
            raise UsageError(f"no BatchNorm with running statistics is called {name!r:.200}")
        return self._named[name]


def _values(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _check_values(module: nn.Module) -> None:
    from torch.nn.parameter import is_lazy  # noqa: PLC0415

    offloaded = any(hasattr(each, "_hf_hook") for each in module.modules())
    for name, held in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(held):
            hint = "run the model once on data first"
            raise UsageError(f"{name!r} of the model has no shape yet", hint=hint)
        if held.device.type == "meta" and not offloaded:
            hint = "give it weights first"
            raise UsageError(f"{name!r} of the model is on the meta device: no values", hint=hint)


def _float64(values: torch.Tensor) -> Any:
    import torch  # noqa: PLC0415

    return values.detach().to("cpu", torch.float64).numpy(force=True).copy()


def _narrow(rounding: str) -> Any:
    import torch  # noqa: PLC0415

    if not rounding:
        return None
    if rounding not in ("float16", "bfloat16"):
        raise UsageError(f"expected rounding to be float16 or bfloat16, found {rounding!r:.100}")
    return getattr(torch, rounding)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inference mode for the time being, flag by flag.

    ``eval()`` and ``train()`` are not called: some classes override them to merge weights, or to
    keep a part frozen, and then one does not undo the other.
    """
    training = [each for each in module.modules() if getattr(each, "training", False)]
    try:
        for each in training:
            each.training = False
        yield
    finally:
        for each in training:
            each.training = True


@contextmanager
def _as_stored(device: torch.device) -> Iterator[None]:
    """Mixed precision that is on around the run is off in it."""
    import torch  # noqa: PLC0415

    with ExitStack() as stack:
        for kind in {"cpu", device.type}:
            with suppress(RuntimeError):  # a device without mixed precision
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _eagerly(module: nn.Module) -> Iterator[None]:
    """Compiled code, in which no hook is called, is left aside; so are fused transformer layers."""
    import torch  # noqa: PLC0415

    with ExitStack() as stack:
        if any(_is_compiled(each) for each in module.modules()) and hasattr(
            torch.compiler, "set_stance"
        ):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        mha: Any = getattr(torch.backends, "mha", None)
        if hasattr(mha, "get_fastpath_enabled") and mha.get_fastpath_enabled():
            mha.set_fastpath_enabled(False)
            stack.callback(mha.set_fastpath_enabled, True)
        yield


def _is_compiled(module: nn.Module) -> bool:
    called = getattr(module, "_compiled_call_impl", None)
    return called is not None or type(module).__name__ == "OptimizedModule"
