"""Causes: what may have happened, and the test on the evidence that says how sure that is.

``high`` is only said where the file itself shows it, ``medium`` where the file fits it better than
the alternatives, ``low`` where it is possible and worth ruling out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..results import Cause
from . import observations as see
from . import weigh
from .case import Case

__all__ = ["CAUSES", "CauseRow", "causes_of"]

_ORDER = {"high": 0, "medium": 1, "low": 2}


class CauseRow(NamedTuple):
    """A cause in words, and its test: confidence and observation, None where it is ruled out."""

    name: str
    text: str
    test: Callable[[Case], weigh.Told | None]


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


CAUSES: Mapping[str, CauseRow] = {
    row.name: row
    for row in (
        CauseRow(
            "overflow-skipped-step",
            "a forward pass overflowed float16; the loss scaler skipped the step, which protected "
            "the weights, but the statistics were already updated",
            weigh.overflow,
        ),
        CauseRow(
            "nonfinite-input",
            "NaN or Inf in the input of a batch whose step was skipped or guarded",
            weigh.nonfinite_input,
        ),
        CauseRow(
            "unnormalised-input",
            "batches whose values were not scaled as the others (0..255, 0..65535)",
            weigh.unnormalised,
        ),
        CauseRow(
            "batch-of-one",
            "a batch with one value per channel (batch size 1 on a dense layer or a 1x1 map): its "
            "variance is 0, or 0/0 where n - 1 divides",
            weigh.batch_of_one,
        ),
        CauseRow("huge-sample", "one sample of enormous values", weigh.huge_sample),
        CauseRow(
            "exploded-activations",
            "activations exploded for some batches, and the running averages kept it",
            weigh.exploded,
        ),
        CauseRow("cast-to-half", "the checkpoint was cast to a narrower type", weigh.cast),
        CauseRow(
            "checkpoint-arithmetic",
            "arithmetic on checkpoints: extrapolation, averaging with negative weights, an edit",
            weigh.arithmetic,
        ),
        CauseRow(
            "cancelled-variance",
            "a variance computed as mean of squares minus squared mean, less than 0 by rounding",
            weigh.cancelled,
        ),
        CauseRow(
            "corrupted-write", "bytes changed on disk, in memory or on the way", weigh.corrupted
        ),
        CauseRow(
            "momentum-zero",
            "a momentum with which running statistics never update (0 in torch, 1 in Keras)",
            weigh.momentum_zero,
        ),
        CauseRow(
            "averaged-weights",
            "weights were averaged, and BatchNorm's statistics not recomputed for them",
            weigh.averaged,
        ),
        CauseRow(
            "statistics-reset",
            "statistics were reset and never filled, or the layer only ever ran in inference mode",
            weigh.reset,
        ),
        CauseRow(
            "constant-input",
            "channels that are constant: dead units, empty bands",
            weigh.constant_input,
        ),
        CauseRow(
            "update-step",
            "a loss or gradient that was not finite went into a step that was not skipped",
            weigh.update_step,
        ),
        CauseRow("learning-rate", "a learning rate too high: training diverged", weigh.divergence),
        CauseRow("bad-data", "NaN in inputs or labels", weigh.nan_data),
        CauseRow(
            "gradient-spike", "a gradient spike went into the optimizer's moments", weigh.spike
        ),
        CauseRow("edited-state", "the optimizer's state was edited or corrupted", weigh.hand_edit),
        CauseRow(
            "transient-nan",
            "NaN for a few steps: one copy took it up, the other was restored or skipped it",
            weigh.transient,
        ),
        CauseRow(
            "skipped-steps",
            "step after step overflowed, each halving the loss scale: training stood still",
            weigh.scale,
        ),
        CauseRow(
            "wrong-schedule",
            "a scheduler that multiplies where it should divide, or a wrong unit",
            lambda case: ("medium", see.rate_or_nothing(case)),
        ),
        CauseRow(
            "pruned-row",
            "a row pruned to zero before weight normalisation, which divides by its norm",
            weigh.always("medium", "the direction is exactly 0, which training never gives"),
        ),
        CauseRow(
            "zero3-partition",
            "DeepSpeed ZeRO-3 saved the placeholders of parameters that live on other ranks",
            weigh.always("high", "shapes of no elements, with which no layer is made"),
        ),
        CauseRow(
            "partial-load",
            "weights that were never loaded, set to zero or left out of a conversion",
            weigh.always("medium", "trained layers have no exact zeros all over"),
        ),
        CauseRow(
            "constant-initialiser",
            "a constant initialiser: units that start equal stay equal, they get equal gradients",
            weigh.always("medium", "units are equal to each other, the layer is not zero"),
        ),
        CauseRow(
            "never-trained",
            "the layer was never trained: not in the optimizer, frozen, or added afterwards",
            weigh.always(
                "medium", "it still has its initialiser's distribution, its neighbours not"
            ),
        ),
        CauseRow(
            "decayed-away",
            "weight decay or pruning took a layer that nothing depends on",
            weigh.always("medium", "all of the layer is tiny, and finite"),
        ),
        CauseRow(
            "unset-memory",
            "memory that was reserved and never written (torch.empty, a meta tensor)",
            weigh.always("medium", "values of random exponents, as memory holds them"),
        ),
        CauseRow(
            "zero-range",
            "a scale computed from data without range: constant columns, an empty calibration set",
            weigh.always("medium", "a scale of 0 says that nothing varied"),
        ),
        CauseRow(
            "sparsity-training",
            "gammas shrunk by an L1 penalty or weight decay, to be pruned",
            weigh.always("medium", "gammas near 0, everything else ordinary"),
        ),
        CauseRow(
            "narrow-type",
            "the type has a smaller range than the values",
            weigh.always("high", "counted in the file"),
        ),
        CauseRow(
            "copied-statistics",
            "code that writes one statistic into another (a conversion script, equal names)",
            weigh.always("medium", "trained statistics are never equal to the last bit"),
        ),
        CauseRow(
            "converted-without-buffers",
            "a conversion or filter that kept parameters and dropped buffers",
            weigh.always("medium", "gamma is there, its statistics are not"),
        ),
        CauseRow(
            "other-model",
            "state of another model or of another order of its parameters",
            weigh.always("medium", "numbers and shapes do not match the weights"),
        ),
        CauseRow(
            "interrupted-write",
            "an interrupted download, copy or save",
            weigh.interrupted,
        ),
        CauseRow(
            "another-kind-of-file",
            "a file that is kept beside the weights: arguments, a scheduler, a tokenizer",
            weigh.always("high", "it holds no tensors"),
        ),
        CauseRow(
            "parts-of-another",
            "weights of a head or model that is not used here, or files of another save",
            weigh.always("medium", "names that nothing asks for"),
        ),
        CauseRow(
            "changed-after-writing",
            "bytes changed after the file was written: disk, memory, transfer, an edit",
            weigh.always("high", "a checksum stored in the file differs from its data"),
        ),
        CauseRow(
            "code-in-file",
            "it was saved as objects rather than tensors, or somebody put code in",
            weigh.always("high", "the names are in the file"),
        ),
        CauseRow(
            "ambiguous-writer",
            "a broken writer, two files glued together, or intent to show readers different data",
            weigh.always("medium", "readers of this file do not agree"),
        ),
        CauseRow(
            "built-so",
            "the model was built so",
            weigh.always("high", "it is in the stored configuration"),
        ),
    )
}
"""Every cause that a pattern may name."""
