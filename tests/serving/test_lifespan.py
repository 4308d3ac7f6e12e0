"""The preflight in an ASGI application's start: as middleware, and in FastAPI under uvicorn."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

import pytest
from serving.servers import BROKEN_LAYER, IMAGE, checkpoint, free_port, serving

from ckptdoctor.errors import UncheckedCheckpointError, UnfitCheckpointError, UsageError
from ckptdoctor.results import Report
from ckptdoctor.serving.lifespan import Preflighted


class Conversation:
    """An ASGI server's side of a start: what it sends, and what it was told."""

    def __init__(self):
        self.told, self.started_with, self.asked = [], None, False

    async def app(self, scope, receive, send):
        self.started_with = scope
        assert await receive() == {"type": "lifespan.startup"}
        await send({"type": "lifespan.startup.complete"})

    async def receive(self):
        self.asked = True
        return {"type": "lifespan.startup"}

    async def send(self, message):
        assert self.asked, "an answer before the question"
        self.told.append(message)

    def start(self, path, scope=None, **settings):
        guarded = Preflighted(self.app, path=path, **settings)
        scope = {"type": "lifespan", "state": {}} if scope is None else scope
        asyncio.run(guarded(scope, self.receive, self.send))
        return guarded


@pytest.fixture
def good(tmp_path):
    return checkpoint(tmp_path / "good.safetensors")


@pytest.fixture
def broken(tmp_path):
    return checkpoint(tmp_path / "broken.safetensors", broken=True)


def test_application_starts_with_a_fit_checkpoint_and_finds_the_report(good):
    conversation = Conversation()
    conversation.start(good)
    report = conversation.started_with["state"]["preflight"]
    assert isinstance(report, Report)
    assert report.verdict.serve == "fit"
    assert conversation.told == [{"type": "lifespan.startup.complete"}]


def test_report_is_on_the_state_of_an_application_that_has_one(good):
    app = SimpleNamespace(state=SimpleNamespace())
    Conversation().start(good, {"type": "lifespan", "app": app})
    assert app.state.preflight.verdict.serve == "fit"


def test_server_without_state_is_served_too(good):
    conversation = Conversation()
    conversation.start(good, {"type": "lifespan", "app": object()})
    assert conversation.told == [{"type": "lifespan.startup.complete"}]


def refusal(path, error, **settings):
    conversation = Conversation()
    with pytest.raises(error) as caught:
        conversation.start(path, **settings)
    assert conversation.started_with is None
    (message,) = conversation.told
    assert message["type"] == "lifespan.startup.failed"
    assert "\n" not in message["message"]
    return message["message"], caught.value


def test_unfit_checkpoint_stops_the_start_with_one_line(broken):
    line, error = refusal(broken, UnfitCheckpointError)
    assert line == str(error)
    assert BROKEN_LAYER in line
    assert error.report.verdict.serve == "unfit"


def test_unchecked_checkpoint_stops_the_start(tmp_path):
    (tmp_path / "model.safetensors").write_text("not a checkpoint")
    line, _ = refusal(tmp_path / "model.safetensors", UncheckedCheckpointError)
    assert "model.safetensors" in line


def test_settings_reach_the_preflight(good):
    refusal(good, UnfitCheckpointError, expect_sha256="0" * 64)


def test_any_other_failure_is_told_too(good):
    line, error = refusal(good, TypeError, no_such_setting=1)
    assert line == repr(error)


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_request_that_no_start_went_before_is_refused(good, kind):
    guarded = Preflighted(Conversation().app, path=good)
    with pytest.raises(UsageError, match=r"good\.safetensors: not checked"):
        asyncio.run(guarded({"type": kind}, None, None))


def test_request_after_a_refused_start_is_refused(broken):
    conversation = Conversation()
    guarded = Preflighted(conversation.app, path=broken)
    for scope in ({"type": "lifespan"}, {"type": "http"}):
        with pytest.raises((UnfitCheckpointError, UsageError)):
            asyncio.run(guarded(scope, conversation.receive, conversation.send))
    assert conversation.started_with is None


def test_request_after_a_second_start_that_was_refused_is_refused(good):
    conversation = Conversation()
    guarded = conversation.start(good)
    checkpoint(good, broken=True)
    for scope in ({"type": "lifespan"}, {"type": "http"}):
        with pytest.raises((UnfitCheckpointError, UsageError)):
            asyncio.run(guarded(scope, conversation.receive, conversation.send))


def test_request_after_the_start_is_served(good):
    conversation = Conversation()
    guarded = conversation.start(good)
    asyncio.run(guarded({"type": "http"}, conversation.receive, conversation.send))
    assert conversation.started_with == {"type": "http"}


def uvicorn(app, path, tmp_path, *options):
    for framework in ("uvicorn", "fastapi" if app == "fastapi_app" else "starlette", "torch"):
        pytest.importorskip(framework)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"{app}:app", "--port", str(port), *options]
    return serving(command, port, tmp_path, CHECKPOINT=path, CKPTDOCTOR_CACHE=tmp_path / "cache")


@pytest.mark.oracle
@pytest.mark.parametrize("app", ["fastapi_app", "starlette_app"])
def test_server_answers_with_a_fit_checkpoint(app, good, tmp_path):
    with uvicorn(app, good, tmp_path) as server:
        assert server.ready("/healthz")["serve"] == "fit"
        status, probabilities = server.ask("/predict", IMAGE)
    assert status == 200
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.oracle
def test_fastapi_never_answers_with_a_broken_checkpoint_and_says_so_in_one_line(broken, tmp_path):
    with uvicorn("fastapi_app", broken, tmp_path) as server:
        assert server.ready("/healthz") is None
        assert server.ended() == 3
        lines = [line for line in server.log.splitlines() if str(broken) in line]
        assert "Traceback" not in server.log
    (line,) = lines
    assert BROKEN_LAYER in line


@pytest.mark.oracle
def test_refusal_in_one_of_several_workers_ends_the_server(broken, tmp_path):
    with uvicorn("fastapi_app", broken, tmp_path, "--workers", "2") as server:
        assert server.ready("/healthz") is None
        assert BROKEN_LAYER in server.log


@pytest.mark.oracle
def test_starlette_lifespan_function_never_lets_the_server_answer(broken, tmp_path):
    with uvicorn("starlette_app", broken, tmp_path) as server:
        assert server.ready("/healthz") is None
        assert server.ended() == 3
        assert f"UnfitCheckpointError: {broken}" in server.log


@pytest.mark.oracle
def test_server_that_skips_the_lifespan_serves_nothing(broken, tmp_path):
    with uvicorn("fastapi_app", broken, tmp_path, "--lifespan", "off") as server:
        while "running on" not in server.log:
            assert server.process.poll() is None
        assert server.ask("/healthz")[0] == 500
        assert server.ask("/predict", IMAGE)[0] == 500
