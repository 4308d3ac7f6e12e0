"""
FastAPI behind the preflight: the server does not start with a checkpoint that is unfit.

    CHECKPOINT=model.safetensors uvicorn fastapi_app:app --workers 4
"""

import os
from contextlib import asynccontextmanager
from typing import Annotated

from classifier import load, predict
from fastapi import Body, FastAPI, Request

from ckptdoctor.serving.lifespan import Preflighted

CHECKPOINT = os.environ["CHECKPOINT"]


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.model = load(CHECKPOINT)  # runs only if the preflight passed
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(Preflighted, path=CHECKPOINT, cache=os.environ.get("CKPTDOCTOR_CACHE"))


@app.get("/healthz")
def healthz(request: Request) -> dict:
    report = request.app.state.preflight
    return {"file": report.file, "serve": report.verdict.serve, "load": report.verdict.load}


@app.post("/predict")
def answer(request: Request, image: Annotated[list, Body()]) -> list[float]:
    return predict(request.app.state.model, image)
