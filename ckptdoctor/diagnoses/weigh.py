"""Tests of causes on the evidence: how sure, and by which observation; None where ruled out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from . import observations as see
from .case import Case

__all__ = [
    "Told",
    "always",
    "arithmetic",
    "averaged",
    "batch_of_one",
    "cancelled",
    "cast",
    "constant_input",
    "corrupted",
    "divergence",
    "exploded",
    "hand_edit",
    "huge_sample",
    "interrupted",
    "momentum_zero",
    "nan_data",
    "nonfinite_input",
    "overflow",
    "reset",
    "scale",
    "spike",
    "transient",
    "unnormalised",
    "update_step",
]

Confidence = Literal["high", "medium", "low"]
Told = tuple[Confidence, str]


def overflow(case: Case) -> Told | None:
    """Float16 took part, and a forward pass left its range."""
    settings = case.facts.settings
    upstream, infinite = see.exploded_upstream(case), see.infinite_statistics(case)
    if not settings.mixed:
        absent = "nothing in the file says that float16 took part"
        return ("medium", see.listed([upstream, absent])) if upstream else ("low", absent)
    sound = "" if case.facts.bad["weights"] else "every weight is finite"
    said = [settings.mixed, settings.skipped, upstream or infinite, sound]
    # the three together are shown by the file: float16, a forward pass out of range, no update
    sure = bool(sound and (upstream or infinite))
    return "high" if sure else "medium", see.listed(said)


def nonfinite_input(case: Case) -> Told | None:
    """NaN reaches every layer from the input on."""
    partial = see.partial_at_input(case)
    if partial:
        return "high", partial
    upstream = see.exploded_upstream(case)
    if upstream:
        return "low", f"{upstream}: NaN from the input would have reached that layer too"
    if see.starts_at_first(case):
        return "medium", "the damage starts at the network's first BatchNorm"
    return "low", "layers before the first bad one are sound"


def unnormalised(case: Case) -> Told | None:
    """See the scale of the input at the first BatchNorm."""
    scale = see.input_scale(case)
    if scale:
        return "medium", scale
    if see.starts_at_first(case):
        return "low", "the damage starts at the network's first BatchNorm"
    return None


def batch_of_one(case: Case) -> Told | None:
    """Nothing varies in one value per channel."""
    if "BN004" in case.codes:
        whole, layers = see.zero_variances(case)
        if not whole:
            return None
        return "medium", f"the variance is exactly 0 in every channel of {layers}"
    alone = see.variance_alone(case)
    if not alone:
        return None
    if alone == "all":
        return "high", "the variance is NaN in every channel and the mean finite, as 0/0 leaves it"
    return "medium", "the variance is NaN where the mean is finite, as 0/0 leaves it"


def huge_sample(case: Case) -> Told | None:
    """Squares of enormous values are Inf, their mean is not."""
    if case.facts.float16(case.tensors):
        return None
    if see.infinite_variance_alone(case):
        return "high", "a variance of Inf beside a finite mean takes values above 1e19 in a batch"
    if case.codes & {"BN003"}:
        return "low", "a few enormous values are enough to lift an average for good"
    return None


def exploded(case: Case) -> Told | None:
    """Statistics far beyond what the weights can make."""
    if "BN003" not in case.codes:
        return None
    high = see.high_rate(case)
    return ("medium", f"{high}; the weights are finite again") if high else (
        "medium", "the weights are ordinary: what exploded were activations, and only for a while"
    )  # fmt: skip


def cast(case: Case) -> Told | None:
    """Overflow of a cast leaves Inf and no NaN."""
    kinds = see.narrow_types(case)
    if not kinds:
        told = case.of_code("BN008")
        return ("high", told[0].message) if told else None
    return "high", f"stored as {kinds}, which cannot hold more than {see.LARGEST[kinds]}"


def arithmetic(_: Case) -> Told | None:
    """Numbers that averaging cannot give."""
    return "medium", "no training can make a variance negative: it averages squares"


def cancelled(case: Case) -> Told | None:
    """Numbers just below zero."""
    low = see.least_variance(case)
    if low is None or low < -1e-3:
        return None
    return "medium", f"the lowest is {low:.3g}, as rounding leaves it where mean^2 is subtracted"


def corrupted(case: Case) -> Told | None:
    """Few elements, or a checksum that differs."""
    damaged = see.container_damage(case)
    if damaged:
        return "high", damaged
    bad, count = case.bad_share("weights")
    if case.few_elements:
        what = "1 element" if bad == 1 else f"{bad:,} elements"
        return "medium", f"{what} of {count:,}: an update with NaN spoils whole layers"
    if case.codes & {"WT004"}:
        return "medium", "single elements are off while their neighbours are ordinary"
    if case.codes & {"WT010", "BN002", "BN009", "WT001"}:
        return "low", "wrong bytes can look like anything, and the file states no checksum of them"
    return None


def momentum_zero(case: Case) -> Told | None:
    """Batches were counted and nothing was learned of them."""
    stored = case.facts.settings.never_updates
    if stored:
        return "high", f"stored: momentum {1 if case.facts.keras else 0} in {see.some(stored)}"
    if case.facts.settings.bn_momentum:
        return None
    return "medium", "every layer counts its batches, and none has moved from 0 and 1"


def averaged(case: Case) -> Told | None:
    """Traces of averaged weights."""
    trace = see.averaging(case)
    if trace:
        return "high", trace
    return "low", "nothing in the file says that weights were averaged"


def reset(_: Case) -> Told | None:
    """Nothing speaks for it, nothing against it."""
    return "low", "a reset without forward passes afterwards leaves exactly this"


def constant_input(case: Case) -> Told | None:
    """Channels that never vary are few, not whole layers."""
    if not case.codes & {"BN004", "BN010"}:
        return None
    whole, layers = see.zero_variances(case)
    if whole:
        return "low", "a batch of zeros, many times over, ends the same way"
    return "medium", f"only some channels of {layers} are affected: they never vary"


def update_step(case: Case) -> Told | None:
    """Whole layers that are not finite."""
    bad, count = case.bad_share("weights")
    if not bad:
        return None
    if case.few_elements:
        return "low", "an update with NaN spoils whole layers, here it is few elements"
    if case.branch.key == "after-spread":
        return "high", "the optimizer's moments are NaN or Inf too: they are made of gradients"
    if see.statistics_sound(case):
        return "high", "the statistics of the last forward pass are finite, the weights are not"
    return "medium", f"{bad:,} of {count:,} elements of the affected tensors are not finite"


def divergence(case: Case) -> Told | None:
    """Whole layers that are enormous, or a high rate."""
    high = see.high_rate(case)
    if case.codes & {"WT003"}:
        said = "whole layers are enormous, not single elements"
        return ("high", see.listed([said, high])) if high else ("medium", said)
    return ("medium", high) if high else ("low", see.rate_or_nothing(case))


def nan_data(case: Case) -> Told | None:
    """NaN at the very beginning."""
    early = see.early(case)
    return ("medium", early) if early else ("low", "NaN in the data gives a NaN loss as well")


def always(confidence: Confidence, observation: str) -> Callable[[Case], Told | None]:
    """Make a test that always says the same: the pattern itself is the observation."""
    return lambda _: (confidence, observation)


def spike(case: Case) -> Told | None:
    """Moments that are not finite beside sound weights."""
    squared = see.squared_overflow(case)
    if squared:
        return "high", squared
    if case.branch.key == "caught-in-time":
        return "high", "moments are made of gradients, and every weight is finite"
    if "TS002" in case.codes:
        return None
    return "medium", "moments are made of gradients"


def hand_edit(case: Case) -> Told | None:
    """Numbers that no optimizer makes."""
    if "TS002" in case.codes:
        return "medium", "a second moment averages squares: no optimizer makes it negative"
    return None


def transient(case: Case) -> Told | None:
    """One copy of two is sound."""
    good = see.intact_copy(case)
    return ("high", f"the {good} weights beside them are all finite") if good else None


def interrupted(case: Case) -> Told | None:
    """See data that is declared and not there."""
    if "CK004" in case.codes:
        return "high", "declared data is not in the file"
    return "medium", "what the file lists is not there"


def scale(case: Case) -> Told | None:
    """Repeat what the rule about the scale saw."""
    return "high", "; ".join(finding.message for finding in case.of_code("TS005")[:1])
