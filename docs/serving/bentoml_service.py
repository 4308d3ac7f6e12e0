"""
BentoML: once per deployment, before any worker is started, and in each worker before it loads.

    CHECKPOINT=model.safetensors bentoml serve bentoml_service:Classifier
"""

import os

import bentoml
from classifier import load, predict

import ckptdoctor

CHECKPOINT = os.environ["CHECKPOINT"]
CACHE = os.environ.get("CKPTDOCTOR_CACHE")


@bentoml.service(workers=1)
class Classifier:
    @bentoml.on_deployment
    def preflight() -> None:
        ckptdoctor.preflight(CHECKPOINT, cache=CACHE)

    def __init__(self) -> None:
        self.report = ckptdoctor.preflight(CHECKPOINT, cache=CACHE)
        self.model = load(CHECKPOINT)

    @bentoml.api
    def predict(self, image: list) -> list[float]:
        return predict(self.model, image)
