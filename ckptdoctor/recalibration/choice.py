"""Which BatchNorms to recompute: none, the broken ones, or all; by what held-back samples say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..errors import UsageError
from ..live.batch_statistics import BatchStatistics
from ..live.outliers import peaks
from ..live.subject import Arrays, Statistics, Subject
from ..tensors import Array
from .agreement import Agreement, alike, compared, holding
from .contradiction import contradicted
from .estimate import Batches, Channels, estimate, every_channel
from .samples import usable
from .scale import Scale, scale_of

__all__ = ["FEW", "FEWEST", "Candidate", "Reach", "Recalibration", "recalibrated"]

Reach = Literal["none", "broken", "all"]

FEWEST = 16
"""Samples below which nothing is recomputed unless forced: 16 images for all of 100 layers took a
model from 0.968 to 0.834, where 64 gave 0.964."""
FEW = 64
"""Samples below which the result is warned about."""
BATCH = 64
"""Samples in a batch, unless the caller says otherwise."""
HELD = 4
"""One sample of this many is held back while the candidates are compared."""

NEAR = 0.1
"""Relative error up to which statistics that look broken in the file agree with the data.  Of 14 kinds
of network, healthy ones stay below 0.04 with 64 samples and more, and at 0.14 at most with 16 or 32; but
for those with one BatchNorm in two places (0.35 to 1) and those with momentum None (0.2), whose
statistics are not those of any batch."""
APART = 0.3
"""Relative error from which what the model holds is off.  Data of twice the scale give 0.29."""
BEYOND = 0.2
"""Relative error from which recomputing what is broken was not enough.  Over 964 cases with 64 to 512
samples the broken channels alone were right up to 0.14 and wrong from 0.25 (up to 16 points lost), seldom
in between (at 0.1, 4 points in 4 cases): with 0.3, 23 cases ended 1.5 points below their twin, with 0.2
12.  Still less costs where the data are not those of training: over 648 cases (other scales, offsets,
noise) 0.05 lost 1.8 points more than 0.3 on average, 0.2 0.4."""
BETTER = 2.0
"""Times that a wider candidate's error must be smaller to be preferred.  With 16 samples the errors are
mostly noise, 0.04 to 0.34: 1.5 lost more there."""
USELESS = 1.0
"""Relative error from which what would be taken says nothing of the model: another sample's output is 2
apart.  Of 1,400 cases on data like those of training none that helped came near; one sample of 50 times
the usual size gave 3.7 and cost 11 points."""
COMPARED = 8
"""Samples below which no candidates are compared: of one held-back sample nothing differs."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to go, and how the model agreed with its training mode on held-back samples.

    Parameters
    ----------
    reach, agreement
        What was recomputed, and what came of it.
    contradicted
        Whether broken channels keep what the data contradict: it is not taken then.
    """

    reach: Reach
    agreement: Agreement | None
    contradicted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """New statistics, and why these.

    Parameters
    ----------
    reach
        What was chosen: ``none`` (what the model holds agrees with the data), the ``broken``
        channels or ``all`` BatchNorms.
    statistics
        By BatchNorm, as the framework stores them; empty for ``none``.
    candidates
        What was compared, narrowest first.
    samples, held_back
        How many samples were used, and how many of them the comparison was made on; the statistics
        are of all that were used.
    warnings
        What speaks against trusting them, one sentence each.
    idle
        BatchNorms that were to be recomputed and are not called on these data: they stay.
    """

    reach: Reach
    statistics: Mapping[str, Statistics]
    candidates: tuple[Candidate, ...]
    samples: int
    held_back: int
    warnings: tuple[str, ...]
    idle: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line: the statistics are thousands of numbers."""
        count = len(self.statistics)
        told = f"{count:,} BatchNorm{'' if count == 1 else 's'} from {self.samples:,} samples"
        if self.warnings:
            told += f"; {len(self.warnings)} warning{'' if len(self.warnings) == 1 else 's'}: "
            told += self.warnings[0]
        return f"<Recalibration {self.reach}: {told}>"


Note = Callable[[int, int], None]
"""Called with samples done and samples in all."""


def recalibrated(
    subject: Subject,
    inputs: Sequence[Array],
    broken: Channels,
    *,
    reach: Reach | None = None,
    batch_size: int = BATCH,
    force: bool = False,
    note: Note | None = None,
) -> Recalibration:
    """Recompute statistics from samples, as far as the damage reaches.

    Candidates are what the model holds, the broken channels recomputed, and all BatchNorms
    recomputed.  Each is computed on three quarters of the samples, and its outputs in inference
    mode are compared on the last quarter with those of training mode (every BatchNorm normalising
    by its batch).  The narrowest candidate that agrees is taken: healthy statistics come from more
    samples than anyone has at hand.  What is taken is recomputed on all samples.

    Parameters
    ----------
    subject
        Not changed.
    inputs
        One array per input of the model, samples first.
    broken
        Channels that are known to be broken; may be empty.
    reach
        Take this one, without comparing.
    batch_size
        Samples in a batch.
    force
        Accept fewer than `FEWEST` samples.
    note
        Of progress.

    Raises
    ------
    UsageError
        If there are too few samples or all are alike, or the model is not finite in training mode
        either, or with no candidate.
    """
    inputs, left_out = usable(inputs)
    samples = len(inputs[0])
    if samples < FEWEST and not force:
        hint = "give more of the training data, or force it (--force)"
        raise UsageError(f"expected at least {FEWEST} samples, found {samples}", hint=hint)
    work = _Work(subject, inputs, broken, batch_size, note)
    scale = work.scale()
    candidates = work.candidates() if reach is None and samples >= COMPARED else ()
    if reach is None and not candidates:  # forced
        reach = "broken" if broken else "none"
    chosen = reach or _narrowest(candidates)
    if not force:
        _check_agreement(chosen, candidates)
        _check_scale(chosen, scale)
    channels = work.channels(chosen)
    statistics = estimate(subject, channels, work.batches(), work.told) if channels else {}
    return Recalibration(
        reach=chosen,
        statistics=statistics,
        candidates=tuple(candidates),
        samples=samples,
        held_back=work.held_back if candidates else 0,
        warnings=(*left_out, *_warnings(samples, chosen, broken, candidates, scale)),
        idle=tuple(name for name in channels if name not in statistics),
    )


class _Work:
    """Samples in a fixed random order, in batches; of each batch every fourth is held back."""

    def __init__(
        self,
        subject: Subject,
        inputs: Sequence[Array],
        broken: Channels,
        batch_size: int,
        note: Note | None,
    ) -> None:
        self.subject, self.inputs, self.broken = subject, inputs, broken
        samples = len(inputs[0])
        # files are often sorted by class, and a batch of one class normalises wrongly
        order = np.random.default_rng(0).permutation(samples)
        count = max(1, round(samples / batch_size))
        self.rows = [np.sort(part) for part in np.array_split(order, count)]
        self.held_back = sum(len(rows[::HELD]) for rows in self.rows)
        self._note, self._done = note, 0

    def batches(self) -> Batches:
        """All samples."""
        return _Lazy(self.inputs, self.rows)

    def told(self, samples: int) -> None:
        """Pass on what was done: at most four rounds over the samples."""
        self._done += samples
        if self._note is not None:
            total = 4 * len(self.inputs[0])
            self._note(min(self._done, total), total)

    def channels(self, reach: Reach) -> Channels:
        """Channels that a candidate recomputes."""
        if reach == "all":
            return every_channel(self.subject)
        return self.broken if reach == "broken" else {}

    def candidates(self) -> list[Candidate]:
        """Compare what there is to choose from, narrowest first."""
        kept = _Lazy(self.inputs, [rows[::HELD] for rows in self.rows])
        rest = _Lazy(self.inputs, [np.delete(rows, np.s_[::HELD]) for rows in self.rows])
        wanted = self._in_training()
        found: list[Candidate] = []
        reaches: list[Reach] = ["none", "broken", "all"] if self.broken else ["none", "all"]
        for reach in reaches:
            channels = self.channels(reach)
            made = estimate(self.subject, channels, rest, self.told) if channels else {}
            if reach == "broken":
                held = {name: self.subject.statistics(name) for name in made}
                if contradicted(self.subject.norms, held, made, channels):
                    found[0] = replace(found[0], contradicted=True)
            with holding(self.subject, made):
                outputs = [self.subject.run(batch) for batch in kept]
            found.append(Candidate(reach, compared(outputs, wanted)))
        return found

    def _in_training(self) -> list[Arrays]:
        """Run what is held back in training mode, amid the rest of its batch.

        On the held-back samples alone batches would be a fourth as large: of 16 samples 4, whose
        own noise is a relative error of 0.3 to 0.5 in dense networks (0.04 this way).
        """
        kept: list[Arrays] = []
        with BatchStatistics(self.subject, self.subject.norms) as observer:
            for batch in self.batches():
                outputs = self.subject.run(batch, observer, only=observer.names)
                self.told(len(batch[0]))
                rows = len(batch[0])
                kept.append(
                    tuple(out[::HELD].copy() for out in outputs if out.ndim and len(out) == rows)
                )
        if any(not np.isfinite(out).all() for batch in kept for out in batch):
            raise UsageError(
                "outputs are not finite in training mode either: no statistics of BatchNorm are "
                "to blame, or not alone",
                hint="ckptdoctor probe shows the first layer that goes wrong",
            )
        if alike(kept):
            raise UsageError(
                "in training mode the model gives the same for all samples: there is nothing to "
                "compare on",
                hint="give samples that differ",
            )
        return kept

    def scale(self) -> Scale | None:
        """Hold a batch against what the BatchNorm that is called first knows of training."""
        batch = self.batches()[0]
        with BatchStatistics(self.subject, self.subject.norms) as observer:
            self.subject.run(batch, observer, only=observer.names)
            first = observer.first
            if not first or observer.nonfinite.get(first):
                return None
            values, data = observer.pooled(first)
        held, size = self.subject.statistics(first), float(np.median(peaks(batch)))
        return scale_of(first, held, data, values, size=size, broken=self.broken.get(first))


class _Lazy(Sequence[Sequence[Array]]):
    """Batches taken out of the arrays when they are used."""

    def __init__(self, inputs: Sequence[Array], rows: Sequence[Array]) -> None:
        self._inputs, self._rows = inputs, [part for part in rows if len(part)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sequence[Array]:  # type: ignore[override]
        return [values[self._rows[index]] for values in self._inputs]


def _narrowest(candidates: Sequence[Candidate]) -> Reach:
    """Take the first candidate that no wider one beats by far.

    What looks broken in the file has to agree with the data to stay: in the outputs, and in its
    own statistics.
    """
    errors = {each.reach: each.agreement.error for each in candidates if each.agreement is not None}
    suspected = any(each.reach == "broken" for each in candidates)
    if not errors:  # nothing to compare: what is broken, and no more
        return "broken" if suspected else "none"
    least = min(errors.values())
    if not np.isfinite(least):
        raise UsageError(
            "outputs are not finite with any statistics of BatchNorm, but in training mode",
            hint="ckptdoctor probe shows the first layer that goes wrong",
        )
    none, every = errors["none"], errors["all"]
    if not suspected:
        return "none" if none <= APART or none <= BETTER * every else "all"
    broken = errors["broken"]
    agrees = none <= NEAR or none <= min(APART, BETTER * min(broken, every))
    if agrees and not any(each.contradicted for each in candidates):
        return "none"
    return "broken" if broken <= BEYOND or broken <= BETTER * every else "all"


def _check_agreement(chosen: Reach, candidates: Sequence[Candidate]) -> None:
    """Refuse what does not agree with training mode either.

    Raises
    ------
    UsageError
        If its error is `USELESS`.
    """
    error = max(
        (c.agreement.error for c in candidates if c.agreement is not None and c.reach == chosen),
        default=0.0,
    )
    if error >= USELESS:
        raise UsageError(
            f"with no statistics does inference agree with training mode on these samples (relative "
            f"error {error:.2g} at best)",
            hint="look at the samples with ckptdoctor probe --bisect, or force it (--force)",
        )


def _check_scale(chosen: Reach, scale: Scale | None) -> None:
    """Refuse to store statistics of samples that were not scaled.

    Raises
    ------
    UsageError
        If they are, and something would be stored.
    """
    if chosen != "none" and scale is not None and scale.refused:
        raise UsageError(
            f"{scale}, and so do their means: they are not scaled as in training",
            hint="give samples as the model is given them, or force it (--force)",
        )


def _warnings(
    samples: int,
    chosen: Reach,
    broken: Channels,
    candidates: Sequence[Candidate],
    scale: Scale | None,
) -> list[str]:
    found = []
    if chosen != "none" and samples < FEW:
        found.append(
            f"{samples} samples are few: statistics of {FEW} or more restored up to 13 points of "
            "accuracy more where it was measured."
        )
    if chosen == "all" and candidates:
        what = "beyond the broken layers" if broken else "although no rule finds a layer broken"
        found.append(
            f"All BatchNorms are recomputed: {what}, the stored statistics disagree with these "
            "data. That is so after damage the file does not show, and also where the data are not "
            "those of training: another scale or normalisation of the inputs. Make sure of that."
        )
    if scale is not None:
        told = str(scale)
        found.append(f"{told[0].upper()}{told[1:]}: {scale.advice}.")
    return found
