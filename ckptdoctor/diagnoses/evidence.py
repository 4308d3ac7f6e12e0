"""What in the file says so: the affected layers in depth order, the decision tree, the settings."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Severity
from ..layers import Layer
from ..measure.stats import TensorStats
from .case import Case

__all__ = ["evidence_of"]

_SHOWN = 3
"""Groups of layers that are described; the rest are counted."""
_MESSAGE = 160
"""Characters of a finding's message: the report lists it in full."""


def evidence_of(case: Case) -> tuple[str, ...]:
    """Sentences for a diagnosis, the layers first."""
    found = list(_places(case))
    # an average that went bad alone says nothing about the steps of the model
    if case.roles & {"model", "optimizer"} and case.branch.key != "nothing":
        found.append(case.branch.text)
    settings = "; ".join(case.facts.settings.sentences())
    if settings and case.roles - {"container"}:
        found.append(f"Stored: {settings}.")
    return tuple(found)


def _places(case: Case) -> Iterator[str]:
    """Describe layer after layer, those that read the same together."""
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    placed = sorted(((case.facts.place_of(finding), i) for i, finding in enumerate(case.findings)))
    for place, i in placed:
        finding = case.findings[i]
        if finding.severity is Severity.NOTE:
            continue
        layer = case.facts.layer(finding.tensor)
        if layer is not None and case.facts.is_statistic(finding.tensor):
            if layer.key in seen:
                continue
            seen.add(layer.key)
            name, text = _short(layer.name), _batchnorm(case, layer, finding)
        else:
            name, text = _named(finding, place.layer), _short(finding.message)
            if repr(finding.tensor) in finding.message:
                name = ""
        groups.setdefault(text, []).append(name)
    for text, names in list(groups.items())[:_SHOWN]:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {text}" if names[0] else text
    rest = sum(len(names) for names in list(groups.values())[_SHOWN:])
    if rest:
        yield f"{rest:,} more like these"


def _batchnorm(case: Case, layer: Layer, finding: Finding) -> str:
    """``mean and variance NaN in all 16 channels``; of finite ones what the finding says."""
    states = {}
    for part, word in (("mean", "mean"), ("var", "variance")):
        numbers = case.facts.numbers(layer, part)
        if numbers is not None:
            states[word] = _state(numbers, case.facts.bad_channels(layer.parts[part]))
    bad = {word: state for word, state in states.items() if state}
    if not bad:
        return _finite(case, layer, finding)
    if len(set(bad.values())) == 1 and len(bad) == 2:
        return f"mean and variance {bad['mean']}"
    said = [f"{word} {state or 'finite'}" for word, state in states.items()]
    return ", ".join(sorted(said, key=lambda text: text.endswith("finite")))


def _state(numbers: TensorStats, channels: str) -> str:
    if not numbers.nonfinite:
        return ""
    infinite = numbers.posinf + numbers.neginf
    kind = "NaN" if not infinite else "Inf" if not numbers.nan else "NaN and Inf"
    if numbers.nonfinite == numbers.count:
        return f"{kind} in all {numbers.count:,} channels"
    named = f" ({channels})" if channels else ""
    return f"{kind} in {numbers.nonfinite:,} of {numbers.count:,} channels{named}"


def _named(finding: Finding, layer: str) -> str:
    """Tensor, and its layer where the tensor's path hides the name."""
    if not finding.tensor or layer in finding.tensor or "parameter" in finding.measured:
        return _short(finding.tensor or layer)
    return f"{_short(layer)} ({_short(finding.tensor)})"


def _short(message: str) -> str:
    cut = message.find(";")
    message = message if cut < 0 else message[:cut]
    if len(message) <= _MESSAGE:
        return message
    space = message.rfind(" ", _MESSAGE // 2, _MESSAGE - 3)
    return message[: space if space > 0 else _MESSAGE - 3] + "..."


def _finite(case: Case, layer: Layer, finding: Finding) -> str:
    var = case.facts.numbers(layer, "var")
    if case.facts.code_of(finding) != "BN003" or var is None or var.minimum is None:
        return _short(finding.message)
    return f"variance {var.minimum:,.4g} to {var.maximum:,.4g}, finite but exploded"
