"""Illnesses of the training state, of precision, of the configuration, and of the file itself."""

from __future__ import annotations

from ..findings import Severity
from .case import Case, Command, Pattern
from .commands import explain, gate, repair

__all__ = ["CONTAINER", "REST", "STATE"]


def _serve(case: Case) -> Command:
    weights = "ema" if not case.facts.roles.get("model") else "model"
    code = case.facts.exit_code(purpose="serve", weights=weights)
    why = "The optimizer does not count for serving." if code == 0 else "Judges serving alone."
    return gate("serve", code, why, *(("--weights", weights) if weights != "model" else ()))


_CURED_UNASKED = {"TS001", "TS002", "TS006"}
"""Errors that `repair` cures without being told how."""


def _repair(case: Case) -> Command:
    """Repair, and say what remains; numbered variables of Keras may belong to anything."""
    if any("/vars/" in tensor for tensor in case.tensors):
        return _serve(case)
    errors = {f.code for f in case.facts.findings if f.severity is Severity.ERROR}
    what = "the sound copy" if "TS006" in case.codes else "moments that start at 0 again"
    rest = bool(errors - _CURED_UNASKED)
    why = f"Writes a copy with {what} in place of the broken elements"
    return repair(f"{why}; other errors remain." if rest else f"{why}.", code=int(rest))


def _explain(case: Case) -> Command:
    return explain(case.findings[0].code)


def _number(case: Case) -> str:
    """Name of the number that the first finding is about."""
    return case.findings[0].tensor or case.findings[0].name


def _kinds(case: Case) -> set[str]:
    """Kinds of what is wrong with the names, as CK003 says to machines; notes do not count."""
    kinds = ("missing", "wrapped", "misshaped", "surplus")
    return {
        next((kind for kind in kinds if kind in finding.measured), "missing")
        for finding in case.findings
        if finding.severity > Severity.NOTE
    }


def _unlike(case: Case) -> str:
    kinds = _kinds(case)
    if kinds <= {"wrapped", "surplus"} and "wrapped" in kinds:
        return "The weights have other names than the model's"
    if kinds <= {"misshaped", "surplus"} and "misshaped" in kinds:
        return "Weights have other shapes than the model's"
    return "The checkpoint is incomplete"


_SERVES = "Nothing: serving does not read it."
_NEW_STATE = (
    "The weights are sound. Resume from them with a new optimizer (a short warm-up), or from an "
    "earlier checkpoint; keep this file for serving."
)

CONTAINER: tuple[Pattern, ...] = (
    Pattern(
        key="file-changed",
        codes=("CK001",),
        rank=0,
        title="The file's checksums differ from its data",
        inference="Unknown: torch.load does not check, and computes with whatever is there.",
        causes=("changed-after-writing",),
        repair="Fetch or copy the file again and compare its checksum with the source.",
        next=_explain,
    ),
    Pattern(
        key="file-truncated",
        codes=("CK004",),
        rank=0,
        title="The file is cut off, or was never written to its end",
        inference="It cannot be loaded, or tensors are missing.",
        causes=("interrupted-write",),
        repair="Fetch or copy it again; a training run should write beside, then rename.",
        next=_explain,
    ),
    Pattern(
        key="file-without-tensors",
        codes=("CK003",),
        rank=1,
        when=lambda case: not case.facts.ctx.table.infos,
        title="The file holds no tensors",
        inference="Nothing: there are no weights to serve.",
        causes=("another-kind-of-file",),
        repair="Name the file that holds the weights.",
        next=_explain,
    ),
    Pattern(
        key="file-surplus",
        codes=("CK003",),
        rank=1,
        when=lambda case: _kinds(case) == {"surplus"},
        title="The checkpoint holds more than is expected",
        inference="A loader passes the surplus by, or refuses it where it checks keys strictly: "
        "the model may be another than the one that was trained.",
        causes=("parts-of-another",),
        repair="Nothing is lost. Load with strict key checks, with the code the model was trained "
        "with.",
        next=_explain,
    ),
    Pattern(
        key="file-incomplete",
        codes=("CK003",),
        rank=1,
        title=_unlike,
        inference="It cannot be loaded, or missing layers keep their random values.",
        causes=("interrupted-write",),
        repair="Fetch the missing files; load with strict key checks.",
        next=_explain,
    ),
    Pattern(
        key="file-runs-code",
        codes=("CK002",),
        rank=1,
        title="Loading the file the usual way can run code of the file",
        inference="Unknown: whoever loads it runs what it names.",
        causes=("code-in-file",),
        repair="Load only what you trust; weights alone can be kept as safetensors.",
        next=_explain,
    ),
    Pattern(
        key="file-ambiguous",
        codes=("CK005",),
        rank=1,
        title="Readers of this file see different things",
        inference="Unknown: it depends on what reads it.",
        causes=("ambiguous-writer",),
        repair="Get the file from its source again, and do not load this one.",
        next=_explain,
    ),
    Pattern(
        key="file-points-outside",
        codes=("CK006",),
        rank=1,
        title="The file refers to other files",
        inference="It depends on files that are not part of it.",
        causes=("built-so",),
        repair="Write the checkpoint again with its data inside.",
        next=_explain,
    ),
)

STATE: tuple[Pattern, ...] = (
    Pattern(
        key="optimizer-poisoned",
        codes=("TS001", "TS002"),
        takes=("TS005",),
        rank=3,
        title=lambda case: (
            "The optimizer's state is broken; every weight is finite"
            if not case.facts.bad["weights"]
            else "The optimizer's state is broken"
        ),
        inference=_SERVES,
        training="Resuming kills the model: the next step writes NaN into the weights (Keras), or "
        "freezes those elements (torch).",
        causes=("gradient-spike", "edited-state", "corrupted-write"),
        repair=_NEW_STATE,
        next=_repair,
    ),
    Pattern(
        key="loss-scale-collapsed",
        codes=("TS005",),
        rank=3,
        title="The loss scale collapsed: every step was being skipped",
        inference="Nothing by itself: the weights are those of the last step that was taken.",
        training="The loss looked alive while no step was taken any more.",
        causes=("skipped-steps", "learning-rate"),
        repair="The weights are sound. Resume from before the overflows began, with a new scaler; a "
        "scale of 0 never recovers.",
        next=_serve,
    ),
    Pattern(
        key="learning-rate-extreme",
        codes=("TS003",),
        rank=4,
        title=lambda case: f"The learning rate to resume with is extreme ({_number(case)})",
        inference=_SERVES,
        training="Resuming destroys the weights in one step, or never changes them.",
        causes=("wrong-schedule",),
        repair="Nothing is lost: set the learning rate and the scheduler anew before resuming.",
        next=_serve,
    ),
    Pattern(
        key="epsilon-too-small",
        codes=("TS004", "CF002"),
        rank=6,
        title="An epsilon is too small for its number format",
        inference="Division by 0 where a variance or a moment is 0.",
        training="Fine until a moment or a variance is 0.",
        causes=("built-so",),
        repair="Nothing is lost: raise it (Adam 1e-4 in half precision, BatchNorm 1e-3).",
        next=_explain,
    ),
    Pattern(
        key="optimizer-of-another-model",
        codes=("TS007",),
        rank=5,
        title="The optimizer's state does not fit the model",
        inference=_SERVES,
        training="Resuming fails, or applies moments to the wrong parameters.",
        causes=("other-model",),
        repair="The weights are sound: resume with a new optimizer.",
        next=_serve,
    ),
    Pattern(
        key="ema-diverged",
        codes=("TS006",),
        rank=3,
        title="The EMA has drifted away from the model",
        inference="It depends on which of the two is served.",
        training="Looked fine: the EMA takes no part in it.",
        causes=("transient-nan", "averaged-weights"),
        repair="Copy the sound one over the other, or start the average anew.",
        next=_repair,
    ),
    Pattern(
        key="loop-state-nonfinite",
        codes=("TS009", "TS008", "NF001", "NF002", "NF003"),
        rank=9,
        title="Records of the training loop, or other state, are not finite",
        inference=_SERVES,
        training="A NaN loss among the records says that training had gone wrong before the save.",
        causes=("bad-data",),
        repair="Nothing to repair for serving.",
        next=_explain,
    ),
)

REST: tuple[Pattern, ...] = (
    Pattern(
        key="pool-skips-inputs",
        codes=("CF001",),
        rank=6,
        title="A pooling layer strides over inputs it never reads",
        inference="As trained: it drops part of its input.",
        training="Can give NaN in old frameworks, and loses information in all.",
        causes=("built-so",),
        repair="A matter of the model's design: stride at most the pool's size, then train again.",
        next=_explain,
    ),
    Pattern(
        key="momentum-never-updates",
        codes=("CF003",),
        rank=4,
        title="BatchNorm's momentum never updates its statistics",
        inference="Statistics stay at 0 and 1: no normalisation.",
        training="Fine: it uses the statistics of each batch.",
        causes=("momentum-zero",),
        repair="Set the momentum (torch 0.1, Keras 0.99) and recompute the statistics.",
        next=_explain,
    ),
    Pattern(
        key="classes-do-not-match",
        codes=("CF004",),
        rank=6,
        title="The head does not have as many outputs as the configuration has classes",
        inference="Labels are out of range, or outputs without a name.",
        training="A label beyond the last output reads memory out of bounds, or gives NaN.",
        causes=("built-so", "other-model"),
        repair="Nothing is lost: correct the configuration, or take the head of the right model.",
        next=_explain,
    ),
)
