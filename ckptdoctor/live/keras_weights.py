"""Whole Keras models from files, and weights of files into models."""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ..errors import CkptDoctorError, UsageError
from ..findings import Finding, Severity
from ..formats import open_path
from ..formats.base import ReadOptions
from ..matching import match
from ..tensors import TensorInfo, TensorTable
from .calling import needs
from .keras_arrays import values_of
from .keras_calls import reason_of
from .keras_layouts import exact_pairs
from .keras_names import named_variables
from .keras_table import model_table
from .keras_tree import is_built, walk
from .loaded import Loaded

__all__ = ["load_model", "load_weights"]

MAX_TOLD = 3
_FORMATS = ("keras-h5", "keras-weights-h5", "keras-zip")


def load_model(path: str | os.PathLike[str], *, trust: bool = False) -> Any:
    """Load a whole model in Keras' safe mode, uncompiled.

    The file is read by this package first; one that would run code of its own, or cannot be read,
    never gets to Keras.

    Parameters
    ----------
    path
        A ``.keras`` archive or a whole ``.h5``, whatever its name.
    trust
        Load it although it holds code, and run the code.

    Raises
    ------
    UsageError
        If it is no whole model, holds code, or Keras cannot build it; one line.
    CkptDoctorError
        If the file cannot be read.
    """
    name = os.fspath(path)
    with open_path(name, ReadOptions()) as table:
        _check_whole(name, table)
        code = next((finding for finding in table.findings if _is_code(finding)), None)
        if code is not None and not trust:
            hint = "if you trust it, add --trust; or name the function that makes the model"
            raise UsageError(f"is not loaded: {code.message:.300}", where=name, hint=hint)
        model = _loaded(name, table, trust=trust)
        table.check_unchanged()
    return model


def _is_code(finding: Finding) -> bool:
    """Whether Keras would run code of the file, or refuse to: Lambda layers in Keras 3."""
    return finding.unsafe or (finding.code == "CK002" and finding.severity >= Severity.WARNING)


def _check_whole(name: str, table: TensorTable) -> None:
    if table.format not in _FORMATS:
        raise UsageError(f"is no Keras model, but {table.format}", where=name)
    if table.metadata.get("layout") != "whole model" or not table.metadata.get("model_class"):
        hint = "name the function that makes the model, and this as its weights"
        raise UsageError("holds weights without a model", where=name, hint=hint)


def _loaded(name: str, table: TensorTable, *, trust: bool) -> Any:
    """Load under the extension that its content asks for: Keras goes by the name.

    Files of Keras 1 and 2 that Keras 3 does not take are tried with tf_keras, where it is there.
    """
    old = table.metadata.get("framework_version", "").startswith(("1.", "2."))
    suffix = ".keras" if table.format == "keras-zip" else ".h5"
    with tempfile.TemporaryDirectory(prefix="ckptdoctor-") as folder:
        target = name
        if not name.endswith(suffix):
            target = str(Path(folder, f"model{suffix}"))
            Path(target).symlink_to(Path(name).resolve())
        try:
            return _load(_package("keras"), target, trust=trust)
        except CkptDoctorError:
            raise
        except Exception as error:
            refusal = _refusal(name, error)
            if not old:
                raise refusal from error
        try:
            return _load(_package("tf_keras"), target, trust=trust)
        except CkptDoctorError:
            raise refusal from None
        except Exception as error:
            raise _refusal(name, error) from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise needs(name, "loading a Keras model") from None


def _load(keras: Any, target: str, *, trust: bool) -> Any:
    return keras.models.load_model(target, compile=False, safe_mode=not trust)


def _refusal(name: str, error: Exception) -> UsageError:
    text = str(error)
    told = re.search(r"Could not (?:locate|deserialize) (?:class|function) '([^']{1,200})'", text)
    told = told or re.search(r"Unknown (?:layer|object|function): '?(\w[\w>]{0,200})", text)
    if told:
        hint = "name the function that makes the model, and this file as its weights"
        return UsageError(f"Keras does not find its class {told[1]!r}", where=name, hint=hint)
    return UsageError(f"Keras cannot load it: {reason_of(error)}", where=name)


def load_weights(model: Any, source: str | os.PathLike[str] | TensorTable) -> Loaded:
    """Put the weights of a file into a model: every variable of it gets a value, or none does.

    The file is read by this package, never by HDF5's library in this process.  Tensors go where
    Keras would put them; where the file was made for other layers than the model has, by name.

    Parameters
    ----------
    model
        A built model of Keras 3 or 2 (`KerasSubject.build`).
    source
        ``.weights.h5``, ``.h5`` or ``.keras``, whatever its name; or the open table of one.

    Raises
    ------
    UsageError
        If the model has variables that the file does not hold, or holds in another shape.
    CkptDoctorError
        If the file cannot be read.
    """
    if isinstance(source, TensorTable):
        return _filled(model, source)
    name = os.fspath(source)
    if not Path(name).exists() and Path(f"{name}.index").exists():
        hint = "load it with TensorFlow and save it as .weights.h5"
        raise UsageError("is a TensorFlow checkpoint, not read here", where=name, hint=hint)
    with open_path(name, ReadOptions()) as table:
        loaded = _filled(model, table)
        table.check_unchanged()
    return loaded


def _filled(model: Any, table: TensorTable) -> Loaded:
    if table.format not in _FORMATS:
        raise UsageError(f"holds no weights of Keras, but {table.format}", where=table.path)
    loaded = _plan(model, table)
    held = {variable.name: variable.value for variable in named_variables(model)}
    for ours, theirs in loaded.pairs.items():
        _assign(held[ours], table, theirs)
    for node in walk(model):  # Normalization keeps copies
        finish = getattr(node.layer, "finalize_state", None)
        if callable(finish) and getattr(node.layer, "built", False):
            finish()
    return loaded


def _plan(model: Any, table: TensorTable) -> Loaded:
    ours = model_table(model)
    wanted = [info.name for info in ours.values() if info.role == "model"]
    exact = exact_pairs(model, named_variables(model), table)
    fits = {a: b for a, b in exact.items() if ours[a].shape == table[b].shape}
    notes: tuple[str, ...] = ()
    pairs = fits
    surplus = _surplus(table, fits)
    if len(fits) < len(wanted) or surplus:
        found = match(ours, table)
        by_name = {
            a: b for a, b in found.pairs.items() if ours[a].role == "model" and _named(table[b])
        }
        if len(by_name) == len(wanted) or len(by_name) > len(fits):
            pairs, surplus = by_name, _surplus(table, by_name)
            notes = ("layers were paired by name: Keras' own order of them does not fit",)
    missing = [each for each in wanted if each not in pairs]
    if missing:
        raise _missing(missing, exact, ours, table)
    if surplus and not is_built(model):
        message = f"{model.name!r:.200} has layers that are not built, and no variables for "
        message += f"{len(surplus)} tensors of the file, as {surplus[0]!r:.200}"
        raise UsageError(message, where=table.path, hint="run it on the data first")
    if surplus:
        notes += (f"{len(surplus)} tensors of the file have no place: {_some(surplus)}",)
    return Loaded(pairs=pairs, surplus=surplus, notes=notes)


def _named(info: TensorInfo) -> bool:
    """Whether the file says whose it is: numbers alone could be any layer's."""
    return bool(info.layer_name) or info.path[-2:-1] != ("vars",)


def _surplus(table: TensorTable, pairs: dict[str, str]) -> tuple[str, ...]:
    used = set(pairs.values())
    return tuple(i.name for i in table.values() if i.role == "model" and i.name not in used)


def _missing(
    missing: list[str], exact: dict[str, str], ours: TensorTable, table: TensorTable
) -> UsageError:
    told = []
    for name in missing[:MAX_TOLD]:
        shape = ours[name].shape
        other = exact.get(name)
        if other is not None:
            told.append(f"{name!r:.200} {shape} against {other!r:.200} {table[other].shape}")
        else:
            told.append(f"{name!r:.200} {shape}")
    more = f" and {len(missing) - MAX_TOLD} more" if len(missing) > MAX_TOLD else ""
    message = f"does not hold {len(missing)} of the model's {_count(ours)} variables: "
    return UsageError(f"{message}{', '.join(told)}{more}", where=table.path)


def _count(table: TensorTable) -> int:
    return sum(1 for info in table.values() if info.role == "model")


def _some(names: tuple[str, ...]) -> str:
    more = ", ..." if len(names) > MAX_TOLD else ""
    return ", ".join(f"{name!r:.200}" for name in names[:MAX_TOLD]) + more


def _assign(variable: Any, table: TensorTable, name: str) -> None:
    import numpy as np  # noqa: PLC0415

    if table[name].encoding != "plain":
        raise UsageError(f"{name!r:.200} has no values to load", where=table.path)
    values, held = table.read(name), values_of(variable)
    assert held is not None
    with np.errstate(over="ignore", invalid="ignore"):
        variable.assign(values.astype(held.dtype, copy=False))
