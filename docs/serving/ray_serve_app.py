"""
Ray Serve: each replica examines the checkpoint on the node where it will load it.

    CHECKPOINT=model.safetensors serve run ray_serve_app:app
"""

import os

from classifier import load, predict
from ray import serve
from starlette.requests import Request

import ckptdoctor

CHECKPOINT = os.environ["CHECKPOINT"]
CACHE = os.environ.get("CKPTDOCTOR_CACHE")


@serve.deployment(max_constructor_retry_count=1)  # an unfit file stays unfit
class Classifier:
    def __init__(self, checkpoint: str, cache: str | None) -> None:
        self.report = ckptdoctor.preflight(checkpoint, cache=cache)
        self.model = load(checkpoint)

    async def __call__(self, request: Request) -> list[float]:
        return predict(self.model, await request.json())


app = Classifier.bind(CHECKPOINT, CACHE)
