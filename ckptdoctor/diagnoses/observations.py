"""Observations that causes and advice rest on: each looks at one thing, and says it or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..layers import Layer
from ..measure.stats import TensorStats
from .case import Case

__all__ = [
    "LARGEST",
    "averaging",
    "container_damage",
    "early",
    "exploded_upstream",
    "high_rate",
    "infinite_statistics",
    "infinite_variance_alone",
    "input_scale",
    "intact_copy",
    "least_variance",
    "listed",
    "narrow_types",
    "pairs",
    "partial_at_input",
    "rate_or_nothing",
    "some",
    "squared_overflow",
    "starts_at_first",
    "statistics_sound",
    "variance_alone",
    "zero_variances",
]

LARGEST = {"float16": "65504", "float8_e5m2": "57344"}
"""Types whose overflow is Inf, and the largest number of each."""
_AVERAGED = ("n_averaged", "swa_n", "ema_updates", "swa_count")


def listed(parts: Iterable[str]) -> str:
    """Join what there is to say, without what is empty."""
    return "; ".join(part for part in parts if part)


def some(names: Sequence[str], shown: int = 2) -> str:
    """Names, the first few and how many more."""
    if len(names) <= shown + 1:
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{', '.join(names[:shown])} and {len(names) - shown:,} more"


def _layers(case: Case) -> Iterator[Layer]:
    """Yield the BatchNorms with findings, in depth order."""
    seen: set[str] = set()
    for tensor in case.tensors:
        layer = case.facts.layer(tensor)
        if layer is not None and layer.kind == "batchnorm" and layer.key not in seen:
            seen.add(layer.key)
            yield layer


def pairs(case: Case) -> Iterator[tuple[TensorStats, TensorStats | None]]:
    """Yield variance and mean of the BatchNorms with findings."""
    for layer in _layers(case):
        var = case.facts.numbers(layer, "var")
        if var is not None:
            yield var, case.facts.numbers(layer, "mean")


def exploded_upstream(case: Case) -> str:
    """Tell of statistics that exploded, still finite, before the first that are not."""
    facts = case.facts
    bad = [facts.place_of(f) for f in case.of_code("BN001")]
    if not bad:
        return ""
    first = min(bad)
    for finding in case.of_code("BN003"):
        numbers = facts.ctx.stats[finding.tensor] if facts.info(finding.tensor) else None
        if numbers is None or numbers.nonfinite or facts.place_of(finding)[:1] >= first[:1]:
            continue
        return (
            f"{facts.place_of(finding).layer}, upstream of the NaN, has a variance of up to "
            f"{numbers.maximum:,.4g}"
        )
    return ""


def infinite_statistics(case: Case) -> str:
    """Tell of Inf among running means: a value out of range, no NaN."""
    for layer in _layers(case):
        mean = case.facts.numbers(layer, "mean")
        if mean is not None and (mean.posinf or mean.neginf):
            return f"the mean of {layer.name} holds Inf, which only a value out of range leaves"
    return ""


def starts_at_first(case: Case) -> bool:
    """Whether the first bad layer is the first BatchNorm of its copy of the network."""
    mine = next(_layers(case), None)
    if mine is None:
        return False
    graph = case.facts.ctx.graph
    depths = [
        graph.depth(layer) for layer in case.facts.ctx.layers.batchnorms if layer.role == mine.role
    ]
    return graph.depth(mine) == min(depths)


def partial_at_input(case: Case) -> str:
    """Tell of a BatchNorm on the input itself of which some channels are bad."""
    layer = next(_layers(case), None)
    if layer is None:
        return ""
    feed, mean = case.facts.ctx.graph.feeds.get(layer.key), case.facts.numbers(layer, "mean")
    if feed is None or feed.source != "input" or mean is None:
        return ""
    if not 0 < mean.nonfinite < mean.count:
        return ""
    verb = "is" if mean.nonfinite == 1 else "are"
    return (
        f"{layer.name} sees the input itself, and {mean.nonfinite:,} of its {mean.count:,} "
        f"channels {verb} bad"
    )


def all_on_input(case: Case) -> bool:
    """Whether every affected layer stands on the model's input."""
    feeds = [case.facts.ctx.graph.feeds.get(layer.key) for layer in _layers(case)]
    return bool(feeds) and all(feed is not None and feed.source == "input" for feed in feeds)


def input_scale(case: Case) -> str:
    """Tell the input scale that the first BatchNorm's variance implies."""
    for finding in case.of_code("BN003 first"):
        return finding.message
    if not starts_at_first(case) or "BN003" not in case.codes:
        return ""
    layer = next(_layers(case))
    var = case.facts.numbers(layer, "var")
    if var is None or var.maximum is None or var.maximum < 0:
        return ""
    return f"{layer.name} is the network's first, with a variance of {var.maximum:,.4g}"


def variance_alone(case: Case) -> str:
    """``all`` or ``some`` channels in which the variance is NaN and the mean is finite."""
    whole = True
    for var, mean in pairs(case):
        if mean is None or mean.nonfinite or var.posinf or var.neginf:
            return ""
        whole = whole and var.nan == var.count
    return "all" if whole else "some"


def infinite_variance_alone(case: Case) -> bool:
    """Whether variances are Inf beside finite means."""
    sick = [(var, mean) for var, mean in pairs(case) if var.nonfinite]
    return bool(sick) and all(
        var.posinf == var.nonfinite and mean is not None and not mean.nonfinite
        for var, mean in sick
    )


def least_variance(case: Case) -> float | None:
    """Lowest variance of the affected layers."""
    return min((v.minimum for v, _ in pairs(case) if v.minimum is not None), default=None)


def zero_variances(case: Case) -> tuple[bool, str]:
    """Whether variances are exactly 0 in whole layers, and which."""
    whole: list[str] = []
    part: list[str] = []
    for layer in _layers(case):
        var = case.facts.numbers(layer, "var")
        if var is not None and var.zeros:
            (whole if var.zeros == var.count else part).append(layer.name)
    return bool(whole), some(whole or part or list(case.layers))


def narrow_types(case: Case) -> str:
    """Type in which everything bad is stored, if it is one that overflows to Inf without NaN."""
    kinds = set()
    for tensor in case.tensors:
        info = case.facts.info(tensor)
        numbers = case.facts.ctx.stats[tensor] if info is not None else None
        if info is None or numbers is None or not numbers.nonfinite:
            continue
        if numbers.nan:
            return ""
        kinds.add(info.dtype)
    return kinds.pop() if len(kinds) == 1 and kinds <= set(LARGEST) else ""


def container_damage(case: Case) -> str:
    """Tell of a checksum that differs for one of the affected tensors."""
    for finding in case.facts.findings:
        if finding.code == "CK001" and (not finding.tensor or finding.tensor in case.tensors):
            return "the file's own checksum differs from its data"
    return ""


def averaging(case: Case) -> str:
    """Tell of traces of averaged weights."""
    for name in case.facts.ctx.table.infos:
        if name.rpartition(".")[2] in _AVERAGED:
            return f"{name} counts averaged weights"
    if case.roles == {"ema"}:
        return "the layers belong to an average of the weights"
    return ""


def statistics_sound(case: Case) -> bool:
    """Whether there are running statistics and all of them are finite."""
    return not case.facts.bad["statistics"] and any(True for _ in case.facts.ctx.layers.batchnorms)


def high_rate(case: Case) -> str:
    """Tell of a learning rate above what is usual."""
    settings = case.facts.settings
    return f"stored: {settings.rate_sentence}" if settings.rate_is_high else ""


def rate_or_nothing(case: Case) -> str:
    """Tell the learning rate, or that there is none in the file."""
    sentence = case.facts.settings.rate_sentence
    return f"stored: {sentence}" if sentence else "the file holds no learning rate to judge by"


def early(case: Case) -> str:
    """Tell that training had only begun."""
    step, epoch = case.facts.settings.step, case.facts.settings.epoch
    if step is not None and 0 < step < 100:
        return f"only {step:,.0f} steps were taken"
    return "it is epoch 0" if step is None and epoch == 0 else ""


def squared_overflow(case: Case) -> str:
    """Tell of second moments that are Inf: squares of gradients out of range."""
    for tensor in case.tensors:
        if "sq" in tensor or "/v/" in tensor or "velocity" in tensor:
            info = case.facts.info(tensor)
            if info is not None and case.facts.ctx.stats[tensor].posinf:
                return "second moments are Inf: gradients above 1e19 were squared"
    return ""


def intact_copy(case: Case) -> str:
    """``model`` or ``EMA`` where the other of the two is finite throughout."""
    roles = case.roles & {"model", "ema"}
    if len(roles) != 1:
        return ""
    return "EMA" if roles == {"model"} else "model"
