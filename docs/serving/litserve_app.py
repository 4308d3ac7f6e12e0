"""
LitServe: each worker examines the checkpoint before it loads it; one refusal ends the server.

    CHECKPOINT=model.safetensors python litserve_app.py 8000
"""

import os
import sys

import litserve
from classifier import load, predict

import ckptdoctor

CHECKPOINT = os.environ["CHECKPOINT"]
CACHE = os.environ.get("CKPTDOCTOR_CACHE")


class Api(litserve.LitAPI):
    def setup(self, device):
        ckptdoctor.preflight(CHECKPOINT, cache=CACHE)
        self.model = load(CHECKPOINT).to(device)

    def decode_request(self, request):
        return request["image"]

    def predict(self, image):
        return predict(self.model, image)

    def encode_response(self, output):
        return {"probabilities": output}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
