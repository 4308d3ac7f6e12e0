"""Advice: what to change so that it does not happen again, shown where evidence calls for it.

One table.  A row is shown when the diagnosis is one of its ``patterns`` or names one of its
``causes`` with more than low confidence, and its test finds what to point at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..results import Cause
from . import observations as see
from .case import Case
from .hyperparameters import HALF_TINY

__all__ = ["ADVICE", "Advice", "advice_for"]

_MOST = 4
"""Rows of one diagnosis: more is a list, not advice."""


class Advice(NamedTuple):
    """One row.

    Parameters
    ----------
    key
        Identity.
    text
        What to do.
    causes, patterns
        What calls for it.
    because
        The observation that makes it fit, empty where it does not; where None, the cause is one.
    """

    key: str
    text: str
    causes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    because: Callable[[Case], str] | None = None


def advice_for(case: Case, pattern: str, causes: Sequence[Cause]) -> tuple[str, ...]:
    """Rows that the evidence of a diagnosis calls for, each with that evidence."""
    likely = [cause.name for cause in causes if cause is causes[0] or cause.confidence != "low"]
    found = []
    for row in ADVICE:
        called = [name for name in likely if name in row.causes]
        if pattern not in row.patterns and not called:
            continue
        because = row.because(case) if row.because else f"against {(called or [pattern])[0]}"
        if because:
            found.append(f"{row.text} ({because})")
    return tuple(found[:_MOST])


def _always(text: str) -> Callable[[Case], str]:
    return lambda _: text


def _mixed(case: Case) -> str:
    return case.facts.settings.mixed


def _small_epsilon(case: Case) -> str:
    epsilon = case.facts.settings.epsilon
    half = case.facts.settings.mixed or case.facts.float16(case.facts.ctx.table.infos)
    if epsilon is None or epsilon >= HALF_TINY or not half:
        return ""
    return f"stored: {epsilon:g}, which is 0 in float16"


def _keras(case: Case) -> str:
    return "a Keras file" if case.facts.keras else ""


def _no_decay(case: Case) -> str:
    return "stored: weight_decay 0" if case.facts.settings.weight_decay == 0 else ""


def _no_norm(case: Case) -> str:
    layers = case.facts.ctx.layers
    has = any(True for _ in layers.of_kind("batchnorm", "norm", "normalization"))
    return "" if has or not layers.all else "the file holds no normalisation layer"


def _recurrent(case: Case) -> str:
    layer = next(case.facts.ctx.layers.of_kind("recurrent"), None)
    return f"{layer.name} is recurrent" if layer is not None else ""


def _frozen(case: Case) -> str:
    """Tell that part of the network was frozen, and the affected layers were not."""
    every = [layer for layer in case.facts.ctx.layers.batchnorms if layer.role in case.roles]
    counts: dict[bool, set[float]] = {True: set(), False: set()}
    for layer in every:
        numbers = case.facts.numbers(layer, "count")
        if numbers is not None and numbers.maximum is not None:
            counts[layer.name in case.layers].add(numbers.maximum)
        elif layer.config is not None and layer.config.settings.get("trainable") is False:
            return f"{layer.name} is stored as not trainable"
    if counts[True] and counts[False] and min(counts[True]) > max(counts[False]):
        return "the affected layers counted more batches than the others, which were frozen"
    return ""


def _decoder(case: Case) -> str:
    words = ("decoder", "up", "dec")
    inside = [n for n in case.layers if any(part.startswith(words) for part in n.split("."))]
    return "every affected layer is in it" if inside and len(inside) == len(case.layers) else ""


def _groups(case: Case) -> str:
    rates = set(case.facts.settings.rates.values())
    return f"stored: {len(rates)} different learning rates" if len(rates) > 1 else ""


def _head(case: Case) -> str:
    layers = case.facts.ctx.layers.all
    if layers and case.layers == (layers[-1].name,):
        return f"only the last layer, {case.suspect}, is affected: the loss comes next"
    return ""


def _several(case: Case) -> str:
    return "several layers without BatchNorm between them" if len(case.layers) > 3 else ""


def _big_momentum(case: Case) -> str:
    for tensor in case.tensors:
        info = case.facts.info(tensor)
        if info is not None and "exp_avg" in tensor and "sq" not in tensor:
            top = case.facts.ctx.stats[tensor].maximum
            if top is not None and top > 1e3:
                return f"first moments reach {top:.3g} beside ordinary weights"
    return ""


def _divides_by_zero(case: Case) -> str:
    return "a scale is broken" if "WT011" in case.codes else see.partial_at_input(case)


_STATS = ("bn-stats-nan", "bn-var-nan", "bn-var-inf", "bn-var-exploded")

ADVICE: tuple[Advice, ...] = (
    Advice("not-the-gradients", "A lower learning rate or gradient clipping does not heal this file: "
           "statistics are written by the forward pass", patterns=("bn-stats-nan", "bn-var-inf"),
           because=lambda case: "every weight is finite" if not case.facts.bad["weights"] else ""),
    Advice("guard-the-forward-pass", "Skipping the step comes too late for BatchNorm: test input and "
           "loss with isfinite, and on a bad batch restore the statistics too",
           causes=("overflow-skipped-step", "nonfinite-input"),
           because=_always("only the weights were protected")),
    Advice("freeze-properly", "To freeze BatchNorm call .eval() on it (Keras: trainable=False) after "
           "every .train(): requires_grad=False stops gamma and beta, not the running statistics",
           patterns=_STATS, because=_frozen),
    Advice("float32-ends", "Keep the input layers, the last BatchNorm and the head in float32 "
           "(Keras: dtype='float32'; torch: autocast(enabled=False)), or train in bfloat16, whose "
           "range is float32's", causes=("overflow-skipped-step",), because=_mixed),
    Advice("larger-epsilon", "Raise epsilon: 1e-4 for Adam, 1e-3 for BatchNorm (RMSprop 1e-2) in half "
           "precision, whose smallest number is 6e-8",
           causes=("overflow-skipped-step", "update-step", "built-so"),
           patterns=("epsilon-too-small",), because=_small_epsilon),
    Advice("find-the-batch", "Run the data through with batch size 1 and no shuffling, and test each "
           "batch with isfinite; fill missing values with the column's mean before normalising",
           causes=("nonfinite-input", "bad-data", "huge-sample")),
    Advice("silent-division", "A Normalize that divides by a deviation of 0 turns constant columns "
           "into NaN; numpy.seterr(all='ignore') hides the warning",
           causes=("nonfinite-input", "zero-range"), patterns=("scale-broken",),
           because=_divides_by_zero),
    Advice("normalise-inputs", "Scale every input the same way (/255, then mean and deviation), and "
           "assert its range where batches are made",
           causes=("unnormalised-input", "huge-sample"), patterns=("bn-input-scale",)),
    Advice("serve-the-same-scale", "Serve with the scaling of training: the statistics hold for inputs "
           "that look the same", patterns=("bn-input-scale",),
           because=_always("the first BatchNorm implies a large one")),
    Advice("no-batch-of-one", "Never normalise a batch of one: drop_last=True (Keras: "
           "drop_remainder=True), GroupNorm or LayerNorm for small batches",
           causes=("batch-of-one",)),
    Advice("fused-on-1x1", "On GPUs Keras' fused BatchNorm divides by n - 1, which is 0 for one sample "
           "on a 1x1 map: fused=False, or larger batches (keras-team/keras#17204)",
           causes=("batch-of-one",), because=_keras),
    Advice("decoder-alone", "Freeze or replace BatchNorm in the decoder alone, and recompute only its "
           "statistics", patterns=_STATS, because=_decoder),
    Advice("train-mode-check", "To confirm: in training mode the same model predicts well; as a stopgap "
           "track_running_stats=False works for batches of more than one, and breaks ONNX export",
           patterns=_STATS, because=_always("training mode does not read the stored statistics")),
    Advice("names-not-positions", "Assign statistics by name (layer.moving_mean), never by the position "
           "in set_weights: layers without gamma or beta have shorter lists",
           patterns=_STATS, because=_keras),
    Advice("bound-activations", "Bound activations (ReLU6, clipping), or put a normalisation before the "
           "sum that grows", causes=("exploded-activations",),
           because=_always("variances grow where nothing bounds them")),
    Advice("same-distribution", "Statistics serve only data like that they were taken from: recompute "
           "them with shuffled training data as it is served",
           patterns=("bn-var-exploded", "bn-stats-stale", "bn-stats-copied"),
           because=_always("the statistics do not fit the layers")),
    Advice("right-formula", "BatchNorm computes (x - mean) / sqrt(var + epsilon) * gamma + beta, epsilon "
           "under the root", patterns=("bn-var-zero", "bn-var-negative"),
           because=_always("what var + epsilon comes to decides")),
    Advice("momentum", "Momentum is the share of the new batch in torch (0.1) and of the old average in "
           "Keras (0.99): 0 in torch and 1 in Keras never learn",
           causes=("momentum-zero",), patterns=("momentum-never-updates",)),
    Advice("update-bn", "After averaging weights recompute BatchNorm: "
           "torch.optim.swa_utils.update_bn(loader, model)",
           causes=("averaged-weights",)),
    Advice("average-weights-only", "Extrapolate weights, never variances: take those of one checkpoint, "
           "or recompute them", causes=("checkpoint-arithmetic",)),
    Advice("float32-batchnorm", "Leave BatchNorm in float32 when casting (.half() does not), or cast to "
           "bfloat16", causes=("cast-to-half",), patterns=("bn-cast-to-half", "cast-loses-values")),
    Advice("clip-by-norm", "Clip gradients by norm before the step (torch.nn.utils.clip_grad_norm_, "
           "max_norm 1 to 20, after scaler.unscale_); clipping by value turns their direction",
           causes=("update-step", "gradient-spike", "learning-rate")),
    Advice("lower-rate", "Lower the learning rate tenfold (1e-4 to 1e-5), or warm it up",
           causes=("update-step", "learning-rate", "exploded-activations"),
           because=see.high_rate),
    Advice("check-the-schedule", "Set the rate to what training began with and check the scheduler's "
           "factor: it multiplies (torch ExponentialLR, gamma below 1 decays)",
           causes=("wrong-schedule",), because=see.high_rate),
    Advice("early-nan", "Set the learning rate to 0: if NaN comes back, it is the data or the labels, not "
           "the update", patterns=("weights-nonfinite",), because=see.early),
    Advice("stable-loss", "Compute exp, log and softmax in float32 and from logits (log_softmax subtracts "
           "the maximum; log(x + 1e-10), no 0 * log 0)", causes=("update-step",),
           because=lambda case: _head(case) or _mixed(case)),
    Advice("check-the-step", "Assert finite parameters before and after optimizer.step(): finite before "
           "and NaN after is the step, else the forward pass; "
           "torch.autograd.set_detect_anomaly(True) names the operation",
           causes=("update-step",)),
    Advice("zero-grad", "Check that optimizer.zero_grad() is called in every step: gradients add up "
           "without it", causes=("gradient-spike",), because=_big_momentum),
    Advice("mean-loss", "Average the loss over the batch instead of adding it up: the step grows with "
           "the batch", patterns=("weights-exploded",),
           because=_always("whole layers grew, and a sum makes the step as large as the batch")),
    Advice("weight-decay", "Add weight decay (an L2 term): nothing else holds the weights",
           causes=("learning-rate",), because=_no_decay),
    Advice("add-normalisation", "Add BatchNorm or LayerNorm, or shortcuts as in ResNet",
           causes=("learning-rate",), because=_no_norm),
    Advice("clip-recurrent", "Clip gradients and shorten the sequences: what recurs multiplies",
           causes=("update-step", "learning-rate"), because=_recurrent),
    Advice("unfreeze-slowly", "Unfreeze with a learning rate of its own, a tenth of the head's",
           causes=("update-step", "learning-rate"), because=_groups),
    Advice("weigh-losses", "With several losses lower the weight of the one whose head grew first",
           patterns=("weights-exploded",), because=_several),
    Advice("reset-scaler", "Find the NaN before resuming: a scale that only ever falls says that every "
           "step is not finite, whatever the scale",
           causes=("skipped-steps",)),
    Advice("break-symmetry", "Initialise with random values: Kaiming for ReLU, Xavier for tanh, gamma 1, "
           "beta 0", causes=("constant-initialiser",), patterns=("weights-uninitialised",)),
    Advice("overfit-ten", "See whether the model can overfit ten samples: if not, a layer is not "
           "connected or not in the optimizer", patterns=("weights-untrained",
                                                          "weights-identical-units")),
    Advice("check-labels", "Check that every label is below the number of outputs",
           patterns=("classes-do-not-match",)),
    Advice("pool-stride", "Keep the stride of a pool at most its size", patterns=("pool-skips-inputs",)),
    Advice("write-atomically", "Write checkpoints beside, fsync, then rename, and keep the checksum",
           causes=("interrupted-write", "changed-after-writing", "corrupted-write")),
    Advice("gather-zero3", "Save with stage3_gather_16bit_weights_on_model_save=true",
           causes=("zero3-partition",)),
    Advice("check-every-save", "Keep several checkpoints and run `ckptdoctor inspect --purpose resume` "
           "after each save: the first bad one is then known",
           patterns=("weights-nonfinite", "weights-exploded", "optimizer-poisoned"),
           because=_always("a checkpoint from before it is the only way back")),
)  # fmt: skip
"""What calls for it decides whether a row is shown; the order decides which come first."""
