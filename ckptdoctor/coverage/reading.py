"""Small files beside a checkpoint: read whole, up to a limit, never a device and never a pipe."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

__all__ = ["CONFIG", "embeds", "folder_of", "parse", "read_config", "read_limited"]

CONFIG = "config.json"
MAX_CONFIG = 1 << 22
"""4 MiB: a configuration with the names of 21,000 classes, twice, has 2."""


def folder_of(path: str) -> str:
    """Folder in which the files beside a checkpoint lie."""
    return path if os.path.isdir(path) else os.path.dirname(path) or "."  # noqa: PTH112, PTH120


def embeds(path: str) -> bool:
    """Whether the folder is one of sentence-transformers, which uses the body and no head.

    Their configurations keep the class that the training began from, head and all.
    """
    names = ("modules.json", "config_sentence_transformers.json")
    return any(os.path.exists(os.path.join(folder_of(path), name)) for name in names)  # noqa: PTH110, PTH118


def read_config(path: str) -> tuple[bytes | None, str]:
    """Bytes of the ``config.json`` beside a checkpoint, or None and why not, if there is one."""
    return read_limited(os.path.join(folder_of(path), CONFIG), MAX_CONFIG)  # noqa: PTH118


def read_limited(name: str, limit: int) -> tuple[bytes | None, str]:
    """Bytes of a regular file; None and a reason, which is empty where there is no such file."""
    try:
        # without O_NONBLOCK, opening a named pipe waits for somebody to write
        fd = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except (OSError, ValueError) as error:
        return None, getattr(error, "strerror", None) or "no name of a file"
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return None, "not a regular file"
        if found.st_size > limit:
            return None, f"{found.st_size:,} bytes, at most {limit:,} are read"
        with os.fdopen(os.dup(fd), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        return None, error.strerror or "cannot be read"
    finally:
        os.close(fd)
    return (None, f"more than {limit:,} bytes") if len(data) > limit else (data, "")


def parse(data: bytes) -> Any:
    """Parse JSON.

    Raises
    ------
    ValueError
        If it is none, whatever is wrong with it.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
