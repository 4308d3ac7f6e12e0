"""Causes: what may have happened, and the test on the evidence that says how sure that is.

``high`` is only said where the file itself shows it, ``medium`` where the file fits it better than
the alternatives, ``low`` where it is possible and worth ruling out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..results import Cause
from . import observations as see
from .case import Case

__all__ = ["CAUSES", "CauseRow", "causes_of"]

Confidence = Literal["high", "medium", "low"]
Told = tuple[Confidence, str]
_ORDER = {"high": 0, "medium": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class CauseRow:
    """A cause in words, and its test: confidence and observation, None where it is ruled out."""

    name: str
    text: str
    test: Callable[[Case], Told | None]


def causes_of(case: Case, names: tuple[str, ...]) -> tuple[Cause, ...]:
    """Weigh the causes of these names, most likely first; of equals, the order of ``names``."""
    found = []
    for name in names:
        row = CAUSES[name]
        told = row.test(case)
        if told is not None:
            confidence, observation = told
            found.append(
                Cause(name=name, text=row.text, confidence=confidence, observation=observation)
            )
    return tuple(sorted(found, key=lambda cause: _ORDER[cause.confidence]))


def _overflow(case: Case) -> Told | None:
    settings = case.facts.settings
    upstream, infinite = see.exploded_upstream(case), see.infinite_statistics(case)
    if not settings.mixed:
        return "low", "nothing in the file says that float16 took part"
    said = [settings.mixed, settings.skipped, upstream or infinite, "every weight is finite"]
    # the three together are shown by the file: float16, a forward pass out of range, no update
    sure = bool(upstream or infinite)
    return "high" if sure else "medium", see.listed(said)


def _nonfinite_input(case: Case) -> Told | None:
    partial = see.partial_at_input(case)
    if partial:
        return "high", partial
    upstream = see.exploded_upstream(case)
    if upstream:
        return "low", f"{upstream}: NaN from the input would have reached that layer too"
    if see.starts_at_first(case):
        return "medium", "the damage starts at the network's first BatchNorm"
    return "low", "layers before the first bad one are sound"


def _unnormalised(case: Case) -> Told | None:
    scale = see.input_scale(case)
    if scale:
        return "medium", scale
    if see.starts_at_first(case):
        return "low", "the damage starts at the network's first BatchNorm"
    return None


def _batch_of_one(case: Case) -> Told | None:
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


def _huge_sample(case: Case) -> Told | None:
    if case.facts.float16(case.tensors):
        return None
    if see.infinite_variance_alone(case):
        return "high", "a variance of Inf beside a finite mean takes values above 1e19 in a batch"
    if case.codes & {"BN003"}:
        return "low", "a few enormous values are enough to lift an average for good"
    return None


def _exploded(case: Case) -> Told | None:
    if "BN003" not in case.codes:
        return None
    high = see.high_rate(case)
    return ("medium", f"{high}; the weights are finite again") if high else (
        "medium", "the weights are ordinary: what exploded were activations, and only for a while"
    )  # fmt: skip


def _cast(case: Case) -> Told | None:
    kinds = see.narrow_types(case)
    if not kinds:
        told = case.of_code("BN008")
        return ("high", told[0].message) if told else None
    return "high", f"stored as {kinds}, which cannot hold more than {see.LARGEST[kinds]}"


def _arithmetic(_: Case) -> Told | None:
    return "medium", "no training can make a variance negative: it averages squares"


def _cancelled(case: Case) -> Told | None:
    low = see.least_variance(case)
    if low is None or low < -1e-3:
        return None
    return "medium", f"the lowest is {low:.3g}, as rounding leaves it where mean^2 is subtracted"


def _corrupted(case: Case) -> Told | None:
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


def _momentum_zero(case: Case) -> Told | None:
    stored = case.facts.settings.never_updates
    if stored:
        return "high", f"stored: momentum {1 if case.facts.keras else 0} in {see.some(stored)}"
    if case.facts.settings.bn_momentum:
        return None
    return "medium", "every layer counts its batches, and none has moved from 0 and 1"


def _averaged(case: Case) -> Told | None:
    trace = see.averaging(case)
    if trace:
        return "high", trace
    return "low", "nothing in the file says that weights were averaged"


def _reset(_: Case) -> Told | None:
    return "low", "a reset without forward passes afterwards leaves exactly this"


def _constant_input(case: Case) -> Told | None:
    whole, layers = see.zero_variances(case)
    if whole:
        return "low", "a batch of zeros, many times over, ends the same way"
    return "medium", f"only some channels of {layers} are affected: they never vary"


def _update_step(case: Case) -> Told | None:
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


def _divergence(case: Case) -> Told | None:
    high = see.high_rate(case)
    if case.codes & {"WT003"}:
        said = "whole layers are enormous, not single elements"
        return ("high", see.listed([said, high])) if high else ("medium", said)
    return ("medium", high) if high else ("low", see.rate_or_nothing(case))


def _nan_data(case: Case) -> Told | None:
    early = see.early(case)
    return ("medium", early) if early else ("low", "NaN in the data gives a NaN loss as well")


def _always(confidence: Confidence, observation: str) -> Callable[[Case], Told | None]:
    return lambda _: (confidence, observation)


def _spike(case: Case) -> Told | None:
    squared = see.squared_overflow(case)
    if squared:
        return "high", squared
    if case.branch.key == "caught-in-time":
        return "high", "moments are made of gradients, and every weight is finite"
    if "TS002" in case.codes:
        return None
    return "medium", "moments are made of gradients"


def _hand_edit(case: Case) -> Told | None:
    if "TS002" in case.codes:
        return "medium", "a second moment averages squares: no optimizer makes it negative"
    return None


def _transient(case: Case) -> Told | None:
    good = see.intact_copy(case)
    return ("high", f"the {good} weights beside them are all finite") if good else None


def _scale(case: Case) -> Told | None:
    return "high", "; ".join(finding.message for finding in case.of_code("TS005")[:1])


CAUSES: Mapping[str, CauseRow] = {
    row.name: row
    for row in (
        CauseRow(
            "overflow-skipped-step",
            "a forward pass overflowed float16; the loss scaler skipped the step, which saved the "
            "weights, but the statistics were already updated",
            _overflow,
        ),
        CauseRow(
            "nonfinite-input",
            "NaN or Inf in the input of a batch whose step was skipped or guarded",
            _nonfinite_input,
        ),
        CauseRow(
            "unnormalised-input",
            "batches whose values were not scaled as the others (0..255, 0..65535)",
            _unnormalised,
        ),
        CauseRow(
            "batch-of-one",
            "a batch with one value per channel (batch size 1 on a dense layer or a 1x1 map): its "
            "variance is 0, or 0/0 where n - 1 divides",
            _batch_of_one,
        ),
        CauseRow("huge-sample", "one sample of enormous values", _huge_sample),
        CauseRow(
            "exploded-activations",
            "activations exploded for some batches, and the running averages kept it",
            _exploded,
        ),
        CauseRow("cast-to-half", "the checkpoint was cast to a narrower type", _cast),
        CauseRow(
            "checkpoint-arithmetic",
            "arithmetic on checkpoints: extrapolation, averaging with negative weights, an edit",
            _arithmetic,
        ),
        CauseRow(
            "cancelled-variance",
            "a variance computed as mean of squares minus squared mean, less than 0 by rounding",
            _cancelled,
        ),
        CauseRow("corrupted-write", "bytes changed on disk, in memory or on the way", _corrupted),
        CauseRow(
            "momentum-zero",
            "a momentum with which running statistics never update (0 in torch, 1 in Keras)",
            _momentum_zero,
        ),
        CauseRow(
            "averaged-weights",
            "weights were averaged, and BatchNorm's statistics not recomputed for them",
            _averaged,
        ),
        CauseRow("statistics-reset", "statistics were reset and never filled again", _reset),
        CauseRow(
            "constant-input", "channels that are constant: dead units, empty bands", _constant_input
        ),
        CauseRow(
            "update-step",
            "a loss or gradient that was not finite went into a step that was not skipped",
            _update_step,
        ),
        CauseRow("learning-rate", "a learning rate too high: training diverged", _divergence),
        CauseRow("bad-data", "NaN in inputs or labels", _nan_data),
        CauseRow("gradient-spike", "a gradient spike went into the optimizer's moments", _spike),
        CauseRow("edited-state", "the optimizer's state was edited or corrupted", _hand_edit),
        CauseRow(
            "transient-nan",
            "NaN for a few steps: one copy took it up, the other was restored or skipped it",
            _transient,
        ),
        CauseRow(
            "skipped-steps",
            "step after step overflowed, each halving the loss scale: training stood still",
            _scale,
        ),
        CauseRow(
            "wrong-schedule",
            "a scheduler that multiplies where it should divide, or a wrong unit",
            lambda case: ("medium", see.rate_or_nothing(case)),
        ),
        CauseRow(
            "pruned-row",
            "a row pruned to zero before weight normalisation, which divides by its norm",
            _always("medium", "the direction is exactly 0, which training never gives"),
        ),
        CauseRow(
            "zero3-partition",
            "DeepSpeed ZeRO-3 saved the placeholders of parameters that live on other ranks",
            _always("high", "shapes of no elements, with which no layer is made"),
        ),
        CauseRow(
            "partial-load",
            "weights that were never loaded, set to zero or left out of a conversion",
            _always("medium", "trained layers have no exact zeros all over"),
        ),
        CauseRow(
            "constant-initialiser",
            "a constant initialiser: units that start equal stay equal, they get equal gradients",
            _always("medium", "units are equal to each other, the layer is not zero"),
        ),
        CauseRow(
            "never-trained",
            "the layer was never trained: not in the optimizer, frozen, or added afterwards",
            _always("medium", "it still has its initialiser's distribution, its neighbours not"),
        ),
        CauseRow(
            "decayed-away",
            "weight decay or pruning took a layer that nothing depends on",
            _always("medium", "all of the layer is tiny, and finite"),
        ),
        CauseRow(
            "unset-memory",
            "memory that was reserved and never written (torch.empty, a meta tensor)",
            _always("medium", "values of random exponents, as memory holds them"),
        ),
        CauseRow(
            "zero-range",
            "a scale computed from data without range: constant columns, an empty calibration set",
            _always("medium", "a scale of 0 says that nothing varied"),
        ),
        CauseRow(
            "sparsity-training",
            "gammas shrunk by an L1 penalty or weight decay, to be pruned",
            _always("medium", "gammas near 0, everything else ordinary"),
        ),
        CauseRow(
            "narrow-type",
            "the type has a smaller range than the values",
            _always("high", "counted in the file"),
        ),
        CauseRow(
            "copied-statistics",
            "code that writes one statistic into another (a conversion script, equal names)",
            _always("medium", "trained statistics are never equal to the last bit"),
        ),
        CauseRow(
            "converted-without-buffers",
            "a conversion or filter that kept parameters and dropped buffers",
            _always("medium", "gamma is there, its statistics are not"),
        ),
        CauseRow(
            "other-model",
            "state of another model or of another order of its parameters",
            _always("medium", "numbers and shapes do not match the weights"),
        ),
        CauseRow(
            "interrupted-write",
            "an interrupted download, copy or save",
            _always("high", "declared data is not in the file"),
        ),
        CauseRow(
            "changed-after-writing",
            "bytes changed after the file was written: disk, memory, transfer, an edit",
            _always("high", "a checksum stored in the file differs from its data"),
        ),
        CauseRow(
            "code-in-file",
            "it was saved as objects rather than tensors, or somebody put code in",
            _always("high", "the names are in the file"),
        ),
        CauseRow(
            "ambiguous-writer",
            "a broken writer, two files glued together, or intent to show readers different data",
            _always("medium", "readers of this file do not agree"),
        ),
        CauseRow(
            "built-so",
            "the model was built so",
            _always("high", "it is in the stored configuration"),
        ),
    )
}
"""Every cause that a pattern may name."""
