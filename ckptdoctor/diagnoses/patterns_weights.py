"""Illnesses of weights: lost ones, enormous ones, and those that compute nothing."""

from __future__ import annotations

from ..findings import Severity
from . import observations as see
from .case import Case, Command, Pattern
from .commands import repair

__all__ = ["WEIGHTS"]

_LOST = (
    "The weights themselves are lost: no repair of BatchNorm, and no value put in for NaN, brings "
    "them back. Go back to the last checkpoint before it."
)
_SPREAD = ("BN001", "BN003", "BN010", "TS001", "TS002", "TS005", "TS006", "WT003", "WT011")
"""What NaN weights leave elsewhere: the same story."""


def _amount(case: Case) -> str:
    n = len(case.layers)
    return f"{n:,} layer{'' if n == 1 else 's'}"


def _bad_roles(case: Case) -> set[str]:
    """Which of model and EMA hold what is not finite."""
    infos = (
        case.facts.info(name) for kind in ("statistics", "weights") for name in case.facts.bad[kind]
    )
    return {info.role for info in infos if info is not None}


def _one_copy(case: Case) -> bool:
    """Whether of model and EMA, both about whole, exactly one is bad."""
    roles, bad = case.facts.roles, _bad_roles(case)
    model, ema = roles.get("model", 0), roles.get("ema", 0)
    return len(bad) == 1 and 2 * min(model, ema) >= max(model, ema) and case.roles <= bad


def _copy_title(case: Case) -> str:
    sick = "EMA" if "ema" in case.roles else "model's"
    return f"The {sick} weights are not finite, the {see.intact_copy(case)} weights are"


def _copy_next(case: Case) -> Command:
    rest = any(
        finding.severity is Severity.ERROR and finding.role not in case.roles
        for finding in case.facts.findings
    )
    why = f"Writes a copy with the {see.intact_copy(case)} weights in place of the lost ones."
    return repair(why, code=int(rest))


def _few(case: Case) -> bool:
    return case.few_elements and not case.facts.bad["optimizer"]


def _few_title(case: Case) -> str:
    bad, count = case.bad_share("weights")
    return (
        f"{bad:,} element{'' if bad == 1 else 's'} of {count:,} in {_amount(case)} "
        f"{'is' if bad == 1 else 'are'} not finite, the others are"
    )


def _lost_title(case: Case) -> str:
    bad, count = case.bad_share("weights")
    share = "NaN or Inf throughout" if bad == count else f"not finite in {bad / count:.0%}"
    return f"Weights of {_amount(case)} are lost: {share}"


def _lost_repair(case: Case) -> str:
    intact = [layer.name for layer in case.facts.ctx.layers.all if layer.name not in case.layers]
    if intact and len(case.layers) <= len(intact):
        return (
            f"{_LOST} {len(intact):,} other layers are sound: where the lost ones are a head, "
            "it alone can be trained anew."
        )
    return _LOST


def _resume(case: Case) -> Command:
    code = case.facts.exit_code(purpose="resume")
    tells = f"Exit code {code} here; the last earlier checkpoint with 0 is the one to go back to."
    return Command(("inspect", "{file}", "--purpose", "resume"), tells)


WEIGHTS: tuple[Pattern, ...] = (
    Pattern(
        key="one-copy-intact",
        codes=("TS006", "NF001", "NF002", "BN001", "WT011"),
        takes=("BN003", "BN010", "WT003"),
        when=_one_copy,
        rank=1,
        title=_copy_title,
        inference=lambda case: (
            "Fine with the model's weights; NaN where the EMA is served."
            if "ema" in case.roles
            else "NaN with the model's weights; fine where the EMA is served."
        ),
        training="The other copy was restored by a guard, or never took the bad step.",
        causes=("transient-nan",),
        repair=lambda case: (
            f"Lossless: copy the {see.intact_copy(case)} weights over the others, or serve them."
        ),
        next=_copy_next,
    ),
    Pattern(
        key="weights-cast-overflow",
        codes=("NF002",),
        takes=("BN001", "BN008"),
        when=lambda case: bool(see.narrow_types(case)),
        rank=1,
        title=lambda case: f"Weights of {_amount(case)} overflowed {see.narrow_types(case)}",
        inference="Inf times anything is Inf, and Inf minus Inf is NaN: outputs are NaN.",
        training="It was sound in float32; the cast came afterwards.",
        causes=("cast-to-half",),
        repair="Nothing is lost where the original still exists: cast it again with these tensors "
        "in float32 or bfloat16, or with a scale.",
    ),
    Pattern(
        key="weights-few-nonfinite",
        codes=("NF001", "NF002"),
        when=_few,
        rank=1,
        title=_few_title,
        inference="NaN for every input: one NaN in a kernel reaches every output behind it.",
        training="With such a weight every loss would be NaN: it came after the last step.",
        causes=("corrupted-write", "update-step"),
        repair="The elements are lost, their neighbours are not. Take the tensor from another copy "
        "or an earlier checkpoint; check the file's checksum against its source.",
    ),
    Pattern(
        key="weights-nonfinite",
        codes=("NF001", "NF002"),
        takes=_SPREAD,
        when=lambda case: bool(case.roles & {"model", "ema"}),
        rank=0,
        title=_lost_title,
        inference="NaN for every input.",
        training="From this step on every loss is NaN: what came after it trained nothing.",
        causes=("update-step", "learning-rate", "bad-data", "corrupted-write"),
        repair=_lost_repair,
        next=_resume,
    ),
    Pattern(
        key="weights-exploded",
        codes=("WT003",),
        takes=("BN003", "BN010", "TS005", "WT008"),
        rank=1,
        title=lambda case: f"Weights of {_amount(case)} exploded, still finite",
        inference="No NaN yet: outputs are garbage.",
        training="It diverged: the loss grew, or BatchNorm hid the growth by dividing it away.",
        causes=("learning-rate", "corrupted-write"),
        repair=_LOST,
        next=_resume,
    ),
    Pattern(
        key="weights-flipped-bit",
        codes=("WT004",),
        rank=2,
        title=lambda case: f"Single elements are far off in {_amount(case)}",
        inference="It depends on the element: from nothing to garbage.",
        training="It was sound: the value was changed afterwards.",
        causes=("corrupted-write",),
        repair="Take the tensor from another copy of the file; a flipped exponent bit can be "
        "flipped back, the finding names the likely original.",
    ),
    Pattern(
        key="weightnorm-zero-row",
        codes=("WT007",),
        rank=2,
        title=lambda case: f"Weight normalisation divides by 0 in {_amount(case)}",
        inference="NaN at run time although every stored value is finite: 0 * 0/0.",
        training="NaN there as well, from the first step after the pruning.",
        causes=("pruned-row", "partial-load"),
        repair="Remove weight normalisation before pruning, or give the row a tiny direction: with "
        "its gain at 0 the output is what pruning meant.",
    ),
    Pattern(
        key="weights-empty",
        codes=("WT009",),
        rank=1,
        title=lambda case: f"Weights of {_amount(case)} are empty: they were not saved",
        inference="It cannot be loaded: shapes do not match.",
        training="Fine: the weights were on other ranks.",
        causes=("zero3-partition",),
        repair="Nothing is lost where the partitions still exist: gather them with DeepSpeed's "
        "zero_to_fp32.py, or save with stage3_gather_16bit_weights_on_model_save.",
    ),
    Pattern(
        key="weights-zero",
        codes=("WT001",),
        rank=3,
        title=lambda case: f"All weights of {_amount(case)} are exactly 0",
        inference="What passes only through such a layer is constant: the output does not depend "
        "on the input.",
        training="It was not this layer that was trained: it was set to zero or never loaded.",
        causes=("partial-load", "corrupted-write"),
        repair="Load the layer from the checkpoint it came from; check the list of missing and "
        "unexpected keys when loading.",
    ),
    Pattern(
        key="weights-identical-units",
        codes=("WT002", "WT005"),
        rank=3,
        title=lambda case: f"Units of {_amount(case)} are identical",
        inference="No NaN: the layer has the power of one unit.",
        training="The loss fell only as far as one unit gets.",
        causes=("constant-initialiser", "partial-load"),
        repair="Training on does not separate them: initialise the layer with random values "
        "(Kaiming for ReLU, Xavier for tanh) and train again.",
    ),
    Pattern(
        key="weights-vanished",
        codes=("WT006",),
        rank=4,
        title=lambda case: f"Weights of {_amount(case)} have vanished",
        inference="No NaN: the layer lets next to nothing through.",
        training="It can have looked fine where a shortcut passes the layer by.",
        causes=("decayed-away", "partial-load"),
        repair="Train on from an earlier checkpoint with less weight decay on it, or remove it.",
    ),
    Pattern(
        key="weights-untrained",
        codes=("WT008",),
        rank=6,
        title=lambda case: f"Weights of {_amount(case)} were never trained",
        inference="No NaN: the layer is random.",
        training="The loss can fall without it.",
        causes=("never-trained", "partial-load"),
        repair="Check that the layer is in the optimizer and requires gradients, then train it.",
    ),
    Pattern(
        key="weights-uninitialised",
        codes=("WT010",),
        rank=2,
        title=lambda case: f"Weights of {_amount(case)} are uninitialised memory",
        inference="Garbage, NaN on some machines.",
        training="It was sound, or never ran: the values were not written.",
        causes=("unset-memory", "corrupted-write"),
        repair="Load the layer from the checkpoint it came from.",
    ),
    Pattern(
        key="scale-broken",
        codes=("WT011",),
        rank=2,
        title=lambda case: f"Scales of {_amount(case)} are zero or not finite",
        inference="NaN or a constant: inference multiplies with them or divides by their root.",
        training="A Normalization that hides warnings (numpy.seterr) divides by a deviation of 0 "
        "without a word.",
        causes=("zero-range", "nonfinite-input", "corrupted-write"),
        repair="Compute them again from data: adapt() for Normalization, a calibration run for "
        "quantisation. The weights are not affected.",
    ),
)
"""Patterns of weights, what is lost first."""
