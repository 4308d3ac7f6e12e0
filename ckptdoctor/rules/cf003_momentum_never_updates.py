"""CF003: a momentum with which running statistics keep what they hold."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Severity
from ..layers import Layer
from ..tensors import LayerConfig
from .base import Case, Context, Rule, rule

_FRESH = {"bn.running_mean": [0.0, 0.0], "bn.running_var": [1.0, 1.0]}
_KERAS = {"bn/moving_mean": [0.0, 0.0], "bn/moving_variance": [1.0, 1.0]}


def _torch(momentum: float | None) -> tuple[LayerConfig, ...]:
    return (LayerConfig(name="bn", class_name="BatchNorm2d", momentum=momentum),)


def _keras(momentum: float, *, trainable: bool = True) -> tuple[LayerConfig, ...]:
    settings = {"trainable": trainable}
    name = "BatchNormalization"
    return (LayerConfig(name="bn", class_name=name, momentum=momentum, settings=settings),)


@rule
class MomentumNeverUpdates(Rule):
    """The stored momentum of a BatchNorm layer means that training never moves its statistics.

    What it means
    -------------
    The two frameworks count from opposite ends.  Keras keeps ``momentum`` of the old value, so
    that 1.0 keeps it for ever; torch takes ``momentum`` of the new one, so that 0.0 does
    (``None`` is a plain average over all batches).  Statistics that still are 0 and 1 describe no
    data, and inference normalises by them: good in training, chance accuracy in use.  Statistics
    of another origin stay what they were; that is a note.

    How it happens
    --------------
    A momentum carried from one framework to the other; ``momentum=0.0`` used to freeze a layer;
    a schedule that reached its end.

    When to ignore it
    -----------------
    When the layer is frozen on purpose with statistics that were loaded.
    """

    code = "CF003"
    name = "momentum-never-updates"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "torch.nn.BatchNorm2d: momentum, and that it differs from the usual notion of it",
        "keras.layers.BatchNormalization: moving_mean * momentum + mean(batch) * (1 - momentum)",
        "Ioffe & Szegedy 2015, arXiv:1502.03167",
    )
    healthy = (
        Case("torch's default", _FRESH, layers=_torch(0.1)),
        Case("torch: only the last batch counts", _FRESH, layers=_torch(1.0)),
        Case("torch: a plain average", _FRESH, layers=_torch(None)),
        Case("Keras' default", _KERAS, layers=_keras(0.99)),
        Case("Keras: only the last batch counts", _KERAS, layers=_keras(0.0)),
        Case("Keras: frozen as a whole", _KERAS, layers=_keras(1.0, trainable=False)),
        Case("no statistics to move", {"bn.weight": [1.0]}, layers=_torch(0.0)),
    )
    sick = (
        Case("torch: nothing of any batch", _FRESH, layers=_torch(0.0)),
        Case("Keras: all of the old value", _KERAS, layers=_keras(1.0)),
        Case("frozen with statistics of other origin",
             {"bn.running_mean": [0.1, 0.2], "bn.running_var": [0.5, 2.0]}, {}, Severity.NOTE,
             layers=_torch(0.0)),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        if all(config.momentum is None for config in ctx.table.layers.values()):
            return
        for layer in ctx.layers.batchnorms:
            config = layer.config
            if (
                config is None
                or config.momentum is None
                or config.settings.get("trainable") is False
            ):
                continue
            stuck = config.momentum >= 1 if layer.keras else config.momentum <= 0
            info = layer.parts.get("var") or layer.parts.get("mean")
            if not stuck or info is None:
                continue
            initial = _initial(ctx, layer)
            state = "which still are 0 and 1" if initial else "which are of other origin"
            framework = "Keras keeps all of the old value" if layer.keras else (
                "torch takes nothing of the new one"
            )  # fmt: skip
            yield self.finding(
                info,
                f"momentum {config.momentum:g} never updates the statistics, {state}: {framework}",
                severity=Severity.WARNING if initial else Severity.NOTE,
                limit="1 and above in Keras" if layer.keras else "0 and below in torch",
                momentum=config.momentum,
                initial=initial,
            )


def _initial(ctx: Context, layer: Layer) -> bool:
    """Whether mean and variance, as far as they are there, hold what they began with."""
    for part, start in (("mean", 0.0), ("var", 1.0)):
        if part in layer.parts:
            stats = ctx.stats[layer.parts[part].name]
            if (stats.minimum, stats.maximum) != (start, start) or stats.nonfinite:
                return False
    return True
