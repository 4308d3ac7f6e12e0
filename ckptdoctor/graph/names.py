"""Feeds from names, file order and channel counts, for files that store no layer graph.

Names say most: ``conv2`` and ``bn2``, ``0`` and ``1`` of a Sequential.  Shapes then decide whether a
BatchNorm stands behind the kernel that its name pairs it with, or, in a pre-activation net, in
front of it.  What neither tells is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..layers import Layer
from .feeds import Feed
from .kernels import feeding_axes, is_kernel, takes
from .siblings import Child, Place, children_of, place_of

__all__ = ["name_feeds"]

PAIR = "names that pair up"
SEQUENTIAL = "consecutive numbers"
_NORM_WORD = (
    r"(?:sync_?|frozen_?|inplace_?)?(?:batch_?|instance_?)norm(?:ali[sz]ation)?s?(?:_?[123]d)?"
    r"|(?<![a-z])norm(?:ali[sz]ation)?s?(?:_?[123]d)?(?![a-z])|(?<![a-z])(?:s|i|a)?bns?(?![a-z])"
)
_KERNEL_WORDS = frozenset(
    {
        "conv",
        "convs",
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "deconv",
        "fc",
        "fcs",
        "lin",
        "linear",
        "linears",
        "lins",
        "dense",
        "dwconv",
        "depthwise",
        "pointwise",
        "mlp",
        "proj",
        "res",
        "weight",
        "w",
    }
)
_FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    (("conv_stem", "bn1"), ("conv_head", "bn2")),
    (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
    (("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
    (("_conv_stem", "_bn0"), ("_conv_head", "_bn1")),
)
"""Pairs that numbers do not tell: timm's and lukemelas' MobileNets and EfficientNets."""
_AUTOMATIC = r"(sync_)?batch_normalization(_v1)?(_\d+)?"
_SIDE_PATHS = r"(?i)se|.*(_|^)se(_.*)?|.*(att|gate|squeeze|excit|pool|eca|cbam|drop).*"


class _Open(NamedTuple):
    """A pair whose kernel could stand on either side of its BatchNorm."""

    place: Place
    kernel: Place
    axes: tuple[int, ...]


def name_feeds(
    layers: Sequence[Layer], *, in_order: bool, sequences: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, Feed]:
    """Tell what feeds the BatchNorms of one net.

    Parameters
    ----------
    layers
        Of the net, in file order, or in natural order where the file's is a dictionary's.
    in_order
        Whether neighbours inside a block stand in the order in which they were made.
    sequences
        Name of a `torch.nn.Sequential` -> words and class names of its children, in order.

    Returns
    -------
    dict
        Key of a BatchNorm -> its feed, ``unknown`` included.
    """
    return _Net(layers, in_order, sequences).solve()


class _Net:
    """One net's BatchNorms, tried by one kind of evidence after the other."""

    def __init__(
        self,
        layers: Sequence[Layer],
        in_order: bool,
        sequences: Mapping[str, Sequence[tuple[str, str]]],
    ) -> None:
        self.places = [place_of(layer, at) for at, layer in enumerate(layers)]
        self.norms = [place for place in self.places if place.layer.kind == "batchnorm"]
        self.in_order = in_order
        self.sequences = sequences
        parents = {place.parent for place in self.norms}
        parents |= {place.parent.rpartition(".")[0] for place in self.norms if _number(place.leaf)}
        self.children = children_of(self.places, parents)
        self.named: dict[str, Place | None] = {}
        for place in self.places:
            if is_kernel(place.layer):
                self.named[place.name] = None if place.name in self.named else place
        self.feeds: dict[str, Feed] = {}
        self.open: list[_Open] = []
        self.before: list[Place] = []
        self.votes = {"behind": 0, "before": 0}

    def solve(self) -> dict[str, Feed]:
        automatic: dict[str, list[Place]] = {}
        for norm in self.norms:
            if not self.in_order and re.fullmatch(_AUTOMATIC, norm.leaf):
                automatic.setdefault(norm.parent, []).append(norm)
            else:
                self._one(norm)
        for parent, norms in automatic.items():
            self._automatic(parent, norms)
        self._settle()
        for norm in self.before:
            self._behind_previous(norm)
        return self.feeds

    # --- one BatchNorm ---------------------------------------------------------------------------

    def _one(self, norm: Place) -> None:
        if self._own_kernel(norm) or self._family(norm):
            return
        if _number(norm.leaf):
            if not self._sequential(norm):
                self._parallel_lists(norm)
        elif not self._paired(norm) and norm.layer.key not in self.feeds:
            self._nearest(norm)

    def _say(
        self,
        norm: Place,
        kernel: Place,
        axes: tuple[int, ...],
        how: str,
        through: tuple[str, ...] = (),
    ) -> bool:
        self.feeds[norm.layer.key] = Feed(
            kernel.layer, "kernel", how, through, axes, norm.layer.channels
        )
        return True

    def _unknown(self, norm: Place, why: str, source: str = "unknown") -> bool:
        self.feeds[norm.layer.key] = Feed(None, source, why, channels=norm.layer.channels)
        return True

    def _own_kernel(self, norm: Place) -> bool:
        """``conv1`` and ``conv1.bn``: a fused convolution, or a scope of TensorFlow."""
        kernel = self.named.get(norm.parent)
        axes = feeding_axes(kernel.layer, norm.layer.channels) if kernel else None
        return bool(kernel and axes and self._say(norm, kernel, axes, PAIR))

    def _family(self, norm: Place) -> bool:
        children = self.children[norm.parent]
        for row in _FAMILIES:
            if norm.leaf not in [bn for _, bn in row] or not all(k in children for k, _ in row):
                continue
            word = next(kernel for kernel, bn in row if bn == norm.leaf)
            kernel = children[word].direct
            axes = feeding_axes(kernel.layer, norm.layer.channels) if kernel else None
            return bool(kernel and axes and self._say(norm, kernel, axes, PAIR))
        return False

    # --- numbers ---------------------------------------------------------------------------------

    def _sequential(self, norm: Place) -> bool:
        """Go back from ``5`` to ``4`` and so on to what stands in front in a Sequential."""
        number = int(norm.leaf[:18])
        children = self.children[norm.parent]
        earlier = [
            (int(word[:18]), child)
            for word, child in children.items()
            if _number(word) and int(word[:18]) < number
        ]
        if not earlier:
            return False
        at, child = max(earlier, key=lambda pair: pair[0])
        through = self._between(norm.parent, at, number)
        if child.holds("batchnorm", "norm") and child.direct is None:
            return self._unknown(norm, "a block stands before it")
        if child.holds("batchnorm", "norm"):
            if all(each.holds("batchnorm", "norm") for _, each in earlier):
                return False  # a list of normalisations
            return self._unknown(norm, SEQUENTIAL, "norm")
        kernel = _representative(child, norm.layer.channels)
        axes = feeding_axes(kernel.layer, norm.layer.channels) if kernel else None
        if kernel is None or axes is None:
            return self._unknown(norm, "what stands before it has other channels")
        how = "the module's Sequential" if norm.parent in self.sequences else SEQUENTIAL
        return self._say(norm, kernel, axes, how, through)

    def _between(self, parent: str, start: int, stop: int) -> tuple[str, ...]:
        found = [
            kind
            for word, kind in self.sequences.get(parent, ())
            if _number(word) and start < int(word[:18]) < stop
        ]
        return tuple(reversed(found))[:8]

    def _parallel_lists(self, norm: Place) -> bool:
        """``bns.3`` and ``convs.3``: two lists side by side."""
        above, _, word = norm.parent.rpartition(".")
        pattern = _partner(word)
        found: list[Place] = []
        for other in self.children.get(above, {}):
            kernel = self.named.get(f"{above}.{other}.{norm.leaf}".lstrip("."))
            if other == word or kernel is None:
                continue
            if feeding_axes(kernel.layer, norm.layer.channels):
                if pattern and re.fullmatch(pattern, other.lower()):
                    return self._behind_or_before(norm, kernel)
                found.append(kernel)
        if len(found) == 1:
            return self._behind_or_before(norm, found[0])
        return self._unknown(norm, "nothing stands before it in its list")

    # --- words -----------------------------------------------------------------------------------

    def _paired(self, norm: Place) -> bool:
        """``bn2`` and ``conv2``: a sibling whose name differs in the word for the layer only."""
        pattern = _partner(norm.leaf)
        if not pattern:
            return False
        ranked: dict[int, list[Place]] = {}
        for word, child in self.children[norm.parent].items():
            match = re.fullmatch(pattern, word.lower())
            kernel = _representative(child, norm.layer.channels) if match else None
            if kernel is not None and match:
                ranked.setdefault(_closeness(match["word"] or ""), []).append(kernel)
        channels = norm.layer.channels
        for _, kernels in sorted(ranked.items()):
            able = [k for k in kernels if feeding_axes(k.layer, channels)]
            if len(able) > 1 and self.in_order:
                earlier = [k for k in able if k.at < norm.at]
                able = earlier[-1:] or able[:1]
            if len(able) == 1:
                return self._behind_or_before(norm, able[0])
            if able:
                return self._unknown(norm, "several kernels pair up with its name")
            if any(takes(k.layer, channels) for k in kernels):
                self.votes["before"] += 1
                self.before.append(norm)
                return True
        return False

    def _behind_or_before(self, norm: Place, kernel: Place) -> bool:
        """Decide whether a kernel of the right outputs feeds the BatchNorm, or is fed by it."""
        channels = norm.layer.channels
        axes = feeding_axes(kernel.layer, channels) or ()
        if self.in_order and kernel.at < norm.at:
            self.votes["behind"] += 1
            return self._say(norm, kernel, axes, PAIR)
        if not takes(kernel.layer, channels):
            self.votes["behind"] += 1
            return self._say(norm, kernel, axes, PAIR)
        self.open.append(_Open(norm, kernel, axes))
        return True

    def _settle(self) -> None:
        """Decide open pairs as those whose shapes leave no choice."""
        behind, before = self.votes["behind"], self.votes["before"]
        for norm, kernel, axes in self.open:
            if behind and not before:
                self._say(norm, kernel, axes, PAIR)
            elif before and not behind:
                self.before.append(norm)
            else:
                self._unknown(norm, "it could stand before or behind its kernel")

    def _behind_previous(self, norm: Place) -> None:
        """Pre-activation: ``bn2`` stands before ``conv2`` and behind ``conv1``."""
        children = self.children[norm.parent]
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", norm.leaf)
        if match and int(match[2][:18]) > 0:
            leaf = f"{match[1]}{int(match[2][:18]) - 1}{match[3]}"
            pattern = _partner(leaf)
            for word, child in children.items():
                if not re.fullmatch(pattern or "(?!)", word.lower()):
                    continue
                kernel = _representative(child, norm.layer.channels)
                axes = feeding_axes(kernel.layer, norm.layer.channels) if kernel else None
                if kernel and axes and not (self.in_order and kernel.at > norm.at):
                    self._say(norm, kernel, axes, f"{PAIR}, each norm before its own kernel")
                    return
        self._unknown(norm, "it stands before the kernel that its name pairs it with")

    # --- neighbours ------------------------------------------------------------------------------

    def _nearest(self, norm: Place) -> bool:
        """Take the nearest kernel before it in its block; the only fitting one where order says nothing."""
        channels = norm.layer.channels
        children = list(self.children[norm.parent].values())
        if not self.in_order:
            fit = [
                child.direct
                for child in children
                if child.direct
                and is_kernel(child.direct.layer)
                and feeding_axes(child.direct.layer, channels)
            ]
            only = fit[0] if len(fit) == 1 else None
            if only is None or takes(only.layer, channels):
                return self._unknown(norm, "names do not tell, and the file lists them by alphabet")
            how = f"the only kernel of {channels} outputs beside it"
            return self._say(norm, only, feeding_axes(only.layer, channels) or (), how)
        for child in reversed([c for c in children if c.places[0].at < norm.at]):
            if child.holds("batchnorm", "norm"):
                block = child.direct is None
                why = "a block stands before it" if block else "another norm stands before it"
                return self._unknown(norm, why)
            kernel = _representative(child, channels)
            axes = feeding_axes(kernel.layer, channels) if kernel else None
            if kernel and axes:
                return self._say(norm, kernel, axes, f"file order and {channels} channels")
        return self._unknown(norm, "no kernel of its channels stands before it")

    # --- names that Keras made up ----------------------------------------------------------------

    def _automatic(self, parent: str, norms: Sequence[Place]) -> None:
        """Pair ``batch_normalization_3`` with the fourth convolution, if all of them agree."""
        families: dict[str, list[Place]] = {}
        for child in self.children[parent].values():
            place = child.direct
            if place is not None and is_kernel(place.layer):
                families.setdefault(re.sub(r"_\d+$", "", place.leaf), []).append(place)
        for kernels in families.values():
            pairs = list(zip(norms, kernels, strict=False))
            axes = [feeding_axes(k.layer, norm.layer.channels) for norm, k in pairs]
            if len(kernels) == len(norms) and all(axes):
                for (norm, kernel), found in zip(pairs, axes, strict=True):
                    self._say(norm, kernel, found or (), "as many kernels as norms, channels agree")
                return
        for norm in norms:
            fit = [
                kernel
                for kernels in families.values()
                for kernel in kernels
                if feeding_axes(kernel.layer, norm.layer.channels)
            ]
            rivals = [each for each in norms if each.layer.channels == norm.layer.channels]
            if len(fit) == 1 and len(rivals) == 1:
                how = f"the only kernel of {norm.layer.channels} outputs beside it"
                self._say(norm, fit[0], feeding_axes(fit[0].layer, norm.layer.channels) or (), how)
            else:
                self._unknown(norm, "names do not tell, and the file lists them by alphabet")


def _number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _partner(leaf: str) -> str:
    """Pattern of the kernels that a norm's name pairs up with; empty for a name that is none.

    Examples
    --------
    >>> [bool(re.fullmatch(_partner(a), b)) for a, b in (("bn2", "conv2"), ("bn2", "conv1"))]
    [True, False]
    >>> [bool(re.fullmatch(_partner(a), b)) for a, b in (("a_bn", "a_conv"), ("bn_a", "a"))]
    [True, True]
    """
    word = re.search(_NORM_WORD, leaf.lower()[:100])
    if word is None:
        return ""
    before, after = leaf.lower()[: word.start()], leaf.lower()[word.end() : 100]
    letters = r"(?P<word>[a-z_]*?(?:conv[123]d)?)"
    return f"{_bare(before, end=True)}_?{letters}_?{_bare(after, end=False)}"


def _bare(text: str, *, end: bool) -> str:
    return re.escape(text.rstrip("_") if end else text.lstrip("_"))


def _closeness(word: str) -> int:
    if not word.strip("_"):
        return 0
    if word.strip("_") in _KERNEL_WORDS:
        return 1
    return 2 if "conv" in word or "_" not in word.strip("_") else 3


def _representative(child: Child, channels: int) -> Place | None:
    """Kernel that a sibling stands for: itself, or the last fitting one of a block without norms."""
    direct = child.direct
    if direct is not None:
        return direct if is_kernel(direct.layer) else None
    if child.holds("batchnorm", "norm", "recurrent", "attention"):
        return None
    if len(child.places) > 8 or re.fullmatch(_SIDE_PATHS, child.word[:40]):
        return None
    kernels = [place for place in child.places if is_kernel(place.layer)]
    fit = [place for place in kernels if feeding_axes(place.layer, channels)]
    if len(fit) > 1:
        point = [place for place in fit if "point" in place.leaf.lower() or place.leaf == "pw"]
        fit = point[-1:] or fit[-1:]
    return fit[0] if fit else (kernels[-1] if len(kernels) == 1 else None)
