"""Starts servers as their users do: a process on a free port, HTTP over the loopback, a log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import patients
from safetensors.numpy import save_file

EXAMPLES = Path(__file__).parents[2] / "docs" / "serving"
IMAGE = [[[0.5] * 8] * 8] * 3
BROKEN_LAYER = "bn2"


def checkpoint(path: Path, *, broken: bool = False) -> Path:
    """Weights for ``classifier.py`` of the examples; ``broken`` has one NaN variance in `bn2`."""
    shapes = {"conv1.weight": (8, 3, 3, 3), "conv2.weight": (16, 8, 3, 3)}
    for name, width in (("bn1", 8), ("bn2", 16)):
        parts = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{name}.{part}": (width,) for part in parts}
    shapes |= {"fc.weight": (4, 16), "fc.bias": (4,)}
    state = {name: patients.values(name, shape) for name, shape in shapes.items()}
    state |= {f"bn{i}.num_batches_tracked": np.array(1200, np.int64) for i in (1, 2)}
    if broken:
        state[f"{BROKEN_LAYER}.running_var"][3] = np.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def environment(home: Path, **more: str | Path) -> dict[str, str]:
    """Environment of a server that writes below ``home`` and reports to nobody."""
    quiet = {
        "BENTOML_DO_NOT_TRACK": "1",
        "BENTOML_HOME": home,
        "HOME": home,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **{k: str(v) for k, v in {**quiet, **more}.items()}}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Server:
    """A server's process, its port and its log."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self._log = process, port, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, path: str, payload: Any = None, *, timeout: float = 5) -> tuple[int, Any]:
        """Status and JSON of one request; raises OSError where nobody answers."""
        body = None if payload is None else json.dumps(payload).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text.startswith((b"{", b"[")) else text
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ready(self, path: str, *, seconds: float = 30) -> Any:
        """What the first request that succeeds gets; None if the process ends before that."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            with contextlib.suppress(OSError):
                status, body = self.ask(path, timeout=1)
                if status == 200:
                    return body
            if ended:
                return None
            time.sleep(0.1)
        raise AssertionError(f"neither ready nor ended after {seconds} s:\n{self.log}")

    def ended(self, *, seconds: float = 20) -> int:
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(
    command: Sequence[str | Path], port: int, where: Path, **environs: str | Path
) -> Iterator[Server]:
    """Run a server in the folder of the examples; it and its children end with the block.

    Sockets have short paths, so that temporary files get a folder of their own and not ``where``.
    """
    log = where / "server.log"
    short = tempfile.TemporaryDirectory(prefix="s", ignore_cleanup_errors=True)
    with short as temporary, log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=EXAMPLES,
            env=environment(where, TMPDIR=temporary, RAY_TMPDIR=temporary, **environs),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Server(process, port, log)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(8)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
    if process.stdin:
        process.stdin.close()
