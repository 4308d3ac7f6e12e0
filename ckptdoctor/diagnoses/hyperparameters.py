"""Settings of the training run, where a checkpoint stores them, and what each contributes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..layers import Layers
from ..measure.stats import StatsTable
from ..tensors import TensorTable

__all__ = ["Settings", "read_settings"]

HIGH_RATE = {"adam": 1e-2, "sgd": 5e-2}
"""Above these a learning rate is at the top of what is usual: Adam's default is 1e-3, advice for
SGD ends at 5e-2 unless the batch is large."""
TORCH_FIRST_SCALE = 65536.0
"""``torch.amp.GradScaler(init_scale=2**16)``."""
EARLY_STEPS = 100
"""A NaN within so few steps is the data or the learning rate, hardly ever slow growth."""
HALF_TINY = 6e-8
"""Smallest positive float16: a smaller epsilon is 0 there."""

_NAMES = {
    "lr": "rate", "learning_rate": "rate", "initial_lr": "first_rate", "eps": "epsilon",
    "epsilon": "epsilon", "weight_decay": "weight_decay", "momentum": "momentum",
    "beta_1": "beta", "initial_scale": "first_scale", "growth_interval": "growth_interval",
    "dynamic_growth_steps": "growth_interval", "_growth_tracker": "since_skip",
    "step_counter": "since_skip", "scale": "scale", "dynamic_scale": "scale",
    "loss_scale": "scale", "cur_scale": "scale", "epoch": "epoch", "global_step": "step",
    "iteration": "step", "iterations": "step", "step": "step",
}  # fmt: skip
_OPTIMIZER_ONLY = {"rate", "first_rate", "epsilon", "weight_decay", "momentum", "beta"}
_SCALER_ONLY = {"scale", "since_skip"}


@dataclass(eq=False, repr=False)
class Settings:
    """What a checkpoint says about its training run; None or empty where it says nothing.

    Parameters
    ----------
    rates
        Learning rate by the path of its number, one per parameter group.
    first_rate, epsilon, weight_decay, momentum, beta
        Of the optimizer's first group; ``beta`` is Adam's first.
    scale, first_scale, since_skip, growth_interval
        Loss scale now and at the start, steps since it was last changed, steps between increases.
    epoch, step
        How far training had come.
    batches
        Batches that BatchNorm counted, the most of any layer.
    bn_momentum
        Stored momentum of BatchNorm layers, by layer.
    policies
        Stored dtype policies (Keras).
    keras
        Whether momentum is Keras' share of the old average rather than torch's of the new.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    first_rate: float | None = None
    epsilon: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    beta: float | None = None
    scale: float | None = None
    first_scale: float | None = None
    since_skip: float | None = None
    growth_interval: float | None = None
    epoch: float | None = None
    step: float | None = None
    batches: float | None = None
    bn_momentum: Mapping[str, float] = field(default_factory=dict)
    policies: frozenset[str] = frozenset()
    keras: bool = False

    @property
    def rate(self) -> float | None:
        """Highest learning rate of any group."""
        return max(self.rates.values(), default=None)

    @property
    def family(self) -> str:
        """``adam`` where there are betas, else ``sgd``."""
        return "adam" if self.beta is not None else "sgd"

    @property
    def rate_is_high(self) -> bool:
        """Whether the learning rate is above what is usual for its optimizer."""
        return self.rate is not None and self.rate > HIGH_RATE[self.family]

    @property
    def mixed(self) -> str:
        """How the file shows that float16 took part in training; empty where it does not."""
        half = sorted(policy for policy in self.policies if policy.endswith("float16"))
        half = [policy for policy in half if "bfloat16" not in policy]
        if half:
            return f"the layers' dtype policy is {half[0]}"
        if self.scale is not None or self.first_scale is not None:
            return "a loss scaler is in the file, which float16 training uses"
        return ""

    @property
    def skipped(self) -> str:
        """How the file shows that a step was skipped; empty where it does not.

        A loss scaler halves its scale when it skips a step and doubles it every
        ``growth_interval`` good ones: a scale below its start, or one that changed before it could
        have grown, is the trace of a skip.
        """
        first = self.first_scale or (None if self.keras else TORCH_FIRST_SCALE)
        if self.scale is not None and first and 0 < self.scale < first:
            halvings = round(math.log2(first / self.scale))
            return (
                f"the loss scale is {self.scale:,.5g}, {max(halvings, 1)} halvings below "
                f"{first:,.5g}: steps were skipped"
            )
        if (
            self.since_skip is not None
            and self.growth_interval is not None
            and self.step is not None
            and self.since_skip < self.step < self.growth_interval
        ):
            return f"the scaler skipped a step {self.since_skip:,.0f} steps before the save"
        if self.batches is not None and self.step is not None:
            missed = self.batches - self.step
            # more is gradient accumulation, or BatchNorms that are used twice
            if 0 < missed <= 0.1 * self.step:
                return (
                    f"BatchNorm counted {self.batches:,.0f} batches, the optimizer "
                    f"{self.step:,.0f} steps: {missed:,.0f} skipped"
                )
        return ""

    @property
    def never_updates(self) -> tuple[str, ...]:
        """Layers whose stored momentum keeps their statistics from ever changing."""
        still = 1.0 if self.keras else 0.0
        return tuple(name for name, value in self.bn_momentum.items() if value == still)

    def sentences(self) -> Iterator[str]:
        """Yield what is stored and what it contributes, a clause each."""
        if self.rate_sentence:
            yield self.rate_sentence
        if self.epsilon is not None and self.epsilon < HALF_TINY and self.mixed:
            yield f"optimizer epsilon {self.epsilon:g}: 0 in float16"
        if self.weight_decay == 0:
            yield "no weight decay"
        if self.skipped:
            yield self.skipped
        elif self.scale is not None:
            yield f"loss scale {self.scale:,.5g}"
        where = [
            f"{name} {value:,.0f}"
            for name, value in (("epoch", self.epoch), ("step", self.step))
            if value
        ]
        if where:
            early = self.step is not None and 0 < self.step < EARLY_STEPS
            yield f"saved at {', '.join(where)}{': early, look at the data first' if early else ''}"

    @property
    def rate_sentence(self) -> str:
        """Learning rate and whether it is high; empty where none is stored."""
        rate = self.rate
        if rate is None:
            return ""
        many = len(set(self.rates.values())) > 1
        span = f"{min(self.rates.values()):g} to {rate:g}" if many else f"{rate:g}"
        word = "high" if self.rate_is_high else "usual"
        return f"learning rate {span} ({word} for {'Adam' if self.family == 'adam' else 'SGD'})"


def read_settings(table: TensorTable, stats: StatsTable, layers: Layers) -> Settings:
    """Collect the settings that a checkpoint stores as numbers, small tensors and configuration.

    Examples
    --------
    >>> from ckptdoctor.measure.scan import measure
    >>> from ckptdoctor.layers import read_layers
    >>> table = TensorTable.from_arrays({}, scalars={"optimizer.param_groups.0.lr": 5e7})
    >>> settings = read_settings(table, measure(table).stats, read_layers(table))
    >>> settings.rate, settings.rate_is_high
    (50000000.0, True)
    """
    found = Settings(
        keras=any("/" in name for name in table.infos) or table.format.startswith("keras")
    )
    rates: dict[str, float] = {}
    for path, value in _numbers(table, stats):
        words = re.split(r"[./]", path)
        last = re.sub(r"(:\d+|#\d+)+$", "", words[-1])
        name = _NAMES.get(last, "beta" if words[-2:] == ["betas", "0"] else "")
        if not name or not _fits(name, path, words):
            continue
        number = float(value)
        if name == "rate":
            rates[path] = number
        elif name == "step":
            found.step = max(found.step or 0.0, number)
        elif getattr(found, name) is None:
            setattr(found, name, number)
    # Keras writes 0 for the learning rate of the wrapper around the real optimizer
    found.rates = {path: rate for path, rate in rates.items() if rate} or rates
    found.batches = max(_batches(stats, layers), default=None)
    found.bn_momentum = {
        layer.name: layer.config.momentum
        for layer in layers.batchnorms
        if layer.config is not None and layer.config.momentum is not None
    }
    found.policies = frozenset(
        layer.dtype_policy for layer in table.layers.values() if layer.dtype_policy
    )
    return found


def _numbers(table: TensorTable, stats: StatsTable) -> Iterator[tuple[str, float]]:
    """Python numbers, then tensors of one element that belong to the training state."""
    yield from table.scalars.items()
    for info in table.infos.values():
        if info.role in ("optimizer", "scaler", "training") and info.size == 1:
            value = stats[info.name].mean
            if value is not None:
                yield info.name, value


def _fits(name: str, path: str, words: list[str]) -> bool:
    if name in _SCALER_ONLY and words[-1].startswith(("scale", "step_counter")):
        # a bare scale may be anything's: what holds it must be a scaler
        return any("scaler" in word or "loss_scale" in word or word == "amp" for word in words[:-1])
    if name in _OPTIMIZER_ONLY:
        return "optim" in path.lower() or "param_groups" in words
    return True


def _batches(stats: StatsTable, layers: Layers) -> Iterator[float]:
    for layer in layers.batchnorms:
        count = layer.parts.get("count")
        if count is not None and stats[count.name].maximum is not None:
            yield stats[count.name].maximum or 0.0
