"""CF004: the file speaks of another number of classes than its head has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..findings import Finding, Severity
from ..layers import Layer
from ..tensors import LayerConfig
from .base import Case, Context, Rule, rule

COUNTS = r"num_?class(es)?|n_?class(es)?|nb_class(es)?|num_labels|n_labels|class_num|classes_num"
"""Names of numbers that say how many classes there are; ``nc`` is not one: it counts channels in
GANs."""
MAPS = r"label2id|class_to_idx|label_to_idx|class2idx"
"""Names of dictionaries from a class to its number."""
HEADS = (
    r"fc|head|heads|classifier|classification_head|cls_head|logits|last_linear|linear|output"
    r"|output_layer|output_projection|fc_out|out|cls|score|predictions?"
)
"""Names of last layers, numbers behind them left off (``classifier.6``)."""
MOST = 1_000_000

_NAME = "hyper_parameters.num_classes"
_HEAD = {"fc.weight": [[0.0]] * 5}


def _labels(count: int) -> dict[str, float | int]:
    return {f"config.label2id.{i}": i for i in range(count)}


def _dense(activation: str, units: int) -> tuple[LayerConfig, ...]:
    settings = {"units": units}
    return (LayerConfig(name="out", class_name="Dense", activation=activation, settings=settings),)


@rule
class ClassCountMismatch(Rule):
    """Two statements of the file about the number of classes contradict each other.

    What it means
    -------------
    The head has more or fewer outputs than the hyperparameters or the label table name classes.
    With fewer, some classes can never be predicted (in training, a label out of range is an index
    error or, on a GPU, memory that was never written, and so NaN); with more, some predictions
    have no name.  A softmax over a single unit is the same fault at its end: it says 1 for every
    input.

    How it happens
    --------------
    A pretrained head kept for another data set; labels that changed after training; a
    hyperparameter that was set but not used; ``Dense(1, activation="softmax")`` for two classes,
    where a sigmoid was meant.

    When to ignore it
    -----------------
    When the number belongs to something else: a teacher, another data set, a default nobody
    read.  To be sure, the rule only speaks where a head can be told by its name, no other tensor
    has that many outputs, and the numbers differ by more than a background class.
    """

    code = "CF004"
    name = "class-count-mismatch"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "torch.nn.CrossEntropyLoss: targets are class indices in the range [0, C)",
        "transformers.PretrainedConfig: num_labels, id2label and label2id",
        "keras.activations.softmax: the last axis sums to 1",
    )
    healthy = (
        Case("as many as stated", _HEAD, scalars={_NAME: 5}),
        Case("a background class more", _HEAD, scalars={_NAME: 4}),
        Case("a background class that counts", _HEAD, scalars={_NAME: 6}),
        Case("one output for two classes", {"fc.weight": [[0.0, 0.1]]}, scalars={_NAME: 2}),
        Case("as many as labels", _HEAD, scalars=_labels(5)),
        Case("one of two statements fits", _HEAD, scalars={_NAME: 9, **_labels(5)}),
        Case("a second head of that size", {**_HEAD, "aux.weight": [[1.0, 0.0]] * 9},
             scalars={_NAME: 9}),
        Case("no layer known as a head", {"proj.weight": [[0.0, 0.1]] * 5}, scalars={_NAME: 9}),
        Case("a sigmoid over one unit", {}, layers=_dense("sigmoid", 1)),
        Case("a softmax over two units", {}, layers=_dense("softmax", 2)),
    )  # fmt: skip
    sick = (
        Case("hyperparameters name more", _HEAD, scalars={_NAME: 10}),
        Case("a label table names fewer", _HEAD, scalars=_labels(3)),
        Case("a softmax over one unit", {}, layers=_dense("softmax", 1)),
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        yield from self._single(ctx)
        stated = _stated(ctx.table.scalars)
        if not stated:
            return
        head = _head(ctx)
        if head is None or _fits(ctx, head, set(stated)):
            return
        info = head.parts["kernel"]
        count, path = next(iter(stated.items()))
        source = path[:120]
        yield self.finding(
            info,
            f"{head.units:,} outputs, but {source} speaks of {count:,} classes",
            limit="no statement within one of the head's outputs",
            outputs=head.units,
            classes=count,
            source=source,
        )

    def _single(self, ctx: Context) -> Iterator[Finding]:
        for config in ctx.table.layers.values():
            one = config.class_name == "Dense" and config.settings.get("units") == 1
            if not one or config.activation != "softmax":
                continue
            found = [layer for layer in ctx.layers.all if layer.config is config]
            kernel = found[0].parts.get("kernel") if found else None
            finding = self.number_finding(
                kernel.name if kernel is not None else "",
                "a softmax over 1 unit is 1 for every input",
                role="model",
                limit="fewer than 2 units",
                outputs=1,
            )
            yield replace(finding, layer=config.name)


def _stated(scalars: Mapping[str, float | int]) -> dict[int, str]:
    """Numbers of classes that the file states -> where."""
    found: dict[int, str] = {}
    maps: dict[str, set[float]] = {}
    for path, value in scalars.items():
        *above, leaf = re.split(r"[./]", path)
        if re.fullmatch(COUNTS, leaf, re.IGNORECASE) and 2 <= value <= MOST and value == int(value):
            found.setdefault(int(value), path)
        elif above and re.fullmatch(MAPS, above[-1], re.IGNORECASE):
            maps.setdefault(path[: -len(leaf) - 1], set()).add(value)
    for path, values in maps.items():
        if len(values) >= 2 and values == set(range(len(values))):
            found.setdefault(len(values), path)
    return found


def _head(ctx: Context) -> Layer | None:
    """Return the one layer that can only be the classifier; None where it is not sure."""
    stems: dict[str, Layer] = {}
    for layer in ctx.layers.of_kind("dense"):
        stem = re.sub(r"([./]\d+)+$", "", layer.name)
        if "kernel" in layer.parts and re.fullmatch(HEADS, re.split(r"[./]", stem)[-1]):
            stems[stem] = layer  # the last of a sequence
    if len({layer.units for layer in stems.values()}) != 1:
        return None
    return next(iter(stems.values()))


def _fits(ctx: Context, head: Layer, stated: set[int]) -> bool:
    """Whether a statement can mean this head, or another tensor of that size."""
    if any(abs(head.units - count) <= 1 for count in stated):
        return True
    outputs: set[int] = set()
    for info in ctx.table.infos.values():
        if info.shape and info is not head.parts["kernel"]:
            outputs |= {info.shape[0], info.shape[-1]} if len(info.shape) == 2 else {info.shape[0]}
    return not stated.isdisjoint(outputs)
