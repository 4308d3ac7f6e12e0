"""Which tensor of an average belongs to which of the model, by names, shapes and order."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

from ..roles import role_of
from ..tensors import TensorInfo
from .base import Context
from .optimizer_slots import model_parameters
from .training_state import infos_of

__all__ = ["ema_copies"]

_PROBES = 8
"""Names of an average that are searched among the model's for what comes before them."""

_WRAPPERS = frozenset({"module", "model", "ema_model", "net", "_orig_mod"})
"""First words of an average's names that its copy in the model does not have."""

_SHARE = 0.5
"""Share of an average's tensors that must be found under one prefix, with their shapes."""


def ema_copies(ctx: Context) -> Mapping[str, str]:
    """Tensor of the average -> the same tensor of the model.

    The two have the same names below different containers (``ema_state_dict.fc.weight`` and
    ``model.fc.weight``), perhaps inside a wrapper (``ema.module.fc.weight``), perhaps without
    their dots (latent diffusion's ``model_ema.fcweight``), or the average is a list in the
    order of the model's parameters (``ema_state.shadow_params.7``).
    """
    model = infos_of(ctx, "model")
    copies: dict[str, str] = {}
    if model:
        for container, tails in _averages(infos_of(ctx, "ema")).items():
            copies.update(_of_one(ctx, container, tails, model))
    return copies


def _averages(infos: Sequence[TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Every average's container -> its tensors by the rest of their names."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for info in infos:
        words = info.name.split(".")
        depth = next((i for i, word in enumerate(words[:-1]) if _is_ema(word)), None)
        if depth is not None:
            container = ".".join(words[: depth + 1])
            found.setdefault(container, {})[".".join(words[depth + 1 :])] = info
    return found


@functools.lru_cache(maxsize=4096)
def _is_ema(word: str) -> bool:
    return role_of((word, "x")) == "ema"


def _of_one(
    ctx: Context, container: str, tails: Mapping[str, TensorInfo], model: Sequence[TensorInfo]
) -> dict[str, str]:
    if all(tail.rpartition(".")[2].isdecimal() for tail in tails):
        return _by_order(list(tails.values()), model_parameters(ctx))
    hint = container.rpartition(".")[2].lower().replace("ema", "").strip("_")
    dotted = {info.name: info for info in model}
    plain: dict[str, TensorInfo | None] = {}
    for info in model:  # two names may be the same without their dots: neither is known then
        name = info.name.replace(".", "")
        plain[name] = None if name in plain else info
    certain = {name: info for name, info in plain.items() if info}
    found = _under_prefix(tails, dotted, hint, ".")
    bare = tails
    for _ in range(2):
        if found or {tail.partition(".")[0] for tail in bare} - _WRAPPERS:
            break
        bare = {tail.partition(".")[2]: info for tail, info in bare.items()}
        if len(bare) == len(tails):
            found = _under_prefix(bare, dotted, hint, ".")
    return found or _under_prefix(tails, certain, hint, "")


def _by_order(ema: Sequence[TensorInfo], model: Sequence[TensorInfo]) -> dict[str, str]:
    if [info.shape for info in ema] != [info.shape for info in model]:
        return {}
    return {a.name: b.name for a, b in zip(ema, model, strict=True)}


def _under_prefix(
    tails: Mapping[str, TensorInfo], model: Mapping[str, TensorInfo], hint: str, dot: str
) -> dict[str, str]:
    """Match under the prefix of the model's names that most of the average's are found under."""
    if not tails:
        return {}
    names = list(tails)
    probes = names[:: max(1, len(names) // _PROBES)][:_PROBES]
    votes = Counter(
        name[: -len(probe)]
        for probe in probes
        for name in model
        if name.endswith(probe) and (len(name) == len(probe) or name[: -len(probe)].endswith(dot))
    )

    def matches(prefix: str) -> dict[str, str]:
        found = {}
        for tail, info in tails.items():
            other = model.get(prefix + tail)
            if other is not None and other.shape == info.shape:
                found[info.name] = other.name
        return found

    def merit(prefix: str) -> tuple[int, bool, int]:
        return len(matches(prefix)), bool(hint) and hint in prefix.split("."), -len(prefix)

    # the right one has a vote from nearly every probe; hostile names could give one to thousands
    likely = [prefix for prefix, _ in votes.most_common(_PROBES)]
    best = max(likely, key=merit, default=None)
    found = {} if best is None else matches(best)
    return found if len(found) >= _SHARE * len(tails) else {}
