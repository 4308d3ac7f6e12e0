"""Illnesses of BatchNorm: what its statistics look like, and what that does.

The accuracies are measured on networks broken by real faults, with a healthy twin of each.
"""

from __future__ import annotations

from ..findings import Severity
from . import observations as see
from .case import Case, Command, Pattern
from .commands import explain, inspect_layers, repair
from .snippets import copy_or_recompute, float32_batchnorm, recompute_all

__all__ = ["BATCHNORM"]

_FINE = (
    "Looked fine: it normalises with the statistics of each batch; only evaluation and inference "
    "read the stored ones."
)
_TRAINING = f"{_FINE} Training on does not heal them: momentum times NaN is NaN."
_KEEP = "Nothing that was learned is lost."
_HOW = (
    "Copy mean and variance of just these layers from an earlier checkpoint, or set the mean to 0 "
    "and the variance to 1 and recompute both on training data in training mode (64 samples or more)."
)
_NEVER = "Never fill mean and variance with one constant: mostly that ended at chance."
_ON = "Measured on networks broken this way:"


def _count(case: Case) -> str:
    """Count the layers, as ``2 layers``."""
    return _many(len(case.layers))


def _many(layers: int) -> str:
    return f"{layers:,} layer{'' if layers == 1 else 's'}"


def _sound(case: Case) -> str:
    return "every weight is sound" if not case.facts.bad["weights"] else "weights are bad too"


def _nan_title(case: Case) -> str:
    what = "NaN or Inf" if see.infinite_statistics(case) else "NaN"
    bad, grown = _bad_and_grown(case)
    if grown and see.exploded_upstream(case):
        return (
            f"BatchNorm statistics exploded in {_many(grown)} and are {what} in {_many(bad)} "
            f"further on; {_sound(case)}"
        )
    return f"BatchNorm statistics are {what} in {_many(bad)}{_exploded(grown)}; {_sound(case)}"


def _bad_and_grown(case: Case) -> tuple[int, int]:
    """Count the layers that are not finite, and those that are and exploded."""
    bad = len({finding.layer for finding in case.of_code("BN001")})
    return bad, max(0, len(case.layers) - bad)


def _exploded(grown: int) -> str:
    return f" and exploded, still finite, in {grown:,} more" if grown else ""


def _var_nan_title(case: Case) -> str:
    bad, grown = _bad_and_grown(case)
    return f"BatchNorm variance is NaN beside a finite mean in {_many(bad)}{_exploded(grown)}"


def _nan_repair(case: Case) -> str:
    many = len(case.layers) > 20
    kept = "0.912 of an accuracy of 0.926" if many else "the accuracy to within 0.002"
    return f"{_KEEP} {_HOW} {_ON} either restored {kept}. {_NEVER}"


def _mean_bad(case: Case) -> bool:
    """Whether a mean is among what is not finite: more than a variance went wrong."""
    return any(
        case.facts.ctx.layers.part_of(finding.tensor) == "mean" for finding in case.of_code("BN001")
    ) or any(mean is not None and mean.nonfinite for _, mean in see.pairs(case))


def _var_nan(case: Case) -> bool:
    return any(var.nan for var, _ in see.pairs(case))


def _var_inf_title(case: Case) -> str:
    bad, grown = _bad_and_grown(case)
    return f"BatchNorm variance is Inf in {_many(bad)}{_exploded(grown)}: their channels are silent"


def _explode_title(case: Case) -> str:
    what = "variance exploded" if "BN003" in case.codes else "gain exploded"
    return f"BatchNorm {what} in {_count(case)}, still finite; {_sound(case)}"


def _zero_title(case: Case) -> str:
    whole, _ = see.zero_variances(case)
    what = "0 in whole layers" if whole else "0 or tiny in some channels"
    return f"BatchNorm variance is {what} ({_count(case)})"


def _zero_repair(case: Case) -> str:
    whole, _ = see.zero_variances(case)
    if not whole:
        return (
            "Nothing to repair while these channels stay constant. Where they vary when served, "
            "hold them constant as in training, or recompute the statistics with data in which "
            "they vary."
        )
    return (
        f"{_KEEP} {_HOW} Recompute all layers here: those after it averaged wrong values as well "
        "(measured: 0.494 with the layers alone, 0.994 with all, of 0.995)."
    )


def _gate(case: Case) -> Command:
    tells = "Try it on earlier checkpoints: exit code 1 here, 0 where the statistics can be copied."
    return Command(inspect_layers(case).words, tells)


def _cure(case: Case) -> Command:
    """Repair at once where the fault is certain; what is only suspected is looked at first."""
    if case.severity < Severity.ERROR:
        return _gate(case)
    if see.all_on_input(case):
        why = "Writes a copy with the lost channels switched off; --donor OLD or --recalibrate restores them."
        return repair(why, "--bn-silence")
    why = (
        "Writes a copy whose broken channels have mean 0 and variance 1. With --donor OLD they come "
        "from an earlier checkpoint, with --recalibrate MODEL --data BATCH from data: both restore "
        "more."
    )
    return repair(why, "--bn-reset")


BATCHNORM: tuple[Pattern, ...] = (
    Pattern(
        key="bn-stats-nan",
        codes=("BN001",),
        takes=("BN003", "BN010"),
        when=_mean_bad,
        rank=1,
        title=_nan_title,
        inference="NaN for every input: inference subtracts the NaN mean.",
        training=_TRAINING,
        causes=("overflow-skipped-step", "nonfinite-input", "unnormalised-input"),
        repair=_nan_repair,
        snippet=copy_or_recompute,
        next=_cure,
    ),
    Pattern(
        key="bn-var-nan",
        codes=("BN001",),
        takes=("BN003", "BN010"),
        when=_var_nan,
        rank=1,
        title=_var_nan_title,
        inference="NaN for every input: inference divides by the root of a NaN variance.",
        training=_TRAINING,
        causes=("batch-of-one", "overflow-skipped-step"),
        repair=f"{_KEEP} {_HOW} {_ON} accuracy 0.944 after, 0.960 before. {_NEVER}",
        snippet=copy_or_recompute,
        next=_cure,
    ),
    Pattern(
        key="bn-cast-to-half",
        codes=("BN001", "BN008"),
        takes=("BN003",),
        when=lambda case: bool(see.narrow_types(case)) or "BN008" in case.codes,
        rank=1,
        title=lambda case: f"BatchNorm statistics do not fit float16 in {_count(case)}",
        inference="No NaN and no error: where the variance is Inf, the channel is the constant "
        "beta for every input.",
        training="It was sound in float32; the cast came afterwards.",
        causes=("cast-to-half",),
        repair="Nothing is lost where the float32 checkpoint still exists: cast it again and "
        "leave BatchNorm in float32, or use bfloat16.",
        snippet=float32_batchnorm,
        next=_gate,
    ),
    Pattern(
        key="bn-var-inf",
        codes=("BN001",),
        takes=("BN003", "BN010"),
        rank=1,
        title=_var_inf_title,
        inference="No NaN, and no error: a value divided by the root of Inf is 0, so each of these "
        "channels is the constant beta. Accuracy falls, to chance where whole layers are hit.",
        training=_FINE + " Inf stays as NaN does.",
        causes=("huge-sample", "overflow-skipped-step", "unnormalised-input"),
        repair=f"{_KEEP} {_HOW} {_ON} all of the accuracy; resetting alone left 0.870 of 0.995.",
        snippet=copy_or_recompute,
        next=_cure,
    ),
    Pattern(
        key="bn-var-negative",
        codes=("BN002",),
        title=lambda case: f"BatchNorm variance is negative in {_count(case)}",
        inference="NaN in every channel whose variance is at or below -epsilon: the root of a "
        "negative number.",
        training="Running averages of squares cannot become negative: this was written by "
        "something else than training.",
        causes=("checkpoint-arithmetic", "cancelled-variance", "corrupted-write"),
        repair=f"{_KEEP} {_HOW} Clamping to 0 does not repair it: the gain becomes 1/sqrt(epsilon).",
        snippet=copy_or_recompute,
        next=_cure,
    ),
    Pattern(
        key="bn-input-scale",
        codes=("BN003 first",),
        rank=8,
        title="The first BatchNorm saw inputs of a large scale",
        inference="Right as long as served inputs have the scale of training (0..255, 0..65535); "
        "near constant outputs if they are normalised now.",
        training="Fine: the first BatchNorm does the normalising.",
        causes=("unnormalised-input",),
        repair="From the file alone it cannot be told from an exploded layer: compare with how "
        "inputs were prepared in training, and change nothing if they agree.",
        next=lambda _: explain("BN003"),
    ),
    Pattern(
        key="bn-var-exploded",
        codes=("BN003", "BN010"),
        rank=2,
        title=_explode_title,
        inference=lambda case: (
            "No NaN: the channels are divided by a deviation far too large, nearly constant, and "
            "the output is constant or garbage."
            if "BN003" in case.codes
            else "No NaN: small differences are amplified until the output is garbage."
        ),
        training=_FINE,
        causes=("exploded-activations", "unnormalised-input", "huge-sample", "constant-input"),
        repair=f"{_KEEP} {_HOW} {_ON} all of the accuracy; resetting alone left 0.926 of 0.995.",
        snippet=copy_or_recompute,
        next=_cure,
    ),
    Pattern(
        key="bn-var-zero",
        codes=("BN004",),
        takes=("BN010",),
        title=_zero_title,
        inference="The gain is 1/sqrt(epsilon), 30 to 300 times what is usual: harmless while such "
        "a channel stays constant, garbage as soon as it does not.",
        training="In a batch such a channel is constant and normalises to 0, so nothing showed.",
        causes=("batch-of-one", "constant-input"),
        repair=_zero_repair,
        snippet=lambda case: copy_or_recompute(case) if see.zero_variances(case)[0] else (),
        next=lambda case: _cure(case) if see.zero_variances(case)[0] else _gate(case),
    ),
    Pattern(
        key="bn-stats-stale",
        codes=("BN006",),
        takes=("CF003",),
        title=lambda case: f"BatchNorm statistics never moved from 0 and 1 in {_count(case)}",
        inference="No NaN: activations are not normalised at all, and the output is garbage or at "
        "chance.",
        training=_FINE,
        causes=("momentum-zero", "averaged-weights", "statistics-reset"),
        repair="Nothing that was learned is lost: recompute the statistics of every BatchNorm with "
        "training data in training mode, with a momentum that updates them.",
        snippet=recompute_all,
    ),
    Pattern(
        key="bn-stats-missing",
        codes=("BN007",),
        title=lambda case: f"BatchNorm statistics are missing in {_count(case)}",
        inference="Loading fails with missing keys, or leaves 0 and 1 where loading is not strict: "
        "garbage without an error.",
        training=_FINE,
        causes=("converted-without-buffers",),
        repair="Convert again from the checkpoint that has the buffers, or recompute them with "
        "training data.",
    ),
    Pattern(
        key="bn-stats-copied",
        codes=("BN009",),
        title=lambda case: f"BatchNorm statistics are copies of each other in {_count(case)}",
        inference="No NaN: channels are normalised by somebody else's statistics, outputs are wrong.",
        training="It was sound: the copies were written afterwards.",
        causes=("copied-statistics", "corrupted-write"),
        repair="Take them from the checkpoint it was made of; if there is none, recompute them with "
        "training data.",
        next=_gate,
    ),
    Pattern(
        key="bn-gammas-dead",
        codes=("BN005",),
        rank=8,
        title=lambda case: f"Most gammas are 0 in {_count(case)}",
        inference="Right, if it was trained so: these channels are constant and can be pruned.",
        training="Fine.",
        causes=("sparsity-training", "learning-rate"),
        repair="Nothing to repair where sparsity was intended; otherwise train on from an earlier "
        "checkpoint.",
    ),
)  # fmt: skip
"""Patterns of running statistics; the first that has the file's findings takes them."""
