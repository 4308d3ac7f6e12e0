"""Which weights a checkpoint should hold: by expected names, or by the model's own configuration.

Importing this package costs nothing; the work is imported when the first file is judged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..findings import Finding
from ..tensors import TensorTable

__all__ = ["ExpectKeys", "coverage_of", "expectation_digest"]

ExpectKeys = Sequence[str] | str | os.PathLike[str] | None
"""Names, or the path of a file with names, of a configuration, or of another checkpoint."""


def coverage_of(
    table: TensorTable, path: str, expect_keys: ExpectKeys = None
) -> tuple[Finding, ...]:
    """Name the weights that are missing, and those that are one too many, as CK003.

    Without ``expect_keys``, a Hugging Face ``config.json`` beside the checkpoint is asked, or the
    Keras configuration inside it; where there is neither, nothing is known and nothing is said.

    Parameters
    ----------
    table
        The checkpoint, as it was read.
    path
        The file or folder, as the caller named it: ``config.json`` is looked for there.
    expect_keys
        Names (``*`` stands for anything), or the path of a JSON list or object of names, of a text
        file with a name on each line, of an ``index.json``, of a ``config.json``, of what Keras'
        ``model.to_json()`` gave, or of another checkpoint.  Asked instead of everything else.

    Returns
    -------
    tuple of Finding
        Missing weights and other shapes are errors, surplus weights warnings.

    Raises
    ------
    UsageError
        If ``expect_keys`` names no file, one without names, or a checkpoint that cannot be read.
    CkptDoctorError
        If the machine would not give its bytes.
    """
    from .judge import judged  # noqa: PLC0415  (most inspections need none of it)

    return judged(table, path, expect_keys)


def expectation_digest(path: str, expect_keys: ExpectKeys = None) -> str:
    """SHA-256 over everything outside the checkpoint's own bytes that `coverage_of` depends on.

    Equal digests for equal checkpoints mean equal findings: the name of the file counts where a
    ``config.json`` is beside it, because it says which loader would read it.

    Raises
    ------
    CkptDoctorError
        As `coverage_of`.
    """
    from .judge import digest  # noqa: PLC0415

    return digest(path, expect_keys)
