"""Which arrays of an archive, or of a batch that is a mapping, are the inputs of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from .batches import numeric

if TYPE_CHECKING:
    from ..tensors import Array
    from .inputs import Parameters
    from .random_data import Inputs

__all__ = ["by_name", "entries_of", "taken", "usable"]

_FEATURES = ("x_calib", "x", "x_test", "x_val", "x_train", "inputs", "input", "images", "data")
"""Names of arrays that are taken from an archive, the first that is there."""
_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_LABELS = re.compile(r"y([_.].*)?|labels?|targets?|classes|.*_labels?", re.IGNORECASE)


def taken(
    keys: Sequence[str],
    inputs: Inputs,
    parameters: Parameters,
    file: str,
    wanted: Sequence[str] = (),
) -> tuple[Sequence[str], str]:
    """Choose as `entries_of` does, or all for a model that takes them in one mapping.

    Parameters
    ----------
    keys, inputs, parameters, file
        As there.
    wanted
        What the user chose.

    Returns
    -------
    tuple
        The keys, and the parameter that takes their mapping; empty where each is an input.
    """
    mapping = parameters.mapping
    if mapping and mapping not in keys and parameters.required in ((), (mapping,)):
        return wanted or keys, mapping
    return wanted or entries_of(keys, inputs, parameters, file), ""


def entries_of(
    keys: Sequence[str], inputs: Inputs, parameters: Parameters, file: str
) -> Sequence[str]:
    """Choose the keys of the inputs: by the model's names, by usual ones, or all that are no labels.

    Parameters
    ----------
    keys
        Names of what there is.
    inputs
        What the model says of its inputs; empty where it does not.
    parameters
        Names of the inputs.
    file
        What holds them, for messages; empty for what is in memory.

    Raises
    ------
    UsageError
        If nothing says which they are.
    """
    known = {key.lower(): key for key in keys}
    named = _named(keys, parameters)
    if named:
        return named
    if _TOKENS[0] in known and len(inputs) <= len(_TOKENS):
        tokens = [known[name] for name in _TOKENS if name in known]
        return tokens[: len(inputs) or len(tokens)]
    usual = next((known[name] for name in _FEATURES if name in known), None)
    if usual is not None and len(inputs) <= 1:
        return [usual]
    rest = [key for key in keys if not _LABELS.fullmatch(key)] or keys
    if len(rest) == max(1, len(inputs)):
        return rest
    listed = ", ".join(map(repr, keys[:8])) + (" ..." if len(keys) > 8 else "")
    message = f"holds the arrays {listed:.300}" if keys else "holds no arrays"
    what = f"the {len(inputs)} inputs" if len(inputs) > 1 else "the input"
    hint = f"say which are {what} of the model: {file}:NAME,NAME"
    if not file:
        hint = "call them as the parameters of the model's forward are called"
    raise UsageError(message, where=file, hint=hint)


def _named(keys: Sequence[str], parameters: Parameters) -> list[str]:
    """Keys that the model's own names are; none where one that it needs is missing.

    What it can do without is taken too, but for labels, of which it would make a loss.
    """
    required = parameters.required
    if not all(name in keys for name in required):
        return []
    every = (*parameters.positions, *parameters.keywords) or required
    return [
        name for name in every if name in keys and (name in required or not _LABELS.fullmatch(name))
    ]


def usable(arrays: Mapping[str, Array], within: str, parameters: Parameters) -> list[str]:
    """Return the keys without those of no samples that the model can do without.

    Parameters
    ----------
    arrays
        What was chosen, by key.
    within
        Parameter that takes all of them; empty where each is an input.
    parameters
        Names of the inputs.
    """
    optional = {*parameters.positions, *parameters.keywords}.difference(parameters.required)
    samples = numeric(arrays)
    return [key for key in arrays if key in samples or not (within or key in optional)]


def by_name(keys: Sequence[str], parameters: Parameters) -> tuple[str, ...]:
    """Return the keys if the arrays have to be given by name, else nothing.

    They do where they are not the first parameters in order: a mask may be the fourth.
    """
    every = (*parameters.positions, *parameters.keywords)
    if not keys or not all(key in every for key in keys):
        return ()
    return () if tuple(keys) == parameters.positions[: len(keys)] else tuple(keys)
