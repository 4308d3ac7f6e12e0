"""What a trained model offers to be damaged, what a fault is, and which half a model belongs to."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ckptdoctor.findings import Severity

Array = npt.NDArray[Any]
Kind = Literal["bn", "norm", "normalization", "kernel", "embedding", "weightnorm"]
Half = Literal["fit", "test"]

NOISE = 1.0
"""A fault takes effect where it changes the output by more than this many times what rounding
every weight to bfloat16 does (0.1 to 1 percent)."""
HARM = 0.1
"""Relative change of the output that nobody would call noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A layer that can be damaged; all of it is taken from the live model, never from a file.

    Parameters
    ----------
    layer
        Its name in the model.
    kind
        What it is.
    parts
        ``kernel``, ``gamma``, ``mean``, ``var``, ``count`` ... -> name of the weight.
    out
        Axis of the kernel that counts its outputs.
    feeder
        Kernel whose output a BatchNorm normalises, empty where a sum, a pool or the input feeds it.
    """

    layer: str
    kind: Kind
    parts: Mapping[str, str]
    out: int = 0
    feeder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to damage one patient.

    Parameters
    ----------
    code
        The rule that is meant to see it.
    what, place
        For the list of misses: strength and kind of damage, and where.
    change
        New values by weight name or path of the training state; None removes it.
    targets
        Names (of weights or paths of the training state) one of which has to be found.
    touched
        Others that the same damage changed: findings about them are no false alarms.
    layouts
        Formats in which it can be written; all where empty.
    config
        Edit of Keras' stored configuration.
    cast_to
        The ``--cast-to`` of the inspection.
    defined
        Why it takes effect, where the output in evaluation mode cannot say so.
    least
        Severity of the finding that counts; None for the rule's own, at most a warning.
    """

    code: str
    what: str
    place: str
    change: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    config: Callable[[dict[str, Any]], None] | None = None
    cast_to: str = ""
    defined: str = ""
    least: Severity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file on disk, and what the patient's names are called in it."""

    path: Path
    names: Mapping[str, str]
    twins: Mapping[str, str] = field(default_factory=dict)
    """Second name of a weight that has two (tied weights): the same memory, the same fault."""


def half_of(framework: str, model: str, seed: int) -> Half:
    """Which half a model belongs to: thresholds were chosen on ``fit``, the table is of ``test``.

    Of every two seeds, a hash says which is which.
    """
    digest = hashlib.sha256(f"{framework}/{model}/{seed // 2}".encode()).digest()
    return "fit" if (digest[0] + seed) % 2 else "test"


class Patient(ABC):
    """A trained model of some framework."""

    framework: str
    model: str
    seed: int
    weights: dict[str, Array]
    """Parameters and buffers by the framework's own names."""
    state: dict[str, Any]
    """Training state by path: tensors and numbers."""
    spots: tuple[Spot, ...]
    """Layers in the order in which data flows."""

    @property
    def key(self) -> str:
        return f"{self.framework}/{self.model}/{self.seed}"

    @property
    @abstractmethod
    def layouts(self) -> tuple[str, ...]:
        """Formats it can be written in."""

    @abstractmethod
    def predict(self, weights: Mapping[str, Array]) -> Array:
        """Output in evaluation mode for fixed inputs."""

    @abstractmethod
    def live(self, batches: Sequence[Array]) -> dict[str, Array]:
        """Weights after forward passes in training mode, whose steps were skipped."""

    @abstractmethod
    def inputs(self, count: int) -> Array:
        """A batch as the model was trained on."""

    @abstractmethod
    def write(self, folder: Path, layout: str, change: Mapping[str, Any],
              config: Callable[[dict[str, Any]], None] | None = None) -> Written:  # fmt: skip
        """Write the patient with some of its weights or training state changed."""

    def rng(self, *what: object) -> np.random.Generator:
        """Random numbers that depend on nothing but the patient and ``what``."""
        return np.random.default_rng(crc32(repr((self.key, *what)).encode()))

    def of_kind(self, *kinds: str) -> list[Spot]:
        return [spot for spot in self.spots if spot.kind in kinds]

    def places(self, *kinds: str, count: int = 3) -> Iterator[tuple[str, Spot]]:
        """Early, middle and late layers of these kinds, each with its place in words."""
        spots = self.of_kind(*kinds)
        picked = (
            np.unique(np.linspace(0, len(spots) - 1, count).round().astype(int)) if spots else ()
        )
        for i in picked:
            yield f"{spots[i].layer} ({spots[i].kind} {i + 1} of {len(spots)})", spots[i]

    @cached_property
    def healthy_output(self) -> Array:
        return self.predict(self.weights)

    @cached_property
    def noise(self) -> float:
        """Relative change of the output when every weight is rounded to bfloat16."""
        rounded = {
            name: value.astype(ml_dtypes.bfloat16).astype(value.dtype)
            if value.dtype.kind == "f" and np.isfinite(value).all() else value
            for name, value in self.weights.items()
        }  # fmt: skip
        return distance(self.predict(rounded), self.healthy_output)

    def effect(self, fault: Fault) -> float:
        """Relative change of the output by a fault; infinite where it is no longer finite."""
        merged = {**self.weights}
        for name, value in fault.change.items():
            if name in merged and value is not None:
                merged[name] = np.asarray(value).astype(merged[name].dtype)
        return distance(self.predict(merged), self.healthy_output)


def distance(output: Array, reference: Array) -> float:
    """Norm of the difference over the norm of the reference."""
    if not np.isfinite(output).all():
        return float("inf")
    with np.errstate(over="ignore"):
        return float(
            np.linalg.norm(output.astype(np.float64) - reference) / np.linalg.norm(reference)
        )
