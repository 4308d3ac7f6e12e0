"""What a PyTorch module states about its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["stated_inputs"]

Stated = Sequence[tuple[tuple[int | None, ...], str]]


def stated_inputs(module: nn.Module) -> Stated:
    """Shapes and dtypes of the inputs as Lightning, transformers or timm state them.

    Else those that the first layer with weights takes, where it is a convolution, a dense or an
    embedding layer; it need not be the first that is called.  Empty where nothing is known.
    """
    from .torch_values import tensors_in  # noqa: PLC0415

    example = getattr(module, "example_input_array", None)
    if example is None:
        example = _only_input(module)
    if example is not None:
        return [
            (
                (None, *tensor.shape[1:]) if tensor.dim() else (),
                str(tensor.dtype).removeprefix("torch."),
            )
            for tensor in tensors_in(example)
        ]
    for holder in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, holder, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if isinstance(size, tuple | list) and size and all(isinstance(n, int) for n in size):
            return [((None, *size), "float32")]
    return _of_first_layer(module)


def _of_first_layer(module: nn.Module) -> Stated:
    """Return what the first layer with weights takes, if it is one that says so."""
    from torch import nn  # noqa: PLC0415

    first = next(
        (
            each
            for each in module.modules()
            if next(each.parameters(recurse=False), None) is not None
        ),
        None,
    )
    if isinstance(first, nn.Linear):
        return [((None, first.in_features), "float32")]
    if isinstance(first, nn.Embedding):
        return [((None, None), "int64")]
    for rank, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1):
        if isinstance(first, kind):
            return [((None, first.in_channels, *(None,) * rank), "float32")]
    return []


def _only_input(module: nn.Module) -> Any:
    """``dummy_inputs`` of a transformers model that needs no more than its main one."""
    try:
        stated = getattr(module, "dummy_inputs", None)
    except Exception:  # noqa: BLE001  (a property of the user's class may fail as it likes)
        return None
    main = getattr(module, "main_input_name", None)
    return stated[main] if isinstance(stated, Mapping) and list(stated) == [main] else None
