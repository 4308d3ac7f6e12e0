"""Tensors that share the path above them, and those that belong together although they do not."""

from __future__ import annotations

import re

from ..tensors import TensorInfo, TensorTable

__all__ = ["Groups", "group_tensors", "last_word", "plain"]

Groups = dict[str, dict[str, TensorInfo]]
"""Path -> last component -> tensor, in file order."""

MAX_NUMBERS = 16
_PARAMETRIZED = ".parametrizations.weight"
_LORA = r"(?P<pre>.*?)[._]?lora[._]?(?:embedding_)?(?P<side>A|B|down|up)(?:\.(?P<adapter>[^.]+))?"
_RECURRENT = r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_(l\d+(?:_reverse)?)"


def group_tensors(table: TensorTable) -> Groups:
    """Group the model's and the EMA's tensors by the path above their last component."""
    groups: Groups = {}
    for info in table.infos.values():
        if info.role not in {"model", "ema"}:
            continue
        # 100,000 names pass here: two string operations each, and nothing else
        key, _, leaf = info.name.rpartition("/" if "/" in info.name else ".")
        group = groups.get(key)
        if group is None:
            group = groups[key] = {}
        group[leaf] = info
    for key in list(groups):
        if key not in groups:  # joined to another by now
            continue
        if "lora" in key or "batch_stats" in key or key.endswith(".weight"):
            _join(groups, key)
        elif "weight_hh_l0" in groups[key]:
            _split_recurrent(groups, key)
    return groups


def _join(groups: Groups, key: str) -> None:
    """Move the tensors of a group to the layer that they belong to."""
    if key.endswith(_PARAMETRIZED):
        _parametrized(groups, key)
    elif key.endswith(".weight"):
        owner = groups.get(key.removesuffix(".weight"))
        if owner is not None and "weight" in owner:  # scales of a quantised tensor
            owner.update({f"weight.{leaf}": info for leaf, info in groups.pop(key).items()})
    elif "batch_stats" in key:
        _batch_stats(groups, key)
    else:
        _lora(groups, key)


def _parametrized(groups: Groups, key: str) -> None:
    """Give ``fc.parametrizations.weight`` the bias of ``fc`` and the vectors below it."""
    group = groups[key]
    above = groups.get(key.removesuffix(_PARAMETRIZED), {})
    if "bias" in above and "weight" not in above:
        group["bias"] = above.pop("bias")
    group.update(groups.pop(f"{key}.0", {}))


def _batch_stats(groups: Groups, key: str) -> None:
    """Flax keeps mean and variance in a tree of their own beside scale and bias."""
    group = groups[key]
    if not {"mean", "var"} & set(group):
        return
    joined = {f"batch_stats.{leaf}": info for leaf, info in group.items()}
    other = groups.get(key.replace("batch_stats", "params", 1))
    if other is not None and set(other) <= {"scale", "bias"}:
        joined |= other
        other.clear()
    groups[key] = joined


def _lora(groups: Groups, key: str) -> None:
    """Make one group of the two factors of an adapter, which lie side by side."""
    match = re.fullmatch(_LORA, key, re.DOTALL)
    group = groups[key]
    if match is None:
        return
    side = "down" if match["side"] in ("A", "down") else "up"
    adapter = match["adapter"]
    info = group.get("weight") or (next(iter(group.values())) if len(group) == 1 else None)
    if info is None:
        return
    if adapter is None and "weight" not in group:  # lora_embedding_A.default
        adapter = info.path[-1].rpartition(".")[2]
    pair = ".".join(part for part in (match["pre"], "lora", adapter) if part)
    del groups[key]
    joined = groups.setdefault(pair, {})
    joined[side] = info
    alpha = groups.get(match["pre"], {})
    if set(alpha) == {"alpha"}:
        joined["alpha"] = alpha.pop("alpha")


def _split_recurrent(groups: Groups, key: str) -> None:
    """Make a layer of each direction of each layer of torch's recurrent networks."""
    group = groups.pop(key)
    for leaf, info in group.items():
        match = re.fullmatch(_RECURRENT, leaf)
        below = f"{key}.{match[2]}" if match and match[2] != "l0" else key
        groups.setdefault(below, {})[match[1] if match else leaf] = info


def last_word(key: str) -> str:
    """Last component of a path that is no number.

    Examples
    --------
    >>> last_word("model.embeds.3"), last_word("resnet/conv1"), last_word("0")
    ('embeds', 'conv1', '')
    """
    end = len(key)
    for _ in range(MAX_NUMBERS):
        cut = max(key.rfind(".", 0, end), key.rfind("/", 0, end))
        word = key[cut + 1 : end]
        if not word.isdigit():
            return word
        if cut < 0:
            break
        end = cut
    return ""


def plain(leaf: str) -> str:
    """Name of a variable without what TensorFlow and a doubled name append.

    Examples
    --------
    >>> plain("kernel:0"), plain("weight#2")
    ('kernel', 'weight')
    """
    return re.sub(r"(:\d+|#\d+)+$", "", leaf) if ":" in leaf or "#" in leaf else leaf
