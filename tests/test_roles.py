"""Roles from structure: one test per row of the tables, and the traps between them."""

import re

import pytest

from ckptdoctor.roles import CONVENTIONS, KERAS_CONVENTIONS, keras_role_of, role_of


@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: row.role)
def test_every_row_matches_its_example(row):
    assert role_of(tuple(row.example.split(".", 1))) == row.role
    assert row.seen_in


@pytest.mark.parametrize("row", KERAS_CONVENTIONS, ids=lambda row: row.role)
def test_every_keras_row_matches_its_example(row):
    assert keras_role_of(tuple(row.example.split("/"))) == row.role


PATHS = {
    "flat state dict": (("conv1.weight",), "model"),
    "state dict in a checkpoint": (("state_dict", "conv1.weight"), "model"),
    "Lightning optimizer": (("optimizer_states", "0", "state", "3", "exp_avg"), "optimizer"),
    "second optimizer": (("optimizer_d", "state", "0", "exp_avg"), "optimizer"),
    "GAN optimizer": (("optim_g", "state", "0", "exp_avg"), "optimizer"),
    "optimizer inside an agent": (("agent", "optimizer", "state", "0", "v"), "optimizer"),
    "timm ema": (("state_dict_ema", "conv.weight"), "ema"),
    "ema inside one state dict": (("state_dict", "model_ema.conv.weight"), "ema"),
    "ema of diffusers": (("shadow_params", "0"), "ema"),
    "GradScaler": (("scaler", "_scale"), "scaler"),
    "Lightning callback": (("callbacks", "EarlyStopping", "best_score"), "training"),
    "Lightning loops": (("loops", "fit_loop", "x"), "training"),
    "learning-rate scheduler": (("lr_schedulers", "0", "base_lrs"), "training"),
    "best accuracy at the top": (("best_acc",), "training"),
    "random state": (("rng_state",), "training"),
    "a layer called scaler": (("model", "scaler.weight"), "model"),
    "a layer called loss in a flat state dict": (("loss.weight",), "model"),
    "a layer called optimizer_head": (("optimizer_head.weight",), "model"),
    "flattened optimizer": (("optimizer.state.0.exp_avg",), "optimizer"),
    "generator of a GAN": (("generator", "main.0.weight"), "model"),
    "unknown container": (("my_net_7", "conv.weight"), "model"),
    "no path": ((), "model"),
}


@pytest.mark.parametrize(("path", "role"), PATHS.values(), ids=PATHS.keys())
def test_paths_of_real_checkpoints(path, role):
    assert role_of(path) == role


KERAS_PATHS = {
    "layer of a whole model": (("model_weights", "bn", "bn", "gamma"), "model"),
    "optimizer of Keras 2": (("optimizer_weights", "Adam", "m:0"), "optimizer"),
    "optimizer of Keras 3": (("optimizer", "vars", "0"), "optimizer"),
    "layer called loss": (("loss", "loss", "kernel:0"), "model"),
    "seed generator of a dropout": (("layers", "dropout", "seed_generator", "vars", "0"), "other"),
}


@pytest.mark.parametrize(("path", "role"), KERAS_PATHS.values(), ids=KERAS_PATHS.keys())
def test_paths_of_real_keras_files(path, role):
    assert keras_role_of(path) == role


def test_conventions_are_lower_case_patterns():
    for row in CONVENTIONS:
        assert re.compile(row.keys)
        assert row.keys == row.keys.lower()
