"""Inference mode against training mode: whether they agree, and whether the statistics are why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..live.batch_statistics import BatchStatistics
from ..live.subject import Arrays
from ..recalibration.agreement import holding
from ..recalibration.choice import FEWEST
from ..recalibration.scale import Scale, scale_of
from ..tensors import Array
from .feed import Feed
from .norms import Agreement, Drift, compared, drifts
from .results import ProbeReport, TrainMode

__all__ = ["AGREEING", "DIFFERENT", "closes", "disagrees", "treated", "with_norms"]

UNCOMPARED = (
    "no output has a row of numbers for each sample: inference and training mode are not compared"
)

AGREEING = 0.8
"""Share of samples on which inference and training mode agree, in a healthy model 0.95 to 1."""
DIFFERENT = 0.5
"""Norm of the difference of the outputs over theirs, which has to be larger too: an untrained model
has scores so near each other that the largest means little.  0 to 0.3 in healthy models, 0.84 and
more in broken ones."""


def treated(norms: Sequence[Drift], *, random: bool) -> tuple[str, ...]:
    """BatchNorms that may explain why inference differs from training.

    Random data fit no healthy statistics well: there only those that are far off count.
    """
    return tuple(d.layer for d in norms if d.far or (d.stale and not random))


def disagrees(train: TrainMode | None) -> bool:
    """Whether inference mode gives other answers than training mode, which gives finite ones."""
    if train is None or not train.agreement.reference:
        return False
    found = train.agreement
    if found.finite < found.reference:
        return True
    share = found.share
    return found.difference > DIFFERENT and (share is None or share < AGREEING)


def closes(found: Agreement | None, gap: Agreement) -> bool:
    """Whether other statistics close half of the gap to training mode or more."""
    if found is None:
        return False
    if found.share is not None and gap.share is not None:
        return found.share >= (1 + gap.share) / 2
    return found.difference <= min(gap.difference, 2.0) / 2


def with_norms(
    report: ProbeReport, feed: Feed, used: Array, outputs: Sequence[Arrays]
) -> ProbeReport:
    """Compare BatchNorms with the data, and inference mode with training mode."""
    names = tuple(feed.subject.norms)
    samples = report.samples
    if not names:
        return report
    if samples is not None and (samples.outliers or samples.large):
        # one sample far off outweighs all others in a variance
        far = [sample.index for sample in (*samples.outliers, *samples.large)]
        used = np.setdiff1d(used, far)
        outputs = [feed.run(batch) for batch in feed.batches(used)]
    trained, statistics = _in_training(feed, used, names)
    norms = drifts(feed.subject, statistics)
    blind = tuple(d.layer for d in norms if not d.values and d.layer in statistics.nonfinite)
    alike = samples is not None and samples.alike
    norms = tuple(d for d in norms if d.broken or (d.values and not alike))
    report = replace(report, norms=norms, norms_of=len(names), blind=blind)
    if alike:  # a variance of what does not differ is 0
        return report
    random = samples is not None and samples.kind == "random"
    if not random:
        report = replace(report, scale=_scale(report, feed, statistics))
    sizes = [len(batch) for batch in feed.batches(used)]
    found = compared(outputs, trained, sizes)
    if found is None:
        return replace(report, notes=(*report.notes, UNCOMPARED))
    train = TrainMode(
        agreement=found,
        treated=treated(norms, random=random),
        batch=feed.data.batch or max(map(len, feed.batches(used)), default=0),
    )
    if train.treated and disagrees(train):
        healed, _ = _in_training(feed, used, train.treated)
        train = replace(train, healed=compared(healed, trained, sizes))
    if not random and disagrees(train) and not closes(train.healed, train.agreement):
        train = replace(train, pooled=_crosswise(feed, used, names, trained))
    return replace(report, train=train)


def _scale(report: ProbeReport, feed: Feed, statistics: BatchStatistics) -> Scale | None:
    """Tell samples of another scale, where nothing else would look like it.

    A new layer has no scale; one that exploded looks like smaller samples.
    """
    first = statistics.first
    drift = next((d for d in report.norms if d.layer == first), None)
    if drift is None or drift.new:
        return None
    values, data = statistics.pooled(first)
    size = report.samples.usual if report.samples is not None else 0.0
    found = scale_of(first, feed.subject.statistics(first), data, values, size=size)
    accused = any(report.layers.get(finding.tensor) == first for finding in report.said)
    if found is None or found.factor > 1 or (found.together and not accused):
        return found
    return None


def _in_training(
    feed: Feed, used: Array, names: Sequence[str]
) -> tuple[list[Arrays], BatchStatistics]:
    chosen = frozenset(names)
    with BatchStatistics(feed.subject, names) as statistics:
        outputs = [feed.run(batch, statistics, only=chosen) for batch in feed.batches(used)]
    return outputs, statistics


def _crosswise(
    feed: Feed, used: Array, names: Sequence[str], trained: Sequence[Arrays]
) -> Agreement | None:
    """Compare training mode with inference by statistics that each half has of the other half.

    What they were pooled from and what they are judged by must differ: statistics of one batch
    agree with that batch whatever the model.  None for a single batch, and where a half would have
    fewer samples than statistics are recomputed from.
    """
    batches = list(feed.batches(used))
    if len(batches) < 2 or len(used) < 2 * FEWEST:
        return None
    ours: list[Arrays] = []
    for learnt in (0, 1):
        chosen = np.concatenate(batches[learnt::2])
        _, found = _in_training(feed, chosen, names)
        pools = {name: pool for name in names if (pool := found.pooled(name))[0]}
        with holding(feed.subject, {name: pool[1] for name, pool in pools.items()}):
            ours += [feed.run(batch) for batch in batches[1 - learnt :: 2]]
    theirs = [*trained[1::2], *trained[::2]]
    return compared(ours, theirs, [len(batch) for batch in (*batches[1::2], *batches[::2])])
