"""What names say: which kernel a norm's name pairs up with."""

from __future__ import annotations

import functools
import re

from .kernels import fit, is_kernel
from .siblings import Child, Place, is_number

__all__ = [
    "FAMILIES",
    "around",
    "closeness",
    "generic",
    "is_bare",
    "is_distant",
    "is_pointwise",
    "is_side_path",
    "representative",
]

_NORM_WORD = (
    r"(?:sync_?|frozen_?|inplace_?)?(?:batch_?|instance_?)norm(?:ali[sz]ation)?s?(?:_?[123]d)?"
    r"|(?<![a-z])norm(?:ali[sz]ation)?s?(?:_?[123]d)?(?![a-z])|(?<![a-z])(?:s|i|a)?bns?(?![a-z])"
)
_KERNEL_WORDS = frozenset(
    {
        "conv", "convs", "conv1d", "conv2d", "conv3d", "convolution", "deconv", "fc", "fcs", "lin",
        "linear", "linears", "lins", "dense", "dwconv", "dwconv2", "depthwise", "pointwise", "proj", "w",
    }
)  # fmt: skip
_SIDE_PATHS = (
    r"se|.*(_|^)se(_.*)?|.*(att|gate|squeeze|excit|pool|eca|cbam|drop|shortcut|skip|downsample"
    r"|residual|identity|mlp|mixer|ffn).*"
)
"""Siblings that stand beside the way from one layer to the next, or hide what it is."""

FAMILIES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    (("conv_stem", "bn1"), ("conv_head", "bn2")),
    (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
    (("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")),
    (("_conv_stem", "_bn0"), ("_conv_head", "_bn1")),
)
"""Pairs that numbers do not tell: timm's and lukemelas' MobileNets and EfficientNets."""


def around(leaf: str) -> tuple[str, str] | None:
    """Find what stands before and behind the word for a norm in a name; None without one.

    Examples
    --------
    >>> around("conv1_bn"), around("bn2"), around("batch_norm"), around("conv1")
    (('conv1', ''), ('', '2'), ('', ''), None)
    """
    leaf = leaf.lower()[:100]
    word = re.search(_NORM_WORD, leaf)
    if word is None:
        return None
    return leaf[: word.start()].rstrip("_"), leaf[word.end() :].lstrip("_")


def closeness(parts: tuple[str, str], word: str) -> int | None:
    """How well a kernel's name pairs up with a norm's; 0 is best, None is not at all.

    Compiling a pattern for each norm took more time than all the rest.

    Examples
    --------
    >>> [closeness(around("bn2"), word) for word in ("conv2", "conv1", "conv2_kxk", "shortcut2")]
    [1, None, 2, 3]
    >>> [closeness(around(a), b) for a, b in (("a_bn", "a_conv"), ("bn_a", "a"))]
    [1, 0]
    """
    before, after = parts
    word = word.lower()[:100]
    if not word.startswith(before):
        return None
    middle = word[len(before) :]
    if middle.endswith(after) and _letters(middle[: len(middle) - len(after)]):
        middle = middle[: len(middle) - len(after)].strip("_")
    elif is_number(after) and f"{after}_" in middle:
        return 2 if _letters(middle[: middle.index(f"{after}_")]) else None
    else:
        return None
    if not middle:
        return 0
    if middle in _KERNEL_WORDS:
        return 1
    return 3 if "conv" in middle or "_" not in middle else 4


def _letters(text: str) -> bool:
    """Whether a part of a name has no number but those that are part of a layer's kind."""
    text = text.strip("_")
    text = text.removesuffix("2") if text.endswith("dwconv2") else text
    text = text[:-2] if text.endswith(("conv1d", "conv2d", "conv3d")) else text
    return not text or text.replace("_", "").isalpha()


def is_bare(leaf: str) -> bool:
    """Whether a norm's name is the word for it and at most a number: ``bn``, ``norm2``."""
    return re.fullmatch(f"_?(?:{_NORM_WORD})_?[0-9]*", leaf.lower()[:100]) is not None


def is_distant(leaf: str) -> bool:
    """Whether a name says that the norm stands before, behind or beside a whole block."""
    return re.search(r"pre|post|final|last|out", leaf.lower()[:100]) is not None


def is_side_path(word: str) -> bool:
    """Whether a sibling stands beside the way from one layer to the next."""
    return re.search(r"shortcut|skip|downsample|residual|identity", word.lower()[:60]) is not None


@functools.lru_cache(maxsize=4096)
def generic(leaf: str) -> str:
    """Name without its numbers: ``bn1`` and ``bn2`` of one net follow one rule.

    Examples
    --------
    >>> generic("bn12_a")
    'bn#_a'
    """
    return re.sub("[0-9]+", "#", leaf[:60])


def representative(child: Child, channels: int) -> Place | None:
    """Kernel that a sibling's output comes from: itself, or the one that a block ends with.

    Blocks are understood where they are a list of layers that ends with a kernel, or hold no
    normalisation and few kernels.
    """
    direct = child.direct
    if direct is not None:
        return direct if is_kernel(direct.layer) else None
    if re.fullmatch(_SIDE_PATHS, child.word[:40], re.IGNORECASE):
        return None
    if len(child.places) < 33 and all(is_number(place.leaf) for place in child.places):
        numbered = {place.parent for place in child.places}
        last = max(child.places, key=lambda place: int(place.leaf[:18]))
        if len(numbered) == 1 and next(iter(numbered)).endswith(child.word):
            return last if is_kernel(last.layer) else None
    if len(child.places) > 8 or child.holds("batchnorm", "norm", "recurrent", "attention"):
        return None
    kernels = [place for place in child.places if is_kernel(place.layer)]
    able = [place for place in kernels if fit(place.layer, channels).axes]
    if len(able) > 1:
        point = [place for place in able if is_pointwise(place.leaf)]
        able = point[-1:] or able[-1:]
    return able[0] if able else (kernels[-1] if len(kernels) == 1 else None)


def is_pointwise(leaf: str) -> bool:
    """Whether a name is of the second half of a separable convolution."""
    return re.search(r"point|(^|_)pwl?($|_|\d)", leaf.lower()[:60]) is not None
