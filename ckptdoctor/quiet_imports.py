"""TensorFlow's import without the lines of information that no setting of it turns off."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["quiet_imports"]

_TALKATIVE = "tensorflow"
_FILTER = r"""
import re, sys
information = re.compile(rb"I\d{4} \d\d:|WARNING: All log messages before absl::InitializeLog")
for line in sys.stdin.buffer:
    if not information.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""
"""What reads the lines.  2.21 writes six of these, about oneDNN and GPUs, whatever TF_CPP_MIN_LOG_LEVEL
says: absl's level is set after its libraries are loaded.  Warnings and errors have other letters.  It is a
process of its own, so that the last words of an import that aborts are heard."""
_PATIENCE = 5.0
"""Seconds to wait for its end; who else has the descriptor may keep it open."""


def quiet_imports() -> None:
    """Have the first import of TensorFlow, by whichever module, pass on what is no information.

    For a process that is ours alone: file descriptor 2 is another one while the import lasts.
    """
    if _TALKATIVE not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != _TALKATIVE:
            return None
        sys.meta_path.remove(self)  # and so the next finder is asked
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Quiet(spec.loader)
        return spec


class _Quiet(Loader):
    """The package's own loader, with its lines read."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # what others ask it for
        with _without_information():
            self._loader.exec_module(module)


@contextmanager
def _without_information() -> Iterator[None]:
    import subprocess  # noqa: PLC0415  (6 ms, and most commands import no TensorFlow)

    if sys.stderr is not None:
        sys.stderr.flush()
    command = [sys.executable, "-I", "-S", "-c", _FILTER]
    try:
        own = os.dup(2)
    except OSError:  # closed: there is nothing to keep quiet
        yield
        return
    try:
        reader = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=own, start_new_session=True
        )
    except OSError:
        os.close(own)
        yield
        return
    assert reader.stdin is not None  # a pipe
    os.dup2(reader.stdin.fileno(), 2)
    try:
        yield
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(own, 2)
        os.close(own)
        reader.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            reader.wait(_PATIENCE)
