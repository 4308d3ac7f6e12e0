"""BentoML with the preflight in ``on_deployment`` and in the service's ``__init__``."""

from __future__ import annotations

import sys

import pytest
from serving.servers import BROKEN_LAYER, IMAGE, checkpoint, free_port, serving

pytestmark = pytest.mark.oracle


def bentoml(path, tmp_path):
    for framework in ("bentoml", "torch"):
        pytest.importorskip(framework)
    port = free_port()
    serve = ["serve", "bentoml_service:Classifier", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "bentoml", *serve]
    return serving(command, port, tmp_path, CHECKPOINT=path, CKPTDOCTOR_CACHE=tmp_path / "cache")


@pytest.mark.filterwarnings("ignore")
def test_server_answers_with_a_fit_checkpoint(tmp_path):
    with bentoml(checkpoint(tmp_path / "good.safetensors"), tmp_path) as server:
        server.ready("/readyz")
        status, probabilities = server.ask("/predict", {"image": IMAGE})
    assert status == 200
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_server_never_answers_with_a_broken_checkpoint(tmp_path):
    path = checkpoint(tmp_path / "broken.safetensors", broken=True)
    with bentoml(path, tmp_path) as server:
        assert server.ready("/readyz") is None
        assert server.ended() != 0
        (line,) = [line for line in server.log.splitlines() if str(path) in line]
    assert line.startswith("ckptdoctor.errors.UnfitCheckpointError")
    assert BROKEN_LAYER in line
