"""The guard for Keras, in the real ``fit``."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


class Run:
    """A small network with BatchNorm, trained on batches of which one may be bad."""

    def __init__(self, bad_batch=None, bad_value=np.inf, *, skip=True, batches=8):
        pytest.importorskip("tensorflow")
        self.keras = keras = pytest.importorskip("keras")
        keras.utils.set_random_seed(0)
        self.x = np.random.default_rng(0).normal(size=(8 * batches, 4)).astype(np.float32)
        if bad_batch is not None:
            self.x[8 * bad_batch : 8 * bad_batch + 8] = bad_value
        self.y = np.zeros((8 * batches, 2), np.float32)
        self.model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(8, name="first"),
                keras.layers.BatchNormalization(name="post_bn", momentum=0.5),
                keras.layers.Dense(2, name="last"),
            ]
        )
        optimizer = keras.optimizers.Adam(0.01)
        if skip:  # what mixed precision does: a step whose gradients overflow changes no weight
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
        self.model.compile(optimizer, "mse")

    def fit(self, *callbacks, **settings):
        return self.model.fit(
            self.x,
            self.y,
            **{"batch_size": 8, "shuffle": False, "verbose": 0, **settings},
            callbacks=list(callbacks),
        )


def guard(*args, **settings):
    pytest.importorskip("keras")
    from ckptdoctor.guards.keras import CheckpointGuard

    return CheckpointGuard(*args, **settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_poisoned_statistics_do_not_cost_the_good_checkpoint(tmp_path, caplog):
    """The founding case: the step was skipped, so the weights are finite and training looks fine."""
    from ckptdoctor.guards import last_good

    path = tmp_path / "model.keras"
    run = Run(bad_batch=4)
    history = run.fit(guard(path, save_freq=2, watch_every=1))
    assert np.isfinite(run.model.layers[0].kernel.numpy()).all()
    assert len(history.epoch) == 1  # it went on
    assert names(tmp_path) == [
        "last_good.json",
        "model.keras",
        "unfit-latest-model.keras",
        "unfit-model.keras",
    ]
    assert last_good(tmp_path) == str(path)
    first, second, third = caplog.messages
    assert first == (
        "step 5: BatchNorm 'post_bn' moving_mean became NaN (and 1 more tensor); weights are "
        f"finite; last good: {path} (step 4)"
    )
    assert second == (
        f"step 6: {path} is unfit and was not kept: BatchNorm statistics are NaN in 1 layer; every "
        f"weight is sound; it lies in unfit-model.keras; last good: {path} (step 4)"
    )
    assert "unfit-latest-model.keras" in third
    told = json.loads((tmp_path / "last_good.json").read_text())
    assert (told["step"], told["first_bad"]["step"]) == (4, 5)
    again = run.keras.models.load_model(path)
    assert np.isfinite(again.predict(np.ones((1, 4), np.float32), verbose=0)).all()


def test_paths_are_told_as_they_were_given(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Run(bad_batch=4).fit(guard("runs/m.weights.h5", save_weights_only=True, save_freq=2))
    refused = [line for line in caplog.messages if " runs/m.weights.h5 is unfit" in line]
    assert refused
    assert all("; last good: runs/m.weights.h5 (step " in line for line in refused)


def test_file_keeps_its_bytes_until_a_fit_one_comes(tmp_path):
    path = tmp_path / "model.weights.h5"
    run = Run()
    one = guard(path, save_weights_only=True)
    run.fit(one)
    before = path.read_bytes()
    run.x[:8] = np.nan
    run.fit(one)
    assert path.read_bytes() == before
    run.x[:8] = 0
    run.model.load_weights(path)
    run.fit(one)
    assert path.read_bytes() != before
    assert one.guard.first_bad is None


@pytest.mark.parametrize("name", ["m-{epoch:02d}.keras", "{epoch}/m.keras"])
def test_epochs_in_the_name_leave_one_pointer_and_two_unfit_files(tmp_path, name):
    from ckptdoctor.guards import last_good

    run = Run()
    one = guard(tmp_path / name)
    run.fit(one, epochs=2)
    assert last_good(tmp_path) == str(tmp_path / name.format(epoch=2))
    run.x[:8] = np.nan
    run.fit(one, initial_epoch=2, epochs=5)
    assert last_good(tmp_path) == str(tmp_path / name.format(epoch=2))
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.keras")}
    refused = {"unfit-checkpoint.keras", "unfit-latest-checkpoint.keras"}
    assert kept == {name.format(epoch=1), name.format(epoch=2), *refused}


def test_names_with_epochs_share_the_names_of_what_is_refused(tmp_path):
    run = Run(bad_batch=0)
    run.fit(guard(tmp_path / "m-{epoch}.weights.h5", save_weights_only=True), epochs=4)
    assert names(tmp_path) == [
        "unfit-checkpoint.weights.h5",
        "unfit-latest-checkpoint.weights.h5",
    ]


def test_best_score_is_that_of_a_file_that_is_there(tmp_path):
    path = tmp_path / "best.keras"
    run = Run()
    one = guard(path, monitor="loss", mode="min", save_best_only=True)
    run.fit(one)
    best, before = one.best, path.read_bytes()
    run.model.get_layer("post_bn").moving_mean.assign(np.full(8, np.nan))
    run.fit(one, epochs=2)  # the loss of training falls on
    assert run.model.history.history["loss"][-1] < best
    assert (one.best, path.read_bytes()) == (best, before)


def test_training_stops_where_asked(tmp_path):
    run = Run(bad_batch=4)
    one = guard(tmp_path / "m.keras", save_freq=2, watch_every=1, on_unfit="stop")
    run.fit(one, epochs=5)
    assert one.guard.first_bad.step == 5
    assert int(run.model.optimizer.iterations) <= 5
    late = Run(bad_batch=4)
    late.fit(guard(tmp_path / "m.keras", watch_every=0, on_unfit="stop"), epochs=5)
    assert late.model.history.epoch == [0]


def test_training_ends_with_the_report_where_asked(tmp_path):
    from ckptdoctor.errors import UnfitCheckpointError

    run = Run(bad_batch=4)
    with pytest.raises(UnfitCheckpointError) as e:
        run.fit(guard(tmp_path / "m.keras", watch_every=0, on_unfit="raise"))
    assert e.value.report.verdict.serve == "unfit"


def test_lost_weights_are_told_from_lost_statistics_and_the_step_is_exact(tmp_path, caplog):
    run = Run(bad_batch=2, bad_value=np.nan, skip=False)
    run.fit(guard(tmp_path / "m.keras"))
    assert caplog.messages[0].startswith(
        "step 3: layer 'first' kernel became NaN (and 7 more tensors); no good checkpoint yet"
    )


def test_steps_are_counted_over_epochs_and_over_runs(tmp_path):
    run = Run(skip=False)
    one = guard(tmp_path / "m.keras", watch_every=1)
    run.fit(one, epochs=2)
    assert one.guard.last_good.step == 16
    two = guard(tmp_path / "m.keras", watch_every=1)
    run.x[8 * 3 : 8 * 4] = np.nan
    run.fit(two, epochs=1)
    assert two.guard.first_bad.step == 20


def test_several_steps_in_one_call_are_counted(tmp_path):
    run = Run(skip=False)
    run.model.compile("sgd", "mse", steps_per_execution=4)
    one = guard(tmp_path / "m.keras", watch_every=1)
    run.fit(one)
    assert one.guard.last_good.step == 8


def test_model_that_its_first_batch_builds_is_watched(tmp_path):
    run = Run()
    keras = run.keras
    run.model = keras.Sequential([keras.layers.Dense(2)])
    run.model.compile("sgd", "mse")
    run.x[8 * 5 : 8 * 6] = np.nan
    one = guard(tmp_path / "m.keras", watch_every=1)
    run.fit(one)
    assert one.guard.first_bad.step == 6


def test_model_nobody_trained_is_kept(tmp_path):
    from ckptdoctor.guards import guarded_save

    run = Run()
    for name in ("fresh.keras", "fresh.h5"):
        assert guarded_save(run.model.save, tmp_path / name).kept
    assert guarded_save(run.model.save_weights, tmp_path / "fresh.weights.h5").kept


def test_loss_of_ones_own_in_the_file_is_no_loss(tmp_path):
    from ckptdoctor.guards import guarded_save

    run = Run()

    def my_loss(y_true, y_pred):
        return run.keras.ops.mean(run.keras.ops.square(y_true - y_pred))

    run.model.compile("adam", my_loss)
    run.fit()
    assert guarded_save(run.model.save, tmp_path / "m.keras").kept


def test_other_places_are_told_of_before_training():
    from ckptdoctor.errors import UsageError

    with pytest.raises(UsageError, match="is no path of this machine"):
        guard("gs://bucket/m.keras")


def test_frozen_weights_and_sums_that_overflow_are_no_false_alarm():
    from ckptdoctor.guards.keras_gauge import KerasGauge
    from ckptdoctor.guards.watching import Watch

    run = Run()
    run.model.layers[0].trainable = False
    run.model.layers[0].kernel.assign(np.full((4, 8), np.nan))
    gauge = KerasGauge(run.model)
    assert [slot.shown for slot in gauge.slots] == [
        "layer 'post_bn' gamma",
        "layer 'post_bn' beta",
        "BatchNorm 'post_bn' moving_mean",
        "BatchNorm 'post_bn' moving_variance",
        "layer 'last' kernel",
        "layer 'last' bias",
    ]
    watch = Watch(gauge)
    run.model.layers[2].kernel.assign(np.full((8, 2), 3e38))  # the sum overflows, no value does
    watch.measure(1)
    assert gauge.suspects([gauge.read()]).any()
    assert watch.look() is None
    run.model.layers[2].kernel.assign(np.full((8, 2), -np.inf))
    watch.measure(2)
    assert watch.look().value == "Inf"


OTHER_BACKEND = """
import sys, numpy as np, keras
from ckptdoctor.guards.keras import CheckpointGuard
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8),
                          keras.layers.BatchNormalization(name="post_bn"), keras.layers.Dense(2)])
model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(),
                                                    initial_scale=2.0), "mse")
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
x[32:40] = np.inf
guard = CheckpointGuard(sys.argv[1], save_freq=4, watch_every=3)
model.fit(x, np.zeros((64, 2)), batch_size=8, shuffle=False, verbose=0, callbacks=[guard])
print(guard.guard.last_good.step, guard.guard.first_bad.told())
"""


@pytest.mark.parametrize(("backend", "step"), [("torch", 5), ("jax", 7)])
def test_other_backends_are_watched_as_well(tmp_path, backend, step):
    pytest.importorskip("keras")
    pytest.importorskip(backend)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND, str(tmp_path / "m.keras")],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == (
        f"4 step {step}: BatchNorm 'post_bn' moving_mean became NaN (and 1 more tensor); "
        "weights are finite\n"
    ), done.stderr
    assert names(tmp_path) == ["last_good.json", "m.keras", "unfit-m.keras"]


@pytest.mark.parametrize("first", ["guard", "backup"])
def test_run_that_another_callback_restores_knows_its_steps(tmp_path, first):
    def fit(bad_batch, stop):
        def interrupt(epoch, _logs):
            if stop and epoch == 1:
                raise KeyboardInterrupt

        run = Run(bad_batch)
        made = guard(tmp_path / "m.weights.h5", save_weights_only=True, watch_every=1)
        backup = run.keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [made, backup] if first == "guard" else [backup, made]
        ending = run.keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)
        run.fit(*callbacks, ending, epochs=2)
        return made.guard

    with pytest.raises(KeyboardInterrupt):
        fit(bad_batch=None, stop=True)
    resumed = fit(bad_batch=5, stop=False)
    assert (resumed.last_good.step, resumed.first_bad.step) == (8, 14)


def test_validation_that_is_nan_once_does_not_end_the_saving_of_the_best(tmp_path):
    run, path = Run(), tmp_path / "m.keras"
    made = guard(path, save_best_only=True, monitor="val_loss")
    steps = []
    for x in (np.full((8, 4), np.nan, np.float32), run.x[:8]):
        run.fit(made, validation_data=(x, run.y[:8]))
        steps.append(json.loads((tmp_path / "last_good.json").read_text())["step"])
    assert steps == [8, 16]
    assert made.best > 0
