"""Ray Serve with the preflight in the application's builder and in each replica's ``__init__``."""

from __future__ import annotations

import sys
import time

import pytest
from serving.servers import BROKEN_LAYER, IMAGE, checkpoint, free_port, serving

pytestmark = pytest.mark.oracle

DRIVER = """
import sys
import ray
from ray import serve
sys.path.insert(0, "")
from ray_serve_app import Classifier, app

port, cache = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
for line in sys.stdin:
    how, path = line.split()
    built = how == "app"
    try:
        serve.run(app({"checkpoint": path, "cache": cache}) if built else Classifier.bind(path, cache))
        print("DEPLOYED", path, flush=True)
    except Exception as error:
        print("REFUSED", type(error).__name__, error, flush=True)
        status = serve.status().applications["default"] if not built else None
        print("STATUS", status and status.status.value, flush=True)
ray.shutdown()
"""
"""Deploys the checkpoints that its standard input names, one after the other."""


def deployed(server, how, path, *, seconds=30):
    """Outcome line of one deployment."""
    seen = len(server.log)
    server.process.stdin.write(f"{how} {path}\n".encode())
    server.process.stdin.flush()
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        lines = server.log[seen:].splitlines()
        done = [line for line in lines if line.startswith(("DEPLOYED", "STATUS"))]
        if done:
            return next(line for line in lines if line.startswith(("DEPLOYED", "REFUSED"))), done[0]
        time.sleep(0.1)
    raise AssertionError(server.log)


@pytest.fixture(scope="module")
def ray_serve(tmp_path_factory):
    """A running Ray that deploys what it is told."""
    for framework in ("ray.serve", "torch"):
        pytest.importorskip(framework)
    where = tmp_path_factory.mktemp("ray")
    port = free_port()
    command = [sys.executable, "-c", DRIVER, str(port), where / "cache"]
    with serving(command, port, where) as server:
        yield server
        server.process.stdin.close()
        server.ended(seconds=15)


@pytest.mark.filterwarnings("ignore")
def test_replicas_serve_a_fit_checkpoint_and_a_broken_one_never_replaces_them(ray_serve, tmp_path):
    good = checkpoint(tmp_path / "good.safetensors")
    broken = checkpoint(tmp_path / "broken.safetensors", broken=True)

    assert deployed(ray_serve, "app", good)[0] == f"DEPLOYED {good}"
    status, probabilities = ray_serve.ask("/", IMAGE)
    assert status == 200
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)

    line, _ = deployed(ray_serve, "app", broken)
    assert line.startswith(f"REFUSED UnfitCheckpointError {broken}")
    assert BROKEN_LAYER in line
    assert ray_serve.ask("/", IMAGE) == (200, probabilities)


@pytest.mark.filterwarnings("ignore")
def test_replica_that_meets_a_broken_checkpoint_is_not_started_again(ray_serve, tmp_path):
    broken = checkpoint(tmp_path / "broken.safetensors", broken=True)
    line, status = deployed(ray_serve, "replica", broken)
    assert line.startswith("REFUSED RuntimeError")
    assert status == "STATUS DEPLOY_FAILED"
    assert ray_serve.ask("/", IMAGE)[0] == 503
    refusals = [line for line in ray_serve.log.splitlines() if f"Error: {broken}" in line]
    assert len(refusals) == 1
    assert BROKEN_LAYER in refusals[0]
