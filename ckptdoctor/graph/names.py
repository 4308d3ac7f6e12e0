"""Feeds from names, file order and channel counts, for files that store no layer graph.

Names say most: ``conv2`` and ``bn2``, ``0`` and ``1`` of a Sequential.  Shapes then decide whether a
BatchNorm stands behind the kernel that its name pairs it with, or, in a pre-activation net, in
front of it.  What neither tells is unknown.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..layers import Layer
from .feeds import Feed
from .kernels import NO_FIT, Fit, fit, is_kernel
from .siblings import Place, is_number, place_of, siblings_of
from .sides import Sides
from .words import (
    FAMILIES,
    around,
    closeness,
    is_bare,
    is_distant,
    is_pointwise,
    is_side_path,
    representative,
)

__all__ = ["name_feeds"]

PAIR = "names that pair up"
PRE_PAIR = "names that pair up, each norm before its own kernel"
SEQUENTIAL = "consecutive numbers"
ALPHABET = "names do not tell, and the file lists them by alphabet"
MAX_THROUGH = 8
MAX_COMPARISONS = 300_000
"""Of names in one net: half a second; nets of 1,000 BatchNorms need some thousands."""
_AUTOMATIC = r"(sync_)?batch_normalization(_v1)?(_\d+)?"

Sequences = Mapping[str, Sequence[tuple[str, str]]]


class _Open(NamedTuple):
    """A pair whose kernel could stand on either side of its BatchNorm."""

    norm: Place
    kernel: Place
    fit: Fit


def name_feeds(
    layers: Sequence[Layer], *, in_order: bool, sequences: Sequences
) -> tuple[dict[str, Feed], dict[str, str]]:
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
    feeds
        Key of a BatchNorm -> its feed, ``unknown`` included.
    ahead
        Key of a BatchNorm -> key of the kernel that stands behind it, where that is known.
    """
    net = _Net(layers, in_order, sequences)
    feeds = net.solve()
    return feeds, {norm.layer.key: kernel.layer.key for norm, kernel in net.before}


class _Net:
    """One net's BatchNorms, tried by one kind of evidence after the other."""

    def __init__(self, layers: Sequence[Layer], in_order: bool, sequences: Sequences) -> None:
        self.places = [place_of(layer, at) for at, layer in enumerate(layers)]
        self.norms = [place for place in self.places if place.layer.kind == "batchnorm"]
        self.in_order = in_order
        self.sequences = sequences
        parents = {place.parent for place in self.norms}
        parents |= {norm.parent.rpartition(".")[0] for norm in self.norms if is_number(norm.leaf)}
        self.siblings = siblings_of(self.places, parents)
        self.named: dict[str, Place | None] = {}
        for place in self.places:
            if is_kernel(place.layer):
                self.named[place.name] = None if place.name in self.named else place
        self.feeds: dict[str, Feed] = {}
        self.open: list[_Open] = []
        self.before: list[tuple[Place, Place]] = []
        self.sides = Sides(self.places)
        self.able: dict[tuple[str, int], list[Place]] = {}
        self.budget = MAX_COMPARISONS

    def solve(self) -> dict[str, Feed]:
        """Go through all BatchNorms, then settle those that others tell about."""
        automatic: dict[str, list[Place]] = {}
        for norm in self.norms:
            if not self.in_order and re.fullmatch(_AUTOMATIC, norm.leaf):
                automatic.setdefault(norm.parent, []).append(norm)
            else:
                self._one(norm)
        for parent, norms in automatic.items():
            self._automatic(parent, norms)
        self._settle()
        for norm, _ in self.before:
            self._behind_previous(norm)
        return self.feeds

    def _one(self, norm: Place) -> None:
        if self._own_kernel(norm) or self._family(norm):
            return
        if is_number(norm.leaf):
            if not self._sequential(norm):
                self._parallel_lists(norm)
        elif not self._paired(norm):
            self._nearest(norm)

    def _say(
        self,
        norm: Place,
        kernel: Place,
        found: Fit,
        how: str,
        through: tuple[str, ...] = (),
    ) -> bool:
        """Note a kernel as what feeds a BatchNorm, if its outputs are as many."""
        if found.axes:
            channels = norm.layer.channels
            feed = Feed(kernel.layer, "kernel", how, through, found.axes, channels)
            self.feeds[norm.layer.key] = feed
        return bool(found.axes)

    def _unknown(self, norm: Place, why: str, source: str = "unknown") -> bool:
        self.feeds[norm.layer.key] = Feed(None, source, why, channels=norm.layer.channels)
        return True

    def _own_kernel(self, norm: Place) -> bool:
        """``conv1`` and ``conv1.bn``: a fused convolution, or a scope of TensorFlow."""
        kernel = self.named.get(norm.parent)
        return bool(
            kernel and self._say(norm, kernel, fit(kernel.layer, norm.layer.channels), PAIR)
        )

    def _family(self, norm: Place) -> bool:
        children = self.siblings[norm.parent].children
        for row in FAMILIES:
            if norm.leaf in [bn for _, bn in row] and all(kernel in children for kernel, _ in row):
                word = next(kernel for kernel, bn in row if bn == norm.leaf)
                kernel = children[word].direct
                found = fit(kernel.layer, norm.layer.channels) if kernel else NO_FIT
                return bool(kernel and found.sure and self._say(norm, kernel, found, PAIR))
        return False

    # --- numbers ---------------------------------------------------------------------------------

    def _sequential(self, norm: Place) -> bool:
        """Go back from ``5`` to ``4`` and so on to what stands in front in a Sequential."""
        number = int(norm.leaf[:18])
        siblings = self.siblings[norm.parent]
        place = bisect.bisect_left(siblings.numbered, number, key=lambda pair: pair[0])
        if not place or siblings.only_norms:
            return False
        at, child = siblings.numbered[place - 1]
        kernel = representative(child, norm.layer.channels)
        if kernel is None and child.holds("batchnorm", "norm"):
            if child.direct is None:
                return self._unknown(norm, "a block stands before it")
            return self._unknown(norm, SEQUENTIAL, "norm")
        found = fit(kernel.layer, norm.layer.channels) if kernel else NO_FIT
        how = "the module's Sequential" if norm.parent in self.sequences else SEQUENTIAL
        through = self._between(norm.parent, at, number)
        if kernel and self._say(norm, kernel, found, how, through):
            return True
        return self._unknown(norm, "what stands before it has other channels")

    def _between(self, parent: str, start: int, stop: int) -> tuple[str, ...]:
        """Classes of what has no tensors between two places of a Sequential, the nearest first."""
        found = [
            kind
            for word, kind in self.sequences.get(parent, ())
            if is_number(word) and start < int(word[:18]) < stop
        ]
        return tuple(reversed(found))[:MAX_THROUGH]

    def _parallel_lists(self, norm: Place) -> bool:
        """``bns.3`` and ``convs.3``: two lists side by side."""
        above, _, word = norm.parent.rpartition(".")
        parts = around(word)
        found: list[Place] = []
        siblings = self.siblings[above].children if self._afford(above) else {}
        for other in siblings:
            kernel = self.named.get(f"{above}.{other}.{norm.leaf}".lstrip("."))
            if other == word or kernel is None or not fit(kernel.layer, norm.layer.channels).sure:
                continue
            if parts and closeness(parts, other) is not None:
                return self._either_side(norm, kernel)
            found.append(kernel)
        if len(found) == 1:
            return self._either_side(norm, found[0])
        return self._unknown(norm, "nothing stands before it in its list")

    # --- words -----------------------------------------------------------------------------------

    def _paired(self, norm: Place) -> bool:
        """``bn2`` and ``conv2``: a sibling whose name differs in the word for the layer only."""
        parts = around(norm.leaf)
        if parts is None:
            return False
        channels = norm.layer.channels
        ranked: dict[int, list[Place]] = {}
        candidates = self.siblings[norm.parent].of_numbers(norm.leaf)
        self.budget -= len(candidates)
        for child in candidates if self.budget > 0 else ():
            close = closeness(parts, child.word)
            kernel = representative(child, channels) if close is not None else None
            if (
                kernel is not None
                and close is not None
                and not (close and is_side_path(child.word))
            ):
                ranked.setdefault(close, []).append(kernel)
        for close, kernels in sorted(ranked.items()):
            able = [k for k in kernels if self._able(norm, k)]
            trusted = close <= 2 or self.in_order or self._alone(norm)
            one = able[0] if len(able) == 1 and trusted else self._one_of(norm, able)
            if one is not None:
                return self._either_side(norm, one)
            if able:
                return self._unknown(norm, "several kernels pair up with its name")
            fed = next((kernel for kernel in kernels if fit(kernel.layer, channels).takes), None)
            if fed is not None:
                self.sides.vote("before", norm)
                self.before.append((norm, fed))
                return True
        return False

    def _alone(self, norm: Place) -> bool:
        """Whether only one of a norm's siblings could feed it, and only it could be fed."""
        rivals = self.siblings[norm.parent].channels[norm.layer.channels]
        return rivals == 1 == len(self._able_beside(norm))

    def _able_beside(self, norm: Place) -> list[Place]:
        """Siblings of the right outputs; looked for once per number of channels."""
        key = norm.parent, norm.layer.channels
        if key not in self.able and self._afford(norm.parent):
            kernels = self.siblings[norm.parent].kernels
            self.able[key] = [place for place in kernels if fit(place.layer, key[1]).sure]
        return self.able.get(key, [])

    def _afford(self, parent: str) -> bool:
        """Whether looking at all children of a parent is within the budget of the net."""
        self.budget -= len(self.siblings[parent].children)
        return self.budget > 0

    def _able(self, norm: Place, kernel: Place) -> bool:
        found = fit(kernel.layer, norm.layer.channels)
        return found.sure or bool(found.axes and self.in_order and kernel.at < norm.at)

    def _one_of(self, norm: Place, able: Sequence[Place]) -> Place | None:
        """Choose among kernels whose names pair up equally well."""
        if self.in_order:
            earlier = [kernel for kernel in able if kernel.at < norm.at]
            return earlier[-1] if earlier else able[0] if able else None
        point = [kernel for kernel in able if is_pointwise(kernel.leaf)]
        return point[0] if len(point) == 1 == len(self.siblings[norm.parent].norms) else None

    def _either_side(self, norm: Place, kernel: Place) -> bool:
        """Decide whether a kernel of the right outputs feeds the BatchNorm, or is fed by it."""
        found = fit(kernel.layer, norm.layer.channels)
        if self.in_order and kernel.at < norm.at:
            if self._block_between(kernel, norm):  # conv1, layers and a last bn1
                return self._unknown(norm, "a block stands before it")
            return self._say(norm, kernel, found, PAIR)
        if self.sides.open(norm, kernel, found):
            self.open.append(_Open(norm, kernel, found))
            return True
        self.sides.vote("behind", norm)
        return self._say(norm, kernel, found, PAIR)

    def _block_between(self, kernel: Place, norm: Place) -> bool:
        """Whether blocks with norms of their own were made after the kernel and before the norm."""
        if kernel.parent != norm.parent:
            return False
        for child in self.siblings[norm.parent].before(norm.leaf):
            if child.word == kernel.leaf:
                return False
            if child.direct is None and child.holds("batchnorm") and self._afford(norm.parent):
                return True
        return False

    def _settle(self) -> None:
        """Decide open pairs as those of the same names whose shapes leave no choice."""
        for norm, kernel, found in self.open:
            told = self.sides.told(norm)
            if told == "behind":
                self._say(norm, kernel, found, PAIR)
            elif self.in_order or told == "before":
                self.before.append((norm, kernel))
            elif found.takes:
                self._unknown(norm, "it could stand before or behind its kernel")
            else:  # grouped convolutions are rare
                self._say(norm, kernel, found, PAIR)

    def _behind_previous(self, norm: Place) -> None:
        """Pre-activation: ``bn2`` stands before ``conv2`` and behind ``conv1``."""
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", norm.leaf[:100])
        if self.in_order:
            self._nearest(norm)
            return
        if match and int(match[2][:18]) > 0:
            leaf = f"{match[1]}{int(match[2][:18]) - 1}{match[3]}"
            parts = around(leaf)
            for child in self.siblings[norm.parent].of_numbers(leaf):
                self.budget -= 1
                if parts and self.budget > 0 and closeness(parts, child.word) is not None:
                    kernel = representative(child, norm.layer.channels)
                    found = fit(kernel.layer, norm.layer.channels) if kernel else NO_FIT
                    if kernel and found.sure and self._say(norm, kernel, found, PRE_PAIR):
                        return
        self._unknown(norm, "it stands before the kernel that its name pairs it with")

    # --- neighbours ------------------------------------------------------------------------------

    def _nearest(self, norm: Place) -> bool:
        """Take the nearest kernel before it in its block."""
        channels = norm.layer.channels
        if not self.in_order:
            return self._only(norm)
        if is_distant(norm.leaf):
            return self._unknown(norm, "its name pairs it with no kernel")
        how = f"file order and {channels} channels"
        rather: tuple[Place, Fit] | None = None
        why = "no kernel of its channels stands before it"
        for child in self.siblings[norm.parent].before(norm.leaf):
            if is_side_path(child.word):
                continue
            kernel = representative(child, channels)
            if kernel is None and child.holds("batchnorm", "norm"):
                block = child.direct is None
                why = "a block stands before it" if block else "another norm stands before it"
                break
            found = fit(kernel.layer, channels) if kernel else NO_FIT
            if kernel and found.sure:
                return self._say(norm, kernel, found, how)
            if kernel and found.axes and rather is None:
                rather = kernel, found
        return self._say(norm, *rather, how) if rather else self._unknown(norm, why)

    def _only(self, norm: Place) -> bool:
        """Take the only fitting kernel beside the only norm, where order says nothing."""
        if self._alone(norm) and is_bare(norm.leaf):
            return self._either_side(norm, self._able_beside(norm)[0])
        return self._unknown(norm, ALPHABET)

    # --- names that Keras made up ----------------------------------------------------------------

    def _automatic(self, parent: str, norms: Sequence[Place]) -> None:
        """Pair ``batch_normalization_3`` with the fourth convolution, if all of them agree."""
        families: dict[str, list[Place]] = {}
        for place in self.siblings[parent].kernels:
            families.setdefault(re.sub(r"_\d+$", "", place.leaf), []).append(place)
        for kernels in families.values():
            pairs = list(zip(norms, kernels, strict=False))
            fits = [fit(kernel.layer, norm.layer.channels) for norm, kernel in pairs]
            if len(kernels) == len(norms) and all(found.sure for found in fits):
                for (norm, kernel), found in zip(pairs, fits, strict=True):
                    self._say(norm, kernel, found, "as many kernels as norms, channels agree")
                return
        for norm in norms:
            self._only(norm)
