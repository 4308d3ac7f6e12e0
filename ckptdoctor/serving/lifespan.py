"""ASGI: the checkpoint is examined before the application starts (FastAPI, Starlette, any other)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..errors import CkptDoctorError, UsageError

if TYPE_CHECKING:
    from ..results import Report

__all__ = ["Preflighted"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Preflighted:
    """ASGI middleware: the application starts, its own lifespan included, only if the file is fit.

    A refusal is one line in the server's log (the ASGI message ``lifespan.startup.failed``; what a
    lifespan function raises becomes a traceback), and the server exits. Where a server never sends
    ``lifespan.startup``, nothing was checked, and every request is refused.

    Parameters
    ----------
    app
        What is served if the checkpoint is fit.
    path
        The checkpoint that the application is about to load.
    settings
        As for `ckptdoctor.preflight`: ``cache``, ``fail_on``, ``expect_sha256``...

    Notes
    -----
    The `ckptdoctor.Report` is ``request.state.preflight``, and with Starlette or FastAPI also
    ``app.state.preflight``, which their lifespan function sees too.

    Examples
    --------
    With FastAPI or Starlette ``app.add_middleware(Preflighted, path="model.safetensors")``, with
    any other application ``app = Preflighted(app, path="model.safetensors")``.
    """

    def __init__(self, app: App, *, path: str | PathLike[str], **settings: Any) -> None:
        self.app = app
        self.path = path
        self.settings = settings
        self._passed = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Start or end the application, or serve one connection.

        Raises
        ------
        CkptDoctorError
            If the checkpoint is unfit or could not be checked, after the server was told.
        UsageError
            If a request comes from a server that never asked the application to start.
        """
        if scope["type"] == "lifespan":
            await self._start(scope, receive, send)
        elif not self._passed:
            raise UsageError(
                f"{self.path}: not checked, since the server did not start the application",
                hint="enable its lifespan (uvicorn: --lifespan on; tests: with TestClient(app))",
            )
        await self.app(scope, receive, send)

    async def _start(self, scope: Message, receive: Receive, send: Send) -> None:
        from .gate import apreflight  # noqa: PLC0415

        self._passed = False  # a second start is another file's, perhaps
        try:
            report = await apreflight(self.path, **self.settings)
        except Exception as error:
            # Whatever it is, say so before it leaves: a server takes an exception without this
            # message for an application that knows no lifespan, and goes on.
            await receive()
            told = error if isinstance(error, CkptDoctorError) else repr(error)
            await send({"type": "lifespan.startup.failed", "message": f"{told}"})
            raise
        self._passed = True
        _leave(report, scope)


def _leave(report: Report, scope: Message) -> None:
    """Put the report where requests and the application find it."""
    if "state" in scope:
        scope["state"]["preflight"] = report
    if hasattr(scope.get("app"), "state"):
        scope["app"].state.preflight = report
