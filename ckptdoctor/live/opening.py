"""A model as the user names it, made, given its weights, and ready to run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .calling import (
    importable,
    is_exported,
    is_keras,
    is_subject,
    is_torch,
    made,
    needs,
    user_code,
)
from .loaded import Loaded
from .naming import ModelName, parse_model

if TYPE_CHECKING:
    from .subject import Subject

__all__ = ["Opened", "fill", "open_subject", "subject_of"]

Sample = Callable[["Subject"], Sequence[Any]]
"""Gives one batch for a subject: Keras models may have no weights before their first run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model that can be run.

    Parameters
    ----------
    subject
        The model.
    name
        How it was named; None for one that was given live.
    file
        The file its weights are from; empty where only its own code knows.
    loaded
        What was loaded from ``--weights-file``; None without one.
    code
        Whose code was run to make it, for the user to be told; empty for none.
    """

    subject: Subject
    name: ModelName | None = None
    file: str = ""
    loaded: Loaded | None = None
    code: str = ""


def open_subject(
    model: Any,
    *,
    weights_file: str = "",
    which: str = "model",
    trust: bool = False,
    sample: Sample | None = None,
) -> Opened:
    """Make a model that can be run.

    Parameters
    ----------
    model
        MODEL as `parse_model` reads it, or a live model.
    weights_file
        Checkpoint to take its weights from, by our own readers.
    which
        The weights of the file, or their moving average: ``model`` or ``ema``.
    trust
        Unpickle a whole module, and load what is unsafe to load.
    sample
        Gives a batch, for models that make their weights when they are first called.

    Raises
    ------
    UsageError
        If there is no such model, or its weights do not fit.
    ModelError
        If the user's code fails.
    CkptDoctorError
        If a file cannot be read.
    """
    if not isinstance(model, str):
        opened = Opened(subject=subject_of(model, "the given model"))
    else:
        name = parse_model(model)
        if weights_file and name.file:
            message = f"{name.file} holds weights already"
            hint = "leave --weights-file out, or name the factory that makes the model"
            raise UsageError(message, hint=hint)
        held = _held(name, trust=trust) if name.file else made(name)
        subject = subject_of(held, name.text)
        code = name.code or (name.file if _runs_code(name) else "")
        opened = Opened(subject=subject, name=name, file=name.file, code=code)
    if not weights_file:
        return opened
    loaded = fill(opened.subject, weights_file, which, sample)
    return Opened(
        subject=opened.subject,
        name=opened.name,
        file=weights_file,
        loaded=loaded,
        code=opened.code,
    )


def subject_of(model: Any, text: str) -> Subject:
    """Subject over a live model of a framework, or the subject that it is already.

    Raises
    ------
    UsageError
        If it is no model.
    """
    if is_subject(model):
        subject: Subject = model
        return subject
    if is_keras(model):
        from .keras_subject import KerasSubject  # noqa: PLC0415

        return KerasSubject(model)
    if is_exported(model):
        from .torch_programs import ExportedSubject  # noqa: PLC0415

        with user_code(f"{text} cannot be turned into a module"):
            return ExportedSubject(model)
    if is_torch(model):
        from .torch_subject import TorchSubject  # noqa: PLC0415

        return TorchSubject(model)
    kind = type(model)
    found = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    hint = ""
    if isinstance(model, tuple | list | dict):
        values = list(model.values()) if isinstance(model, dict) else list(model)
        if any(is_torch(value) or is_keras(value) for value in values):
            hint = "there is a model in it: name a function that returns the model alone"
    message = f"expected {text} to be a torch.nn.Module or a keras.Model, found {found:.100}"
    raise UsageError(message, hint=hint)


# Files that hold a model.


def _held(name: ModelName, *, trust: bool) -> Any:
    """Load the model of a file, the framework's way, which can be unsafe."""
    reason = "" if trust else _danger(name)
    if reason:
        hint = "where you know who wrote it: --trust"
        raise UsageError(f"is not loaded: {reason}", where=name.file, hint=hint)
    if name.kind == "keras":
        return _keras_model(name.file, trust=trust)
    if name.kind == "pickled":
        return _unpickled(name.file, trust=trust)
    if importlib.util.find_spec("torch") is None:
        raise needs("torch", f"{name.file}: it")
    from . import torch_programs  # noqa: PLC0415

    if name.kind == "torchscript":
        return torch_programs.scripted_subject(name.file)
    return torch_programs.exported_subject(name.file)


def _runs_code(name: ModelName) -> bool:
    """Whether to load the file is to run what it says."""
    return name.kind in ("pickled", "exported")


def _danger(name: ModelName) -> str:
    """Why the framework's own loader is not let near a file; empty where nothing speaks against it.

    `torch.export.load` (torch 2.13) unpickles sample inputs and constants, evaluates the symbolic
    expressions as Python, and runs ``guards_code``: no look at the file could vouch for all of it.
    """
    if name.kind == "exported":
        return "torch.export.load can run code of the file"
    if name.kind != "torchscript":  # the others are checked where they are loaded
        return ""
    from ..formats import open_path  # noqa: PLC0415

    with open_path(name.file) as table:
        told = next((finding for finding in table.findings if finding.unsafe), None)
    return f"{told.code} {told.name}: {told.message:.200}" if told is not None else ""


def _keras_model(file: str, *, trust: bool) -> Any:
    from . import keras_weights  # noqa: PLC0415

    with user_code(f"{file} cannot be loaded"):
        return keras_weights.load_model(file, trust=trust)


def _unpickled(file: str, *, trust: bool) -> Any:
    """Unpickle a whole module, which runs whatever code the file names."""
    if not trust:
        hint = "name the factory that makes the model; --trust where you know who wrote the file"
        message = "is a pickled module: loading it runs code that the file names"
        raise UsageError(message, where=file, hint=hint)
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        raise needs("torch", f"{file}: it") from None
    # its classes may be of a script beside it or in the working folder, as where it was saved
    with (
        importable(""),
        importable(str(Path(file).parent)),
        user_code(f"{file} cannot be unpickled"),
    ):
        held = torch.load(file, map_location="cpu", weights_only=False)
    if isinstance(held, dict):
        modules = [value for value in held.values() if is_torch(value)]
        named = [held[key] for key in ("model", "module", "net", "ema") if is_torch(held.get(key))]
        if named or len(modules) == 1:
            held = (named or modules)[0]
    return held


# Weights.


def fill(subject: Any, file: str, which: str, sample: Sample | None = None) -> Loaded:
    """Put the weights of a checkpoint into a model; arguments as in `open_subject`.

    They are read by our own readers: no framework's loader ever sees the file.
    """
    from ..formats import open_path  # noqa: PLC0415

    if subject.framework == "keras":
        from .keras_weights import load_weights  # noqa: PLC0415

        if sample is not None:
            subject.build(sample(subject))
        with user_code(f"{file} cannot be loaded"):
            return load_weights(subject.model, file)
    with open_path(file) as table:
        if subject.framework == "torch":
            from . import torch_weights  # noqa: PLC0415

            found = torch_weights.load_weights(subject.module, table, which=which)  # type: ignore[arg-type]
            return Loaded(pairs=found.pairs, surplus=found.surplus, notes=found.notes)
        if hasattr(subject, "load"):
            loaded: Loaded = subject.load(table)
            return loaded
    message = f"weights cannot be loaded into a model of {subject.framework}"
    raise UsageError(message, hint="have its factory load them")
