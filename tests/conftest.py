"""Settings of the whole suite; helpers that tests import are modules beside this one."""

from __future__ import annotations

import os

from hypothesis import settings

# Before anything imports TensorFlow, in tests marked `oracle`: no GPU, no chatter.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# No test is a matter of time. A gate gives the same answer to the same commit: what examples of
# another day find is looked for by `nox -s properties`.
settings.register_profile("suite", deadline=None, derandomize=False)
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("suite")
