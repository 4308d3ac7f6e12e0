"""Lines of Python that repair running statistics, with the names that the user's model has."""

from __future__ import annotations

import re

from .case import Case

__all__ = ["copy_or_recompute", "float32_batchnorm", "recompute_all"]

_NAMED = 3
"""Layers that are listed by name."""
_TORCH_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")


def copy_or_recompute(case: Case) -> tuple[str, ...]:
    """Recompute in torch; copy from an earlier model in Keras, where nothing resets statistics."""
    names = _names(case)
    if names is None:
        return ()
    return _keras(names) if case.facts.keras else _torch(names)


def recompute_all(case: Case) -> tuple[str, ...]:
    """Recompute the statistics of every BatchNorm, with a momentum that updates them."""
    if case.facts.keras:
        return ()
    return (
        'for m in (m for m in model.modules() if hasattr(m, "running_var")):',
        "    m.reset_running_stats(); m.momentum = 0.1",
        "torch.optim.swa_utils.update_bn(train_loader, model)",
    )


def float32_batchnorm(case: Case) -> tuple[str, ...]:
    """Cast to half, all but BatchNorm."""
    if case.facts.keras:
        return ()
    return (
        "model.half()",
        'for m in (m for m in model.modules() if hasattr(m, "running_var")):',
        "    m.float()",
    )


def _names(case: Case) -> list[str] | None:
    """Names as the user's model has them; empty for every BatchNorm, None where none can be told."""
    every = sum(1 for layer in case.facts.ctx.layers.batchnorms if layer.role in case.roles)
    if len(case.layers) > _NAMED:
        return [] if len(case.layers) == every else None
    names = [_torch_name(case, tensor) for tensor in case.tensors]
    if case.facts.keras:
        names = list(case.layers)
    unusual = any(not re.fullmatch(r"[\w./-]{1,60}", name, re.ASCII) for name in names)
    return None if unusual or not names else list(dict.fromkeys(names))


def _torch_name(case: Case, tensor: str) -> str:
    """Module's name: without the keys of the containers around its state dict."""
    info = case.facts.info(tensor)
    layer = case.facts.layer(tensor)
    name = layer.name if layer is not None else tensor.rpartition(".")[0]
    if info is not None and "." in info.path[-1]:
        name = info.path[-1].rpartition(".")[0]
    return _TORCH_PREFIX.sub("", name)


def _torch(names: list[str]) -> tuple[str, ...]:
    bad = (
        f"map(model.get_submodule, {_listed(names)})"
        if names
        else '(m for m in model.modules() if hasattr(m, "running_var"))'
    )
    return (
        "model.eval()",
        f"for bn in {bad}:",
        "    bn.reset_running_stats(); bn.momentum = None; bn.train()",
        "with torch.no_grad(): [model(batch) for batch in training_batches]",
    )


def _keras(names: list[str]) -> tuple[str, ...]:
    parents = {name.rpartition("/")[0] for name in names}
    if not names or len(parents) > 1:
        return ()
    get = "".join(f'.get_layer("{part}")' for part in parents.pop().split("/") if part)
    models = f"(m{get} for m in (model, earlier))" if get else "model, earlier"
    return (
        f"net, old = {models}",
        f"for name in {_listed([name.rpartition('/')[2] for name in names])}:",
        "    new, was = net.get_layer(name), old.get_layer(name)",
        "    new.moving_mean.assign(was.moving_mean)",
        "    new.moving_variance.assign(was.moving_variance)",
    )


def _listed(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
