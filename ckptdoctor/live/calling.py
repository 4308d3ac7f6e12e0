"""Code that the user names: imported and called, with every failure told in one line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CkptDoctorError, ModelError, UsageError
from ..hints import suggestion
from .naming import ModelName

__all__ = ["EXTRAS", "failure", "importable", "made", "needs", "user_code"]

EXTRAS = {
    "torch": "torch",
    "keras": "tensorflow",
    "tensorflow": "tensorflow",
}
"""Frameworks -> what ``pip install 'ckptdoctor[...]'`` calls them."""
_NUMBERS = itertools.count(1)
_REASON = 300
"""Characters of a foreign message."""


def needs(package: str, why: str) -> UsageError:
    """Error for a framework that is not installed."""
    hint = f"pip install 'ckptdoctor[{EXTRAS[package]}]'" if package in EXTRAS else ""
    return UsageError(f"{why} needs {package}, which is not installed", hint=hint)


@contextlib.contextmanager
def user_code(what: str, folder: str = "") -> Iterator[None]:
    """Run code of the user's; whatever it raises becomes one line.

    Parameters
    ----------
    what
        What is done, for the message.
    folder
        Where the user's code is: the line named is the last one there that failed.

    Raises
    ------
    UsageError
        If it needs a framework that is not installed.
    ModelError
        If it fails otherwise.
    """
    try:
        yield
    except CkptDoctorError:
        raise
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            raise needs(error.name, f"{what}: it") from error
        raise _told(what, error, folder) from error
    except (Exception, SystemExit) as error:
        raise _told(what, error, folder) from error


def _told(what: str, error: BaseException, folder: str) -> ModelError:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  (that is the user's code, too)
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[0][:_REASON] if lines else "without a message"
    return ModelError(f"{what}: {type(error).__name__}: {reason}", where=_place(error, folder))


_OF_DATA = (RuntimeError, ValueError, IndexError, AssertionError)
"""What frameworks raise where shapes or types do not fit; code of the user's may raise them for
that reason too."""


def failure(error: UsageError, folder: str) -> UsageError | ModelError:
    """Tell a model that fails of its own from one that does not take the data.

    Parameters
    ----------
    error
        What `Subject.run` raised; its cause is what the model raised.
    folder
        As for `user_code`.

    Returns
    -------
    UsageError or ModelError
        With the line of the user's that failed, where there is one.
    """
    cause = error.__cause__
    place = _own_place(cause, folder) if cause is not None else ""
    if not place or error.where:
        return error
    fits = isinstance(cause, _OF_DATA) and not isinstance(cause, NotImplementedError)
    kind = UsageError if fits else ModelError
    return kind(error.message, where=place, hint=error.hint)


def _own_place(error: BaseException, folder: str) -> str:
    """``file:line`` of the innermost frame that is neither ours, Python's nor a package's."""
    own, trace = "", error.__traceback__
    standard = str(Path(importlib.__file__ or "").parent.parent)
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        below = _is_below(file, folder) if folder else Path(file).is_file()
        installed = "-packages" in file or file.startswith(standard)
        if below and not installed and not _is_ours(file):
            own = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return own


def _place(error: BaseException, folder: str) -> str:
    """``file:line`` of the innermost frame in the user's folder, else of the innermost at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno or 0}"
    last = own = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        place = f"{file}:{trace.tb_lineno}"
        if not _is_ours(file):
            last = place
            if folder and _is_below(file, folder):
                own = place
        trace = trace.tb_next
    return own or last


def _is_ours(file: str) -> bool:
    """Whether a frame is of this package, or of the import machinery: no news to the user."""
    home = f"{Path(__file__).parent.parent}{os.sep}"
    return file.startswith((home, "<frozen importlib", importlib.__file__ or home))


def _is_below(file: str, folder: str) -> bool:
    if "site-packages" in file:
        return False
    return Path(file).absolute().is_relative_to(Path(folder).absolute())


def made(name: ModelName) -> Any:
    """Import what ``package.module:factory`` or ``file.py:factory`` names, and call it.

    An attribute that is a model already is taken as it is (`_is_model`).

    Raises
    ------
    UsageError
        If there is no such module or attribute, or the factory takes arguments.
    ModelError
        If the code fails.
    """
    folder = str(Path(name.place).parent) if name.kind == "script" else ""
    with importable(folder):
        module = _script(name.place) if name.kind == "script" else _module(name.place)
        with user_code(f"{name.text} failed", folder):  # a property, a module's __getattr__
            found = _attribute(module, name)
        if not callable(found) or _is_instance(found):
            return found
        _check_arguments(found, name)
        with user_code(f"{name.text} failed", folder):
            return found()


@contextlib.contextmanager
def importable(folder: str) -> Iterator[None]:
    """Folder of a script, or the working folder, first on the path as when Python runs it."""
    path = str(Path(folder or ".").absolute())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(path)


def _script(place: str) -> ModuleType:
    """Import a file under a name of its own: it may be called like a package."""
    name = f"_ckptdoctor_model_{next(_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        hint = "name a Python file: its name ends in .py"
        raise UsageError("cannot be imported", where=place, hint=hint)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and TorchScript look their module up
    try:
        with user_code(f"{place} cannot be imported", str(Path(place).parent)):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _module(place: str) -> ModuleType:
    try:
        with user_code(f"{place} cannot be imported"):
            return importlib.import_module(place)
    except ModelError as error:
        cause = error.__cause__
        # the module itself, or a package above it, and not something that it imports
        if isinstance(cause, ModuleNotFoundError) and (
            place == cause.name or place.startswith(f"{cause.name}.")
        ):
            hint = "run where it can be imported, or name the file: path/to/file.py:factory"
            raise UsageError(f"no module named {cause.name!r:.100}", hint=hint) from None
        raise


def _attribute(module: ModuleType, name: ModelName) -> Any:
    found: Any = module
    for part in name.factory.split("."):
        if not hasattr(found, part):
            names = [key for key, value in vars(module).items() if _offered(key, value, module)]
            hint = suggestion(part, names)
            if names and not hint:
                more = f" and {len(names) - 6:,} more" if len(names) > 6 else ""
                hint = f"it has {', '.join(names[:6])}{more}"
            raise UsageError(f"has no {name.factory!r:.100}", where=name.place, hint=hint)
        found = getattr(found, part)
    return found


def _offered(key: str, value: Any, module: ModuleType) -> bool:
    own = getattr(value, "__module__", "") == module.__name__
    return not key.startswith("_") and callable(value) and own


def _is_instance(found: Any) -> bool:
    """Whether a callable is an object to use, not a function or class to call: models are callable."""
    return not isinstance(found, type) and is_model(found)


def is_model(found: Any) -> bool:
    """Whether something is a model of a framework, or a subject already."""
    return (
        is_subject(found)
        or is_keras(found)
        or _is_a(found, "torch.nn", "Module")
        or _is_a(found, "torch.export", "ExportedProgram")
    )


def is_subject(found: Any) -> bool:
    """Whether something follows `ckptdoctor.live.subject.Subject`."""
    wanted = ("norms", "inputs", "statistics", "set_statistics", "run", "table")
    return not isinstance(found, type) and all(hasattr(type(found), name) for name in wanted)


def is_keras(found: Any) -> bool:
    """Whether something is a model of Keras 3, tf.keras or tf_keras."""
    return any(_is_a(found, package, "Model") for package in ("keras", "tf_keras"))


def is_torch(found: Any) -> bool:
    """Whether something is a PyTorch module, and no Keras model on PyTorch."""
    return _is_a(found, "torch.nn", "Module") and not is_keras(found)


def is_exported(found: Any) -> bool:
    """Whether something is what ``torch.export.export`` returns."""
    return _is_a(found, "torch.export", "ExportedProgram")


def _is_a(found: Any, module: str, name: str) -> bool:
    """Instance of a class of a framework, which is imported already where that is so."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(found, cls)


def _check_arguments(found: Callable[..., Any], name: ModelName) -> None:
    import inspect  # noqa: PLC0415

    try:
        inspect.signature(found).bind()
    except TypeError as error:
        hint = "name a function that takes none and returns the model"
        raise UsageError(f"{name.text} takes arguments: {error}", hint=hint) from None
    except ValueError:  # a builtin does not say
        return
