"""Several nets in one file, and the order of the layers in each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..layers import Layer
from ..tensors import TensorInfo
from .feeds import Feed

__all__ = ["alphabetical", "by_numbers", "natural_key", "net_of", "split"]

_WRAPPERS = frozenset(
    {"module", "model", "state_dict", "_orig_mod", "_forward_module", "model_weights"}
)
_NETS = (
    r"(net_?)?(g|d|gen|disc|generator|discriminator|critic|actor)(_?(a|b|ab|ba|net|ema|\d))?"
    r"|student|teacher|(target|online|q|policy|value)_?(net|network)?|q_?\d"
)
"""First words of names that begin a net of its own, with an input of its own."""

_RANKS = (
    r"(input|in|data|pre)_?(bn|norm|batch_?norm).*|(bn|norm|batch_?norm)_?(0|in|input|data|cont)",
    r"(conv_?)?stem.*|.*pre_?net|conv0|(in_?)?(conv_?)?in|inc|.*first.*",
    r".*patch_embed.*|embed(ding)?s?",
    r"encoder.*|enc|backbone|features|trunk|body",
    "",
    r"bottle_?neck|bridge|middle|mid(_?block)?s?|cent(er|re)|neck",
    r"decoder.*|dec|up_.*|up\d*|ups",
    r"(final|last|post|out)_?(bn|norm).*|bn|norm|bn_?(final|last|out|post)",
    r"(.*_)?(head|fc|classifier|output|out|outc|logits|predictions?|final|last|top)s?(_?\d+)?",
)
_USUAL = _RANKS.index("")
"""Words that tell where in a net something stands, from the input on; all others have the empty one."""


def split(name: str) -> list[str]:
    """Components of a layer's name.

    Examples
    --------
    >>> split("layer1.0.bn1"), split("resnet/conv1_bn")
    (['layer1', '0', 'bn1'], ['resnet', 'conv1_bn'])
    """
    return name.replace("/", ".").split(".")


def net_of(layer: Layer) -> tuple[str, ...]:
    """Which of the nets in a file a layer belongs to.

    A state dict is a net; so are those of different roles, and inside one state dict what a
    word such as ``discriminator`` begins.
    """
    path = next(iter(layer.parts.values())).path
    inside = "." in path[-1]
    outer = path[:-1] if inside else ()
    words = path[-1].split(".", 4) if inside else path[:-1]
    for word in words[:4]:
        if word not in _WRAPPERS:
            if len(word) < 24 and re.fullmatch(_NETS, word, re.IGNORECASE):
                return (layer.role, *outer, word)
            break
    return (layer.role, *outer)


def alphabetical(infos: Iterable[TensorInfo]) -> bool:
    """Whether names stand in a dictionary's order instead of the model's: HDF5, safetensors.

    Safetensors sorts by width first, so the order is looked at in each type for itself.
    """
    last: dict[str, tuple[str, tuple[str, ...]]] = {}
    flat = deep = True
    for info in infos:
        if info.role not in {"model", "ema"}:
            continue
        before = last.get(info.dtype)
        here = info.name, info.path
        if before is not None:
            flat = flat and before[0] <= here[0]
            deep = deep and before[1] <= here[1]
            if not flat and not deep:
                return False
        last[info.dtype] = here
    return True


def natural_key() -> Callable[[str], tuple[object, ...]]:
    """Sort key for names: digits by value, and the words that begin or end a net in their place.

    Examples
    --------
    >>> names = ["head.0", "layers.10", "layers.4", "stem.0", "b.x", "b"]
    >>> sorted(names, key=natural_key())
    ['stem.0', 'b', 'b.x', 'layers.4', 'layers.10', 'head.0']
    """
    memo: dict[str, tuple[object, ...]] = {}

    def component(word: str) -> tuple[object, ...]:
        if word.isascii() and word.isdigit():
            return (_USUAL, 0, int(word[:18]), word)
        found = [
            (0, int(part[:18]), part) if part[0] in "0123456789" else (1, 0, part)
            for part in re.findall(r"[0-9]+|[^0-9]+", word[:200].replace("preact", "0"))
        ]
        ranks = (rank for rank, words in enumerate(_RANKS) if words and _is(words, word))
        return (next(ranks, _USUAL), 1, found, word)

    def key(name: str) -> tuple[object, ...]:
        parts = []
        for word in split(name):
            known = memo.get(word)
            if known is None:
                known = memo[word] = component(word)
            parts.append(known)
        return tuple(parts)

    return key


def _is(words: str, word: str) -> bool:
    return re.fullmatch(words, word[:40], re.IGNORECASE) is not None


def by_numbers(layers: Sequence[Layer], feeds: Mapping[str, Feed]) -> list[Layer]:
    """Order of the layers of a Keras 3 weights file, which numbers those of each class in order.

    The numbers of the BatchNorms lead; before each come the kernels of its kernel's class up to
    it.  Layers that no BatchNorm follows keep the order of ``layers``.
    """
    chains: dict[str, list[Layer]] = {}
    for layer in layers:
        chains.setdefault(re.sub(r"_\d+$", "", layer.key.removesuffix("/vars")), []).append(layer)
    place: dict[str, tuple[list[Layer], int]] = {}
    for chain in chains.values():
        chain.sort(key=lambda layer: (len(layer.key), layer.key))
        place |= {layer.key: (chain, at) for at, layer in enumerate(chain)}
    done: dict[str, Layer] = {}
    norms = [layer for layer in layers if layer.kind == "batchnorm"]
    # the models inside come before what is built on them
    for norm in sorted(norms, key=lambda layer: (-layer.key.count("/"), *_number(layer.key))):
        kernel = feeds[norm.key].kernel
        if kernel is not None and kernel.key in place and kernel.key not in done:
            chain, at = place[kernel.key]
            start = at
            while start and chain[start - 1].key not in done:
                start -= 1
            done |= {layer.key: layer for layer in chain[start : at + 1]}
        done[norm.key] = norm
    return [*done.values(), *(layer for layer in layers if layer.key not in done)]


def _number(key: str) -> tuple[str, int]:
    """Name of a numbered group, and its number; the first has none."""
    match = re.fullmatch(r"(.*?)(?:_([0-9]{1,18}))?/vars", key, re.DOTALL)
    return (match[1], int(match[2] or 0)) if match else (key, 0)
