"""Samples to run a model on: a file of them, or random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ReadError, UsageError
from .batches import array_of, numeric
from .entries import by_name, taken, usable
from .inputs import Parameters, in_memory, parameters_of
from .random_data import Inputs, asks_for_random, random_samples, told

if TYPE_CHECKING:
    import os

    from ..tensors import Array
    from .subject import Subject

__all__ = ["Data", "Inputs", "data_for", "read_data"]


Kind = Literal["file", "random", "memory"]
_UNNAMED = Parameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Samples of every input of a model.

    Parameters
    ----------
    arrays
        One per input, samples first; of a ``.npy`` file mapped, not read.
    source
        What the samples are from, as the user wrote it.
    kind
        Where they are from; ``random`` ones say nothing about what a model was trained on.
    dtypes
        What the model takes, one per input; empty where it does not say.
    batch
        Samples of a batch, where the model takes no other number; 0 where it is free.
    notes
        What a user should know about them: that images are integers.
    names
        Parameters that the arrays are given to by name; empty where they go by position.
    within
        Parameter that takes all of them in a mapping, by ``names``; empty where each is an input.
    """

    arrays: tuple[Array, ...]
    source: str
    kind: Kind
    dtypes: tuple[str, ...] = ()
    batch: int = 0
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    within: str = ""

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, indices: Sequence[int] | Array) -> tuple[Array, ...]:
        """Return some samples as the model takes them.

        Real numbers become float32 unless the model takes others; integers stay, but for images
        and where the model takes real numbers.
        """
        found = []
        for at, array in enumerate(self.arrays):
            wanted = self.dtypes[at] if at < len(self.dtypes) else ""
            rows = array[_slice(indices)]
            with np.errstate(over="ignore"):  # beyond float32 it is infinite, and told as such
                found.append(np.ascontiguousarray(rows, _dtype(array, wanted)))
        return tuple(found)

    def batches(self, size: int, indices: Sequence[int] | Array | None = None) -> Iterator[Array]:
        """Yield the indices of batch after batch, of all samples or of some.

        Batches of about one size: a last one of two samples would have statistics like no other.
        """
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        if self.batch:
            yield from (chosen[at : at + self.batch] for at in range(0, len(chosen), self.batch))
        elif len(chosen):
            yield from np.array_split(chosen, -(-len(chosen) // size))

    def filled(self, indices: Sequence[int] | Array) -> tuple[Array, ...]:
        """Return a batch of some samples; repeated where the model takes one size of batch only."""
        chosen = np.asarray(indices, np.int64)
        if self.batch:
            chosen = np.resize(chosen, self.batch)
        return self.take(chosen)


def _slice(indices: Sequence[int] | Array) -> Any:
    """Return a slice where the indices follow each other: a mapped file is then read in one go."""
    chosen = np.asarray(indices, np.int64)
    if len(chosen) and np.array_equal(chosen, np.arange(chosen[0], chosen[0] + len(chosen))):
        return slice(int(chosen[0]), int(chosen[0]) + len(chosen))
    return chosen


def _dtype(array: Array, wanted: str) -> Any:
    if wanted:
        return np.dtype(wanted if wanted not in ("bfloat16", "float16") else "float32")
    if array.dtype.kind == "f" or _is_image(array):
        return np.dtype(np.float32)
    return array.dtype


def _is_image(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim >= 3


def data_for(subject: Subject, data: Any, limit: int = 0) -> Data:
    """Read the samples for a model, as `read_data` does; tensors and loaders, too.

    Of a loader no more than ``limit`` samples are asked for; 0 for all.

    What Keras models and exported programs say of their inputs is binding.  What a PyTorch module
    states, such as ``example_input_array``, is an example: other lengths fit it as well.
    """
    inputs, parameters = subject.inputs(), parameters_of(subject)
    binding = subject.framework != "torch" or hasattr(subject, "program")
    drawn = isinstance(data, str) and asks_for_random(data)
    if not isinstance(data, str | Data | np.ndarray | Mapping) and not hasattr(data, "__fspath__"):
        needed = len(inputs) if binding else len(parameters.required)
        data = in_memory(
            data,
            needed or len(inputs) or 1,
            limit,
            lambda batch: taken(numeric(batch), inputs if binding else (), parameters, "")[0],
            needed,
            needed if binding else len(parameters.positions),
        )
    found = read_data(data, inputs if binding or drawn else (), parameters=parameters)
    if hasattr(subject, "by_name"):
        subject.by_name = found.names
        if found.within or hasattr(subject, "within"):
            subject.within = found.within  # type: ignore[attr-defined]
    if not binding and [dtype for _, dtype in inputs] == ["float32"]:
        return _as_images(found)
    return found


def _as_images(data: Data) -> Data:
    """Integers of any width as real numbers, where they are images by their dimensions.

    A module whose first layer is a convolution may yet be given indices: those have fewer.
    """
    integers = [a for a in data.arrays if a.dtype.kind in "iub" and a.ndim > 2]
    if len(data.arrays) != 1 or not integers:
        return data
    return replace(data, dtypes=("float32",), notes=(_noted(integers[0]),))


def read_data(
    data: str | os.PathLike[str] | Array | Sequence[Array] | Mapping[str, Array],
    inputs: Inputs = (),
    *,
    parameters: Parameters = _UNNAMED,
) -> Data:
    """Read the samples that a user names, and hold them against what the model takes.

    Parameters
    ----------
    data
        A ``.npy`` or ``.npz`` file (``FILE.npz:NAME,NAME`` for arrays of it), ``random``
        (``random:3,32,32`` with the shape of a sample, ``random:64x3,32,32`` with their number
        too, ``;`` between inputs), or arrays.
    inputs
        What the model says of its inputs; empty where it does not.
    parameters
        Names of the inputs, where it has any.

    Raises
    ------
    UsageError
        If there is no such file or array, or the model does not take such shapes.
    ReadError
        If the file cannot be read.

    Examples
    --------
    >>> data = read_data("random:8x3,4,4")
    >>> len(data), data.arrays[0].shape
    (8, (8, 3, 4, 4))
    """
    if isinstance(data, Data):
        found = _checked(data.arrays, data.source, data.kind, inputs)
        return replace(found, names=data.names, within=data.within)
    if isinstance(data, np.ndarray):
        return _checked((data,), "the given array", "memory", inputs)
    if isinstance(data, Mapping):
        keys, within = taken(numeric(data), inputs, parameters, "")
        chosen = {str(key): value for key, value in data.items()}
        arrays = tuple(array_of(chosen[key]) for key in keys)
        found = _checked(arrays, "the given arrays", "memory", inputs)
        return _named(found, keys, within, parameters)
    if isinstance(data, Sequence) and not isinstance(data, str):
        found = _checked(tuple(map(np.asarray, data)), "the given arrays", "memory", inputs)
        return replace(found, names=_all_by_name(found.arrays, parameters))
    text = str(data)
    if asks_for_random(text) and not Path(text).exists():
        found = _checked(random_samples(text, inputs), text, "random", inputs)
        return replace(found, names=_all_by_name(found.arrays, parameters))
    arrays, keys, within = _read(text, inputs, parameters)
    found = _checked(arrays, text, "file", inputs)
    if keys:
        return _named(found, keys, within, parameters)
    return replace(found, names=_all_by_name(arrays, parameters))


def _named(data: Data, keys: Sequence[str], within: str, parameters: Parameters) -> Data:
    names = tuple(keys) if within else by_name(keys, parameters)
    return replace(data, names=names, within=within)


def _all_by_name(arrays: Sequence[Array], parameters: Parameters) -> tuple[str, ...]:
    """Names for arrays without any, where a module takes them by keyword only."""
    required = parameters.required
    if len(arrays) == len(required) and any(name in parameters.keywords for name in required):
        return required
    return ()


# Files.


def _read(
    text: str, inputs: Inputs, parameters: Parameters
) -> tuple[tuple[Array, ...], Sequence[str], str]:
    """Arrays of a file, what they are called there, and the parameter that takes them all."""
    file, wanted = text, ""
    if not _exists(file):
        file, _, wanted = text.rpartition(":")
        if not file or not wanted or not _exists(file):
            hint = "--data takes a .npy or .npz file, or random"
            raise UsageError("no such file", where=text, hint=hint)
    with _opened(file) as loaded:
        if isinstance(loaded, np.ndarray):
            if wanted:
                raise UsageError(f"holds one array, none is called {wanted!r:.100}", where=file)
            return (loaded,), (), ""
        keys, within = taken(
            list(loaded), inputs, parameters, file, wanted.split(",") if wanted else ()
        )
        for name in keys:
            if name not in loaded:
                listed = ", ".join(map(repr, list(loaded)[:8]))
                raise UsageError(f"holds no array {name!r:.100}, but {listed:.300}", where=file)
        arrays = dict(zip(keys, _taken(loaded, keys, file), strict=True))
        if not wanted:
            keys = usable(arrays, within, parameters)
        return tuple(arrays[key] for key in keys), keys, within


def _exists(file: str) -> bool:
    try:
        return Path(file).is_file()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    """Array of a ``.npy``, mapped; arrays by name of a ``.npz``, read when they are asked for."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(file).open("rb"))
            head = stream.read(6)
            stream.seek(0)
            loaded: Any = None
            if head.startswith(b"PK"):
                loaded = stack.enter_context(np.load(stream, allow_pickle=False))
            elif head == b"\x93NUMPY":
                loaded = np.load(file, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise ReadError(f"cannot be read: {error.strerror or error}", where=file) from None
        except Exception as error:  # noqa: BLE001  (whatever a damaged file makes of the reader)
            raise _damaged(file, error) from None
        if loaded is None:
            hint = "save the samples by numpy.save, or several arrays by numpy.savez"
            raise UsageError("is no .npy or .npz file", where=file, hint=hint)
        yield loaded


def _damaged(file: str, error: Exception) -> ReadError | UsageError:
    text = str(error).partition("\n")[0][:200]
    if "allow_pickle" in text or "Python objects" in text:
        hint = "save numbers, in an array of one shape"
        return UsageError("holds Python objects, which are not unpickled", where=file, hint=hint)
    return ReadError(f"cannot be read: {text or type(error).__name__}", where=file)


def _taken(loaded: Mapping[str, Array], keys: Sequence[str], file: str) -> tuple[Array, ...]:
    try:
        return tuple(loaded[key] for key in keys)
    except Exception as error:  # noqa: BLE001  (a member is decoded when it is asked for)
        raise _damaged(file, error) from None


# Against the model.


def _checked(arrays: tuple[Array, ...], source: str, kind: Kind, inputs: Inputs) -> Data:
    for array in arrays:
        if array.dtype.kind not in "fiub":
            raise UsageError(f"expected numbers, found {array.dtype}", where=source)
        if not array.ndim or not array.size:
            message = f"expected samples, found an array of shape {told(array.shape)}"
            raise UsageError(message, where=source)
    if not arrays:
        raise UsageError("expected samples, found none", where=source)
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        message = f"the inputs have different numbers of samples: {sorted(lengths)}"
        raise UsageError(message, where=source)
    if inputs and len(inputs) != len(arrays):
        message = f"the model takes {len(inputs)} inputs, found {len(arrays)}"
        raise UsageError(message, where=source)
    for (shape, _), array in zip(inputs, arrays, strict=False):
        _check_shape(array.shape, shape, source)
    fixed = next((shape[0] for shape, _ in inputs if shape and shape[0]), None) or 0
    notes = tuple(_noted(array) for array in arrays if _is_image(array))
    dtypes = tuple(dtype for _, dtype in inputs)
    return Data(arrays=arrays, source=source, kind=kind, dtypes=dtypes, batch=fixed, notes=notes)


def _noted(array: Array) -> str:
    extent = ", 0 to 255" if array.dtype == np.uint8 else ""
    return (
        f"{array.dtype} images are given as they are{extent}: a model that was trained on "
        "scaled ones needs them scaled"
    )


def _check_shape(found: tuple[int, ...], wanted: Sequence[int | None], source: str) -> None:
    """Compare the shape of the samples with what the model takes; open extents fit anything."""
    if not wanted:
        return
    rest, sample = tuple(wanted[1:]), found[1:]
    if _fits(sample, rest):
        return
    hint = ""
    if _fits(found, rest):
        hint = "one sample needs a dimension for the number of samples: x[None]"
    elif len(sample) == len(rest) and len(rest) > 1:
        if _fits((*sample[1:], sample[0]), rest):
            hint = "the channels are first, the model takes them last: np.moveaxis(x, 1, -1)"
        elif _fits((sample[-1], *sample[:-1]), rest):
            hint = "the channels are last, the model takes them first: np.moveaxis(x, -1, 1)"
    message = f"expected samples of shape {told(rest)}, found {told(sample)}"
    raise UsageError(message, where=source, hint=hint)


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(shape, wanted, strict=True)
    )
