"""What a probe comes to, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..findings import Finding, Severity
from ..recalibration.scale import Scale
from ..results import counted, one_line
from .bisect import Search
from .norms import Agreement, Drift
from .precision import Precision
from .trace import LayerRow
from .values import Span

if TYPE_CHECKING:
    from ..results import ErrorInfo

__all__ = ["FirstBad", "Origin", "ProbeReport", "Sample", "Samples", "Sign", "TrainMode"]

Origin = Literal["weights", "statistics", "overflow", "code", "arithmetic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One thing seen while the model ran.

    Parameters
    ----------
    kind
        Identity of the kind of sign: ``nonfinite-output``.
    severity
        Errors make the verdict.
    message
        One sentence with the numbers.
    layer
        The layer it is about; empty where it is about the model or the data.
    measured
        The numbers, for machines.
    """

    kind: str
    severity: Severity
    message: str
    layer: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that is out of the ordinary."""

    index: int
    low: float
    high: float
    nonfinite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The data that the model was run on.

    Parameters
    ----------
    source, kind
        As `ckptdoctor.live.data.Data`.
    total, used
        Samples there are, and how many were run.
    shapes, dtypes
        Of a sample of each input, as stored.
    span
        Of all values that were looked at.
    nonfinite
        Samples that hold NaN or Inf; they are left out.
    outliers
        Samples whose largest magnitude is `ckptdoctor.probing.samples.OUTLYING` times the usual.
    large
        Further ones that are `ckptdoctor.live.outliers.large`: with the outliers they are kept out
        of training mode, and recalibration leaves them out.
    usual
        Median of the largest magnitudes.
    alike
        Whether all that were run are the same sample; False for a single one.
    notes
        What a user should know of them.
    """

    source: str
    kind: str
    total: int
    used: int
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    span: Span
    nonfinite: tuple[Sample, ...] = ()
    outliers: tuple[Sample, ...] = ()
    large: tuple[Sample, ...] = ()
    usual: float = 0.0
    alike: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBad:
    """The first layer that gives values that are not finite, of inputs that are.

    Parameters
    ----------
    row
        Its row.
    origin
        ``weights`` (they are not finite), ``statistics`` (a negative variance), ``overflow``,
        ``code`` (a layer with layers inside that are all fine), or ``arithmetic`` of finite values.
    reason
        The same in words, with numbers.
    said
        Findings of the file on its tensors.
    others
        Further layers where it begins.
    """

    row: LayerRow
    origin: Origin
    reason: str
    said: tuple[Finding, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMode:
    """The model with the statistics of each batch, as in training.

    Parameters
    ----------
    agreement
        Of inference mode with it.
    treated
        BatchNorms that do not fit the data.
    healed
        Agreement when only these use the statistics of the batch; None where there are none.
    pooled
        Agreement of inference by statistics pooled over other batches, in all BatchNorms; None
        where that was not needed, or there is one batch.
    batch
        Samples of a batch.
    """

    agreement: Agreement
    treated: tuple[str, ...] = ()
    healed: Agreement | None = None
    pooled: Agreement | None = None
    batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Everything that ``probe`` has to say about a model.

    Parameters
    ----------
    model
        As the caller named it.
    framework
        ``torch`` or ``keras``.
    file
        Where its weights are from; empty where only its own code knows.
    code
        Whose code was run; empty for none.
    samples
        The data.
    rows
        Every call of every layer, in execution order.
    bad
        Samples whose output is not finite.
    constant
        Whether the outputs are the same for all samples.
    first, frozen
        Where that begins; None where it does not.
    norms
        BatchNorms against the data, in the order the model declares them: those that were given
        finite values, and those that are broken whatever they are given.
    norms_of, blind
        How many BatchNorms the model has; those that were given nothing finite.
    scale
        One factor by which the samples differ from those of training, by the BatchNorm that is
        called first; None where there is none.
    train
        Inference mode against training mode; None without BatchNorms.
    precisions
        The same samples in narrower types.
    searches
        What ``--bisect`` found.
    said
        Errors and warnings of the file, or of the live weights where there is no file.
    layers
        Layer of the model that a tensor of ``said`` belongs to.
    tensors
        What the model calls a tensor of ``said``.
    signs
        What is wrong, the worst first.
    notes
        What a user should know of how it was done.
    next
        Command to copy, and what it does.
    error
        None, or why the model could not be probed.
    """

    model: str
    framework: str = ""
    file: str = ""
    code: str = ""
    samples: Samples | None = None
    rows: tuple[LayerRow, ...] = ()
    bad: int = 0
    constant: bool = False
    first: FirstBad | None = None
    frozen: LayerRow | None = None
    norms: tuple[Drift, ...] = ()
    norms_of: int = 0
    blind: tuple[str, ...] = ()
    scale: Scale | None = None
    train: TrainMode | None = None
    precisions: tuple[Precision, ...] = ()
    searches: tuple[Search, ...] = ()
    said: tuple[Finding, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    signs: tuple[Sign, ...] = ()
    notes: tuple[str, ...] = ()
    next: tuple[tuple[str, str], ...] = ()
    error: ErrorInfo | None = None

    def __repr__(self) -> str:
        """One line, for consoles and notebooks: `ckptdoctor.as_text` has the whole."""
        name = f"<ProbeReport {one_line(self.model)}: "
        if self.error is not None:
            return f"{name}could not be probed: {one_line(self.error.message)}>"
        found = [sign.severity for sign in self.signs]
        told = [counted(*map(found.count, reversed(Severity)))]
        told += [one_line(sign.message) for sign in self.signs[:1]]
        return f"{name}{'; '.join(told)}>"

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong with what the model makes of the data."""
        return self.error is None and not any(s.severity is Severity.ERROR for s in self.signs)
