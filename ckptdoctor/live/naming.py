"""What ``MODEL`` on a command line means: a factory in someone's code, or a file that holds a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import CkptDoctorError, UnknownFormatError, UsageError

if TYPE_CHECKING:
    import ast

    from ..tensors import TensorTable

__all__ = ["Kind", "ModelName", "parse_model"]

Kind = Literal["module", "script", "keras", "torchscript", "exported", "pickled"]
"""A factory of a package or of a file; or a file with a model of one of four kinds."""

_FORMS = (
    "package.module:factory, file.py:factory, or a file that holds a whole model "
    "(.keras, .h5, TorchScript, ExportedProgram)"
)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A model as the user names it.

    Parameters
    ----------
    text
        What was written.
    kind
        What it is.
    place
        Dotted name of a module, or path of a file.
    factory
        What to call there, dots allowed; empty for files that hold a model.
    """

    text: str
    kind: Kind
    place: str
    factory: str = ""

    @property
    def code(self) -> str:
        """What of the user's is run to have the model: a file or a module; empty for none."""
        return self.place if self.kind in ("module", "script") else ""

    @property
    def file(self) -> str:
        """The file that holds model and weights; empty where there is none."""
        return "" if self.code else self.place


def parse_model(text: str) -> ModelName:
    """Say what a MODEL means; files are told apart by their content.

    Raises
    ------
    UsageError
        If it is none of the forms, or a file that holds weights without a model.
    CkptDoctorError
        If it is a file that cannot be read.

    Examples
    --------
    >>> name = parse_model("zoo.resnet:make")
    >>> name.kind, name.place, name.factory
    ('module', 'zoo.resnet', 'make')
    """
    place, colon, factory = text.rpartition(":")
    if colon and place and _DOTTED.fullmatch(factory):
        if place.endswith(".py") or "/" in place:
            return ModelName(text=text, kind="script", place=_script(place), factory=factory)
        if _DOTTED.fullmatch(place):
            return ModelName(text=text, kind="module", place=place, factory=factory)
    path = Path(text)
    if text.endswith(".py") and _is_file(path):
        raise _without_factory(text)
    if text and _exists(path):
        return ModelName(text=text, kind=_kind_of(text), place=text)
    if text and not colon and (path.suffix or "/" in text) and not _is_module(text):
        raise UsageError("no such file", where=text, hint=f"MODEL is {_FORMS}")
    if _DOTTED.fullmatch(text):
        message = f"expected MODEL to name a factory, found {text!r:.100}"
        raise UsageError(message, hint=f"write {text}:NAME, NAME a function that makes the model")
    raise UsageError(f"expected MODEL to be {_FORMS}, found {text!r:.100}")


def _is_module(text: str) -> bool:
    """Whether a dotted text is likelier a module without its factory than a file that is missing."""
    known = (
        ".py",
        ".pt",
        ".pth",
        ".pt2",
        ".ckpt",
        ".h5",
        ".hdf5",
        ".keras",
        ".safetensors",
        ".npz",
    )
    return bool(_DOTTED.fullmatch(text)) and not text.endswith(known)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _script(place: str) -> str:
    if not _is_file(Path(place)):
        raise UsageError("no such file", where=place)
    return place


def _without_factory(text: str) -> UsageError:
    """Say what the file defines, as its text shows: nothing is run to find out."""
    import ast  # noqa: PLC0415

    try:
        tree = ast.parse(Path(text).read_bytes())
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = [node for node in tree.body if isinstance(node, kinds)]
        found = [node for node in found if _without_arguments(node)] or found
        names = [f"{text}:{node.name}" for node in found]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        names = []
    shown = [name for name in names if not name.rpartition(":")[2].startswith("_")][:4]
    hint = f"write {' or '.join(shown) if shown else f'{text}:NAME'}"
    return UsageError("expected the name of a factory behind the file", where=text, hint=hint)


def _without_arguments(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether it can be called with nothing, as far as its text shows; a class by its own init."""
    import ast  # noqa: PLC0415

    if isinstance(node, ast.FunctionDef):
        needed, taken = node, 0
    else:
        own = [each for each in node.body if isinstance(each, ast.FunctionDef)]
        inits = [each for each in own if each.name == "__init__"]
        if not inits:
            return True  # what it inherits is not looked up
        needed, taken = inits[0], 1
    given = needed.args
    positional = len(given.posonlyargs) + len(given.args) - len(given.defaults) - taken
    return positional <= 0 and None not in given.kw_defaults


def _kind_of(file: str) -> Kind:
    """Tell what a file holds by its content."""
    from ..formats import open_path  # noqa: PLC0415  (not for models that code makes)

    if Path(file).is_dir():
        hint = "name a file with a whole model, or the factory and --weights-file"
        raise UsageError("is a folder, not a model", where=file, hint=hint)
    try:
        table = open_path(file)
    except UnknownFormatError:
        if _is_exported(file):
            return "exported"
        raise
    with table:
        kind = _kind_in(table)
        wrong = table.format
    if kind is None:
        hint = "name the factory that makes the model, and give this file as --weights-file"
        raise UsageError(f"holds weights ({wrong}), but no model", where=file, hint=hint)
    return kind


def _kind_in(table: TensorTable) -> Kind | None:
    name, layout = table.format, table.metadata.get("layout", "")
    if name == "torchscript":
        return "torchscript"
    if name in ("keras-zip", "keras-h5") and layout == "whole model" and _has_model(table):
        return "keras"
    if name.startswith("torch-") and (table.layers or _names_modules(table)):
        return "pickled"
    return None


def _names_modules(table: TensorTable) -> bool:
    """Whether loading it needs classes of layers, which no state dict does."""
    named = [name for finding in table.findings for name in finding.measured.get("globals", ())]
    return any(str(name).startswith("torch.nn.modules.") for name in named)


def _has_model(table: TensorTable) -> bool:
    return bool(table.layers or table.metadata.get("model_class"))


def _is_exported(file: str) -> bool:
    """Whether torch.export.save wrote it: today's archive, or that of torch before 2.6."""
    from ..containers.zip import read_archive  # noqa: PLC0415
    from ..sources import FileSource  # noqa: PLC0415

    source = FileSource(file)
    try:
        names = {member.name for member in read_archive(source).members}
    except CkptDoctorError:
        return False
    finally:
        source.close()
    return any(
        name == "serialized_exported_program.json"
        or name.endswith("/serialized_exported_program.json")
        or re.fullmatch(r"(.*/)?models/[^/]+\.json", name)
        for name in names
    )
