"""
Starlette with the preflight in its own lifespan function, without any helper.

    CHECKPOINT=model.safetensors uvicorn starlette_app:app

The server refuses just as well; its log shows a traceback that ends in the one line.
"""

import os
from contextlib import asynccontextmanager

from classifier import load, predict
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import ckptdoctor

CHECKPOINT = os.environ["CHECKPOINT"]


@asynccontextmanager
async def lifespan(_app: Starlette):
    report = await ckptdoctor.apreflight(CHECKPOINT, cache=os.environ.get("CKPTDOCTOR_CACHE"))
    yield {"model": load(CHECKPOINT), "preflight": report}


async def healthz(request: Request) -> JSONResponse:
    return JSONResponse({"serve": request.state.preflight.verdict.serve})


async def answer(request: Request) -> JSONResponse:
    return JSONResponse(predict(request.state.model, await request.json()))


app = Starlette(
    lifespan=lifespan,
    routes=[Route("/healthz", healthz), Route("/predict", answer, methods=["POST"])],
)
