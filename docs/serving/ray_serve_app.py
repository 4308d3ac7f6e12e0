"""
Ray Serve: refused before a running replica is touched, and again by each replica on its node.

    serve run ray_serve_app:app checkpoint=/models/model.safetensors cache=/var/cache/ckptdoctor
"""

from classifier import load, predict
from ray import serve
from starlette.requests import Request

import ckptdoctor


@serve.deployment(max_constructor_retry_count=1)  # an unfit file stays unfit
class Classifier:
    def __init__(self, checkpoint: str, cache: str | None) -> None:
        ckptdoctor.preflight(checkpoint, cache=cache)  # replicas on other nodes, and later ones
        self.model = load(checkpoint)

    async def __call__(self, request: Request) -> list[float]:
        return predict(self.model, await request.json())


def app(settings: dict[str, str]) -> serve.Application:
    checkpoint, cache = settings["checkpoint"], settings.get("cache")
    ckptdoctor.preflight(checkpoint, cache=cache)
    return Classifier.bind(checkpoint, cache)
