"""What practitioners write about NaN and BatchNorm, item by item, and what answers each here.

``rule:``, ``advice:``, ``cause:`` and ``diagnosis:`` name what answers; ``later:`` a part that is
planned (repair, live models, preflight, series of checkpoints); ``not:`` why there is nothing.
"""

from __future__ import annotations

import pytest

from ckptdoctor.diagnoses.advice import ADVICE
from ckptdoctor.diagnoses.causes import CAUSES
from ckptdoctor.diagnoses.patterns import PATTERNS
from ckptdoctor.findings import CONTAINER_CODES
from ckptdoctor.rules import RULES

NAN_LOSS = {
    "values too large or too small": "rule:WT003 rule:WT006 rule:PR001 rule:PR002",
    "dirty data in the first epoch": "cause:bad-data advice:early-nan later:live models",
    "design that makes gradients explode": "rule:TS008 rule:WT003 advice:add-normalisation",
    "bad hyperparameters": "rule:TS003 rule:TS004 advice:lower-rate",
    "log and division near 0": "advice:stable-loss rule:TS009 advice:find-the-batch",
    "columns of different scale": "rule:BN003 rule:WT011 advice:normalise-inputs",
    "a Normalize that divides by 0 and hides it": "rule:WT011 advice:silent-division",
    "zero_grad forgotten": "advice:zero-grad",
    "change depth or width": "not: the file cannot say which design would have worked",
    "add BatchNorm or LayerNorm": "advice:add-normalisation",
    "small batches, frozen BatchNorm": "advice:no-batch-of-one advice:freeze-properly",
    "eval worse than train": "advice:same-distribution advice:train-mode-check later:live models",
    "freezing by requires_grad": "advice:freeze-properly",
    "freezing by momentum 0 or no tracking": "rule:BN006 rule:BN007 rule:CF003 advice:momentum",
    "pool stride beyond its kernel": "rule:CF001 advice:pool-stride",
    "gradient clipping": "advice:clip-by-norm",
    "another learning rate or optimizer": "advice:lower-rate",
    "mean loss, L2 term": "advice:mean-loss advice:weight-decay",
    "initialisers": "rule:WT002 rule:WT005 rule:WT008 advice:break-symmetry later:repair",
    "initial values per role": "advice:break-symmetry later:repair",
    "anchors": "rule:NF001 rule:NF002 not: what good anchors are depends on the data set",
    "unfreezing gives NaN": "advice:unfreeze-slowly",
    "lower rate or batch size": "advice:lower-rate",
    "larger Adam epsilon": "rule:TS004 advice:larger-epsilon later:repair",
}
COMPENDIUM = {
    "NaN and Inf told apart": "rule:NF001 rule:NF002",
    "vanishing gradients": "rule:TS008",
    "exploding gradients": "rule:TS008 rule:TS001",
    "softmax without maximum": "advice:stable-loss later:live models",
    "log of 0": "advice:stable-loss",
    "division by 0": "rule:BN004 rule:WT011 rule:WT007 advice:right-formula",
    "normalisation as cure": "advice:add-normalisation",
    "learning rate tenfold lower": "advice:lower-rate",
    "epsilons per optimizer": "rule:TS004 rule:CF002 advice:larger-epsilon",
    "missing inputs filled with the mean": "advice:find-the-batch",
    "bounded activations": "advice:bound-activations advice:stable-loss rule:WT003",
    "missing labels": "cause:bad-data advice:check-labels",
    "find where NaN begins": "diagnosis:bn-stats-nan diagnosis:weights-nonfinite later:live models",
    "root or log of a negative": "rule:BN002 rule:TS002",
    "initial weights too large": "rule:WT003 rule:WT008",
    "NaN within 100 iterations, rate 0": "advice:early-nan",
    "long sequences": "advice:clip-recurrent",
    "label out of bounds": "rule:CF004 advice:check-labels",
    "batch size 1 to find the sample": "advice:find-the-batch later:live models",
    "anomaly detection": "advice:check-the-step",
    "one of several losses explodes": "advice:weigh-losses",
    "zero_grad and dtypes": "advice:zero-grad rule:PR001",
    "loss with Inf times 0": "advice:stable-loss",
    "pool stride in old frameworks": "rule:CF001 advice:pool-stride",
    "statistics NaN at prediction": "rule:BN001 diagnosis:bn-stats-nan later:repair",
    "shuffling and BatchNorm": "advice:same-distribution",
    "decoder's BatchNorm explodes": "rule:BN003 advice:decoder-alone",
    "training mode predicts well": "advice:train-mode-check",
    "track_running_stats off": "advice:train-mode-check",
    "powers in old frameworks": "not: a fault of a framework that no file shows",
    "weight regularisation": "advice:weight-decay",
    "inputs divided by 255": "rule:BN003 diagnosis:bn-input-scale advice:serve-the-same-scale",
    "ReLU6": "advice:bound-activations",
    "clip by norm, not by value": "advice:clip-by-norm",
    "shortcuts": "advice:add-normalisation",
    "mixed precision that no scaler catches": "rule:TS005 cause:overflow-skipped-step",
    "float32 before sigmoid and log": "advice:stable-loss advice:float32-ends",
    "model does not learn": "rule:WT008 rule:BN005 advice:overfit-ten",
}
DECISION_TREE = {
    "clip by norm before the step": "advice:clip-by-norm",
    "clipping slows reinforcement learning": "not: the file does not say how it was trained",
    "epsilon of another magnitude": "rule:TS004 rule:CF002",
    "the tree itself": "cause:update-step diagnosis:optimizer-poisoned diagnosis:bn-stats-nan",
    "lower rate or another optimizer": "advice:lower-rate",
    "assert before and after the step": "advice:check-the-step advice:check-every-save later:series",
}
BATCH_EXPLODES = {
    "BatchNorm on raw input": "rule:BN003 diagnosis:bn-input-scale",
    "outputs grow to Inf": "rule:WT003 diagnosis:weights-exploded cause:learning-rate",
    "sum of losses": "advice:mean-loss",
    "range of learning rates": "rule:TS003 advice:lower-rate",
    "BatchNorm before the activation": "not: both orders are in use and both train",
    "one sample in a batch": "rule:BN004 cause:batch-of-one advice:no-batch-of-one",
    "zero_grad, and calling the model": "advice:zero-grad",
    "the right formula": "advice:right-formula",
}
FOUNDING_CASE = {
    "trains well, predicts NaN": "diagnosis:bn-stats-nan",
    "a lower rate leaves the file poisoned": "advice:not-the-gradients",
    "scan by layer": "rule:BN001 rule:NF001",
    "check_numerics without a framework": "rule:NF001",
    "NaN filled with ones": "diagnosis:bn-stats-nan later:repair",
    "the layer's own initialisers": "later:repair",
    "submodel up to the first NaN": "later:live models",
    "exploded upstream, NaN downstream": "rule:BN003 diagnosis:bn-stats-nan",
    "reset mean and variance, keep gamma and beta": "diagnosis:bn-stats-nan later:repair",
    "wrong layer fetched, weights set by position": "advice:names-not-positions",
    "check after repair": "later:repair",
    "formulas of the moving average": "diagnosis:bn-stats-nan advice:momentum advice:right-formula",
    "statistics fit similar inputs only": "advice:same-distribution",
    "input and head in float32": "advice:float32-ends",
    "ranges of float16 and bfloat16": "rule:PR001 rule:PR002 rule:PR003",
    "fused BatchNorm on 1x1 maps": "advice:fused-on-1x1",
}
ITEMS = {
    f"{source}: {item}": answer
    for source, items in (
        ("NaN loss", NAN_LOSS),
        ("compendium", COMPENDIUM),
        ("decision tree", DECISION_TREE),
        ("exploding batch", BATCH_EXPLODES),
        ("founding case", FOUNDING_CASE),
    )
    for item, answer in items.items()
}
KNOWN = {
    "rule": {rule.code for rule in RULES} | set(CONTAINER_CODES),
    "advice": {row.key for row in ADVICE},
    "cause": set(CAUSES),
    "diagnosis": {pattern.key for pattern in PATTERNS},
    "later": {"repair", "live", "series", "preflight"},
}


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_is_answered_or_says_why_not(item: str) -> None:
    answer, _, reason = ITEMS[item].partition("not: ")
    names = answer.split()
    assert names or reason
    for name in names:
        kind, _, key = name.partition(":")
        if kind in KNOWN:
            assert key in KNOWN[kind], name


def test_counts_are_those_of_the_sources() -> None:
    sources = (NAN_LOSS, COMPENDIUM, DECISION_TREE, BATCH_EXPLODES, FOUNDING_CASE)
    assert [len(items) for items in sources] == [24, 38, 6, 8, 16]


def test_every_pattern_names_causes_that_there_are() -> None:
    assert {name for pattern in PATTERNS for name in pattern.causes} == set(CAUSES)


def test_every_advice_can_be_called_for() -> None:
    keys = {pattern.key for pattern in PATTERNS}
    for row in ADVICE:
        assert row.causes or row.patterns
        assert set(row.causes) <= set(CAUSES), row.key
        assert set(row.patterns) <= keys, row.key
    assert len({row.key for row in ADVICE}) == len(ADVICE)


def test_patterns_are_told_apart_by_key_and_know_codes_that_there_are() -> None:
    keys = [pattern.key for pattern in PATTERNS]
    assert len(set(keys)) == len(keys)
    for pattern in PATTERNS:
        assert {code.partition(" ")[0] for code in (*pattern.codes, *pattern.takes)} <= KNOWN[
            "rule"
        ]


def test_every_rule_that_can_fail_a_file_has_a_pattern() -> None:
    taken = {code.partition(" ")[0] for pattern in PATTERNS for code in pattern.codes}
    # NF003 and BN008 have patterns too; notes alone are never diagnosed
    assert {rule.code for rule in RULES} <= taken
    assert set(CONTAINER_CODES) <= taken
