"""LitServe with the preflight in ``LitAPI.setup``."""

from __future__ import annotations

import sys

import pytest
from serving.servers import BROKEN_LAYER, IMAGE, checkpoint, free_port, serving

pytestmark = pytest.mark.oracle


def litserve(path, tmp_path):
    for framework in ("litserve", "torch"):
        pytest.importorskip(framework)
    port = free_port()
    command = [sys.executable, "litserve_app.py", str(port)]
    return serving(command, port, tmp_path, CHECKPOINT=path, CKPTDOCTOR_CACHE=tmp_path / "cache")


@pytest.mark.filterwarnings("ignore")
def test_server_answers_with_a_fit_checkpoint(tmp_path):
    with litserve(checkpoint(tmp_path / "good.safetensors"), tmp_path) as server:
        assert server.ready("/health") == b"ok"
        status, body = server.ask("/predict", {"image": IMAGE})
    assert status == 200
    assert sum(body["probabilities"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_server_never_answers_with_a_broken_checkpoint(tmp_path):
    path = checkpoint(tmp_path / "broken.safetensors", broken=True)
    with litserve(path, tmp_path) as server:
        assert server.ready("/health") is None
        assert server.ended() != 0
        (line,) = [line for line in server.log.splitlines() if str(path) in line]
    assert line.startswith("ckptdoctor.errors.UnfitCheckpointError")
    assert BROKEN_LAYER in line
