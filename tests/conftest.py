"""Settings of the whole suite; helpers that tests import are modules beside this one."""

from __future__ import annotations

import os

# Before anything imports TensorFlow, in tests marked `oracle`: no GPU, no chatter.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
