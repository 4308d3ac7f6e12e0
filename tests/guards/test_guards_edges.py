"""Guards where things come in another order: Ctrl-C, kills, links, other folders, odd scores.

The callbacks stand here on the smallest stand-ins for the classes of their frameworks, so that
what is theirs alone is tested without those; the real ones are in the files of their names.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import patients
import pytest

from ckptdoctor.errors import UsageError, WriteError
from ckptdoctor.guards import guarded_save, last_good, lightning_guard, transformers
from ckptdoctor.guards.keras import KerasGuard
from ckptdoctor.guards.lightning_guard import LightningGuard
from ckptdoctor.guards.pointer import Good, write_pointer
from ckptdoctor.guards.transformers import TransformersGuard

GOOD = patients.state()
POISONED = {**GOOD, "bn3.running_var": np.full_like(GOOD["bn3.running_var"], np.nan)}


def saver(tree=GOOD):
    return lambda path: patients.save_torch(Path(path), tree)


def folder_saver(number, tree=GOOD):
    def save(path):
        Path(path).mkdir()
        patients.save_torch(Path(path, "pytorch_model.bin"), tree)
        Path(path, f"{number}.json").write_text("{}")

    return save


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


class TestLastGood:
    """After a plain ``guarded_save``: the path that was last saved well."""

    def test_newest_of_several_names_is_known_and_no_unfit_one(self, tmp_path):
        for step, tree in ((100, GOOD), (200, GOOD), (300, POISONED)):
            guarded_save(saver(tree), tmp_path / f"step-{step}.pt", step=step)
        assert last_good(tmp_path) == str(tmp_path / "step-200.pt")
        assert json.loads((tmp_path / "last_good.json").read_text()) == {
            "schema": 1,
            "file": "step-200.pt",
            "step": 200,
            "first_bad": None,
        }

    def test_without_steps_there_is_a_name(self, tmp_path):
        guarded_save(saver(), tmp_path / "m.pt")
        assert last_good(tmp_path) == str(tmp_path / "m.pt")
        assert json.loads((tmp_path / "last_good.json").read_text())["step"] is None

    def test_relative_path_is_told_as_it_was_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        guarded_save(saver(), "runs/m.pt")
        assert last_good("runs") == "runs/m.pt"
        guarded_save(saver(), "m.pt")
        assert last_good(".") == "m.pt"

    def test_folder_that_is_left_while_saving_is_the_one(self, tmp_path, monkeypatch):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)

        def save(path):
            saver()(path)
            os.chdir("elsewhere")

        assert guarded_save(save, "runs/m.pt").kept
        assert last_good(tmp_path / "runs") == str(tmp_path / "runs" / "m.pt")
        assert names(tmp_path / "elsewhere") == []

    @pytest.mark.parametrize("what", ["name", "folder"])
    def test_links_are_known_by_the_name_that_was_given(self, tmp_path, what):
        (tmp_path / "disk").mkdir()
        if what == "name":
            (tmp_path / "runs").mkdir()
            (tmp_path / "runs" / "m.pt").symlink_to("../disk/real.pt")
        else:
            (tmp_path / "runs").symlink_to("disk")
        assert guarded_save(saver(), tmp_path / "runs" / "m.pt").kept
        assert last_good(tmp_path / "runs") == str(tmp_path / "runs" / "m.pt")

    def test_saved_folder_is_known(self, tmp_path):
        guarded_save(folder_saver(1), tmp_path / "run")
        assert last_good(tmp_path) == str(tmp_path / "run")


@pytest.mark.parametrize("step", ["1200", 12.5, [1]], ids=["text", "fraction", "list"])
def test_step_that_is_no_number_is_told_before_anything_is_saved(tmp_path, step):
    with pytest.raises(UsageError, match="expected step to be a whole number, 0 or more, found "):
        guarded_save(lambda _: pytest.fail("saved"), tmp_path / "m.pt", step=step)


def test_step_of_numpy_is_a_number(tmp_path, caplog):
    guarded_save(saver(POISONED), tmp_path / "m.pt", step=np.int64(1200))
    assert caplog.messages[0].startswith("step 1,200: ")
    guarded_save(saver(), tmp_path / "m.pt", step=np.int64(1300))
    assert json.loads((tmp_path / "last_good.json").read_text())["step"] == 1300


@pytest.mark.parametrize("path", [None, 5, b"m.pt", "a\0.pt"], ids=["none", "number", "bytes", "nul"])  # fmt: skip
def test_what_is_no_path_is_told_in_one_line(path):
    with pytest.raises(UsageError, match=r"expected the path of a checkpoint to write, found"):
        guarded_save(lambda _: pytest.fail("saved"), path)


def test_names_leave_room_for_those_made_of_them(tmp_path):
    longest = "n" * 232 + ".pt"
    for tree in (GOOD, POISONED, POISONED):
        guarded_save(saver(tree), tmp_path / longest)
    assert len(names(tmp_path)) == 4
    with pytest.raises(UsageError, match="expected a name of at most 235 bytes, found 'nnn"):
        guarded_save(lambda _: pytest.fail("saved"), tmp_path / f"n{longest}")
    with pytest.raises(UsageError, match="at most 235 bytes"):
        guarded_save(lambda _: pytest.fail("saved"), tmp_path / ("é" * 118))


def test_other_names_that_were_written_are_three_at_most_and_short(tmp_path):
    def save(path):
        for letter in "abcd":
            Path(path).with_name(letter * 61).write_bytes(b"")

    expected = ", ".join(repr(letter * 60) for letter in "abc")
    with pytest.raises(WriteError, match=f"expected one file of this name, found {expected}; name"):
        guarded_save(save, tmp_path / "m.pt")


@pytest.mark.parametrize("what", ["unfit", "unchecked"])
def test_refused_checkpoint_that_cannot_be_kept_ends_no_training(
    tmp_path, monkeypatch, caplog, what
):
    guarded_save(saver(), tmp_path / "m.pt")
    real = Path.replace

    def replace(source, target):
        if target.name.startswith("un"):
            raise OSError(39, "Directory not empty")
        return real(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    save = saver(POISONED)
    if what == "unchecked":
        save = lambda path: Path(path).write_bytes(b"GGUF" + bytes(400))
    saved = guarded_save(save, tmp_path / "m.pt")
    assert (saved.answer, saved.aside) == (what, "")
    why, refused = caplog.messages
    assert why == f"{tmp_path}/{what}-m.pt: could not be kept: Directory not empty"
    assert "was not kept: " in refused
    assert names(tmp_path) == ["last_good.json", "m.pt"]


class TestInterrupted:
    @pytest.mark.parametrize("rename", [1, 2])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_folder_is_the_old_or_the_new_one_whenever_ctrl_c_comes(
        self, tmp_path, monkeypatch, rename, when
    ):
        guarded_save(folder_saver(1), tmp_path / "run")
        real, calls = Path.rename, []

        def interrupted(source, target):
            calls.append(source)
            if len(calls) == rename and when == "before":
                raise KeyboardInterrupt
            result = real(source, target)
            if len(calls) == rename:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            guarded_save(folder_saver(2), tmp_path / "run")
        monkeypatch.undo()
        new = (rename, when) == (2, "after")
        assert names(tmp_path / "run") == [f"{1 + new}.json", "pytorch_model.bin"]
        assert guarded_save(folder_saver(3), tmp_path / "run").kept
        assert names(tmp_path) == ["last_good.json", "run"]

    @pytest.mark.skipif(os.name == "nt", reason="no SIGTERM there")
    def test_killed_save_leaves_the_good_one_and_the_next_save_no_trace(self, tmp_path):
        path = tmp_path / "m.pt"
        guarded_save(saver(), path)
        before = path.read_bytes()
        code = (
            "import os, signal, sys, ckptdoctor\n"
            "def save(path):\n"
            "    open(path, 'wb').write(b'half')\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "ckptdoctor.guarded_save(save, sys.argv[1])\n"
        )
        done = subprocess.run([sys.executable, "-c", code, path], check=False)
        assert done.returncode == -signal.SIGTERM
        assert path.read_bytes() == before
        assert last_good(tmp_path) == str(path)
        assert len(names(tmp_path)) == 3
        guarded_save(saver(), path)
        assert names(tmp_path) == ["last_good.json", "m.pt"]

    def test_left_over_folder_does_not_replace_the_one_that_is_there(self, tmp_path):
        guarded_save(folder_saver(2), tmp_path / "run")
        folder_saver(1)(tmp_path / "run.previous-ckptdoctor")
        assert not guarded_save(folder_saver(3, POISONED), tmp_path / "run").kept
        assert names(tmp_path / "run") == ["2.json", "pytorch_model.bin"]

    def test_file_of_that_name_is_somebody_elses(self, tmp_path):
        (tmp_path / "m.pt.previous-ckptdoctor").write_bytes(b"mine")
        guarded_save(saver(POISONED), tmp_path / "m.pt")
        assert names(tmp_path) == ["m.pt.previous-ckptdoctor", "unfit-m.pt"]


class KerasBase:
    """What ``ModelCheckpoint`` of Keras does, for one save at the end of each epoch."""

    def __init__(self, filepath, save_best_only=False):
        self.filepath, self.save_best_only = os.fspath(filepath), save_best_only
        self.best = None

    @property
    def model(self):
        return self.network

    def on_train_begin(self, logs=None): ...
    def on_train_end(self, logs=None): ...
    def on_epoch_begin(self, epoch, logs=None): ...
    def on_train_batch_end(self, batch, logs=None): ...

    def on_epoch_end(self, epoch, logs=None):
        score = logs["loss"]
        if self.save_best_only and self.best is not None and not score < self.best:
            return
        self.best = score
        self.model.save(self.filepath.format(epoch=epoch))


class KerasRun(KerasGuard, KerasBase):
    def __init__(self, *args, iterations=None, **kwargs):
        super().__init__(*args, watch_every=0, **kwargs)
        optimizer = None if iterations is None else SimpleNamespace(iterations=iterations)
        self.tree = GOOD
        self.network = SimpleNamespace(built=True, optimizer=optimizer, stop_training=False)
        self.network.save = self.write

    def write(self, path):
        saver(self.tree)(path)

    def epoch(self, number, loss=1.0, tree=GOOD, batches=2):
        self.tree = tree
        self.on_epoch_begin(number)
        for batch in range(batches):
            self.on_train_batch_end(batch)
        self.on_epoch_end(number, {"loss": loss})


class TestKeras:
    def step(self, folder):
        return json.loads((folder / "last_good.json").read_text())["step"]

    def test_score_that_is_no_number_is_not_the_best_for_ever(self, tmp_path):
        run = KerasRun(tmp_path / "m.pt", save_best_only=True)
        run.on_train_begin()
        for number, (loss, step) in enumerate([(np.nan, 2), (3.0, 4), (np.nan, 4), (2.0, 8)]):
            run.epoch(number, loss)
            assert self.step(tmp_path) == step
        assert run.best == 2.0

    def test_score_whose_save_failed_is_not_the_best(self, tmp_path):
        run = KerasRun(tmp_path / "m.pt", save_best_only=True)
        run.on_train_begin()
        run.epoch(0, 3.0)

        def full(_path):
            raise OSError(28, "No space left on device")

        run.network.save, write = full, run.network.save
        with pytest.raises(OSError, match="No space left"):
            run.epoch(1, 1.0)
        assert run.best == 3.0
        run.network.save = write
        run.epoch(2, 2.0)
        assert (run.best, self.step(tmp_path)) == (2.0, 6)

    def test_model_that_its_first_batch_builds_is_begun_then_and_once(self, tmp_path):
        run = KerasRun(tmp_path / "m.pt", iterations=0)
        run.network.built, begin, steps = False, run.guard.begin, []
        run.guard.begin = lambda folder, step, make: (steps.append(step), begin(folder, step, make))
        run.on_train_begin()
        run.epoch(0)
        assert steps == [1]

    def test_refused_score_is_not_the_best(self, tmp_path):
        run = KerasRun(tmp_path / "m.pt", save_best_only=True)
        run.on_train_begin()
        run.epoch(0, 3.0)
        run.epoch(1, 1.0, POISONED)
        assert run.best == 3.0
        run.epoch(2, 2.0)
        assert self.step(tmp_path) == 6

    @pytest.mark.parametrize(("iterations", "step"), [(None, 2), (0, 2), (7, 9)])
    def test_steps_are_those_of_the_optimizer_and_of_no_model_without_one(
        self, tmp_path, iterations, step
    ):
        run = KerasRun(tmp_path / "m.pt", iterations=iterations)
        run.on_train_begin()
        run.epoch(0)
        assert self.step(tmp_path) == step
        run.epoch(1)
        assert self.step(tmp_path) == step + 2

    def test_steps_that_another_callback_restores_count(self, tmp_path):
        """``BackupAndRestore`` further down the list restores after this guard was told to begin."""
        run = KerasRun(tmp_path / "m.pt", iterations=0)
        guarded_save(saver(), tmp_path / "m.pt", step=16)
        run.on_train_begin()
        run.network.optimizer.iterations = 16
        run.epoch(2, tree=POISONED)
        assert run.guard.last_good == Good("m.pt", 16)
        run.epoch(3)
        assert self.step(tmp_path) == 20

    def test_second_run_of_one_guard_counts_anew(self, tmp_path):
        run = KerasRun(tmp_path / "m.pt", iterations=0)
        for iterations in (0, 100):
            run.network.optimizer.iterations = iterations
            run.on_train_begin()
            run.epoch(0)
            assert self.step(tmp_path) == iterations + 2

    def test_pointer_is_beside_the_checkpoint_whatever_the_working_folder(
        self, tmp_path, monkeypatch
    ):
        for name in ("made", "begun", "saved"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / "made")
        run = KerasRun("runs/m.pt")
        monkeypatch.chdir(tmp_path / "begun")
        run.on_train_begin()
        run.epoch(0)
        assert last_good("runs") == "runs/m.pt"
        monkeypatch.chdir(tmp_path / "saved")
        run.epoch(1)
        assert last_good("runs") == "runs/m.pt"
        assert names(tmp_path / "made") == []

    def test_link_is_known_by_its_name(self, tmp_path):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "m.pt").symlink_to("../disk/real.pt")
        run = KerasRun(tmp_path / "runs" / "m.pt")
        run.on_train_begin()
        run.epoch(0)
        assert last_good(tmp_path / "runs") == str(tmp_path / "runs" / "m.pt")

    def test_stopping_is_asked_for_by_the_first_refused_save(self, tmp_path):
        run = KerasRun(tmp_path / "m.pt", on_unfit="stop")
        run.on_train_begin()
        run.epoch(0)
        assert not run.network.stop_training
        run.epoch(1, tree=POISONED)
        assert run.network.stop_training


class LightningBase:
    """What ``ModelCheckpoint`` of Lightning does, for one save that replaces nothing."""

    def __init__(self, dirpath):
        self.dirpath, self.best_k_models, self.best_model_path = str(dirpath), {}, ""

    def on_train_start(self, trainer, module): ...

    def _save_topk_checkpoint(self, trainer, candidates):
        self._save_checkpoint(trainer, f"{self.dirpath}/{candidates}")
        self.best_model_path = candidates

    def _save_checkpoint(self, trainer, filepath):
        trainer.save_checkpoint(filepath)


class LightningRun(LightningGuard, LightningBase):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, watch_every=0, **kwargs)
        strategy = SimpleNamespace(broadcast=lambda value: value)
        self.trainer = SimpleNamespace(strategy=strategy, is_global_zero=True, global_step=0)
        self.on_train_start(self.trainer, None)

    def save(self, name, step, tree=GOOD):
        self.trainer.global_step = step
        self.trainer.save_checkpoint = saver(tree)
        self._save_topk_checkpoint(self.trainer, name)


class TestLightning:
    def test_what_is_refused_has_one_place_for_all_folders(self, tmp_path):
        run = LightningRun(tmp_path)
        for step in range(1, 5):
            run.save(f"epoch={step}/m.ckpt", step, GOOD if step == 1 else POISONED)
        assert names(tmp_path)[-2:] == ["unfit-checkpoint.ckpt", "unfit-latest-checkpoint.ckpt"]
        assert names(tmp_path / "epoch=2") == []
        assert last_good(tmp_path) == str(tmp_path / "epoch=1" / "m.ckpt")
        assert run.best_model_path == "epoch=1/m.ckpt"

    def test_first_step_can_be_refused_and_the_next_one_kept(self, tmp_path):
        run = LightningRun(tmp_path)
        run.save("a.ckpt", 0, POISONED)
        run.save("a.ckpt", 0, GOOD)  # nothing has changed since, says the step
        assert last_good(tmp_path) is None
        run.save("a.ckpt", 1)
        assert last_good(tmp_path) == str(tmp_path / "a.ckpt")

    @pytest.mark.parametrize("first", [True, False], ids=["the first", "the others"])
    def test_all_processes_hear_that_one_could_not_keep_it(self, tmp_path, monkeypatch, first):
        """Or they wait for its answer for ever."""
        told = []
        run = LightningRun(tmp_path)
        run.trainer.is_global_zero = first
        run.trainer.strategy.broadcast = lambda value: told.append(value) or value

        def full(*_, **__):
            raise WriteError("no space left on device", where="a.ckpt")

        monkeypatch.setattr(lightning_guard, "settle", full)
        if not first:
            run.trainer.save_checkpoint = lambda _: None
        with pytest.raises(WriteError, match="no space" if first else "first process could not"):
            run.save("a.ckpt", 1) if first else run._save_checkpoint(run.trainer, "a.ckpt")
        assert told[1:] == ["failed"]

    @pytest.mark.parametrize("first", [True, False], ids=["the first", "the others"])
    @pytest.mark.parametrize("error", [WriteError, OSError])
    def test_all_processes_hear_that_nothing_can_be_written(
        self, tmp_path, monkeypatch, first, error
    ):
        told = []
        run = LightningRun(tmp_path)
        run.trainer.is_global_zero = first
        run.trainer.strategy.broadcast = lambda value: told.append(value) or "failed"
        run.trainer.save_checkpoint = lambda _: pytest.fail("saved")

        def full(_target):
            raise error("no space left on device")

        monkeypatch.setattr(lightning_guard, "drafted", full)
        expected = (error, "no space") if first else (WriteError, "first process could not keep it")
        with pytest.raises(expected[0], match=expected[1]):
            run._save_checkpoint(run.trainer, str(tmp_path / "a.ckpt"))
        assert len(told) == 1
        assert told == ["failed"] or not first


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers, "_agreed", lambda mine: mine)
    return TrainerRun(tmp_path)


class TrainerRun:
    """What the Trainer of Hugging Face does: it writes ``checkpoint-N``, then calls the guard."""

    def __init__(self, folder):
        self.folder = folder

    def begin(self, step=0, **terms):
        self.guard = TransformersGuard(watch_every=0, **terms)
        self.args = SimpleNamespace(output_dir=str(self.folder))
        self.state = SimpleNamespace(
            is_world_process_zero=True, global_step=step, best_model_checkpoint=None
        )
        self.control = SimpleNamespace(should_training_stop=False)
        self.guard.on_train_begin(self.args, self.state, self.control)

    def save(self, step, tree=GOOD):
        folder = self.folder / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        patients.save_torch(folder / "pytorch_model.bin", tree)
        self.state.global_step = step
        self.guard.on_save(self.args, self.state, self.control)


def weights(folder):
    return (folder / "pytorch_model.bin").read_bytes()


class TestTrainer:
    def test_last_good_one_is_linked_and_put_back_when_it_was_rotated_away(self, tmp_path, trainer):
        trainer.begin()
        trainer.save(2)
        (tmp_path / "checkpoint-2" / "pytorch_model.bin").unlink()
        (tmp_path / "checkpoint-2").rmdir()
        trainer.save(4, POISONED)
        assert names(tmp_path) == [
            "checkpoint-2", "last_good", "last_good.json", "unfit-checkpoint-4"
        ]  # fmt: skip
        assert weights(tmp_path / "checkpoint-2") == weights(tmp_path / "last_good")

    @pytest.mark.parametrize("error", [OSError, shutil.Error, WriteError])
    def test_good_one_that_cannot_be_kept_twice_ends_no_training(
        self, tmp_path, trainer, monkeypatch, caplog, error
    ):
        def full(*_):
            raise error("no space left on device")

        trainer.begin()
        monkeypatch.setattr(transformers, "_linked", full)
        trainer.save(2)
        assert last_good(tmp_path) == str(tmp_path / "checkpoint-2")
        (message,) = caplog.messages
        assert "checkpoint-2 is good, but not kept from rotation: " in message
        assert "no space left on device" in message

    @pytest.mark.parametrize("pointer", ["newer", "gone", "broken", "of another"])
    def test_good_one_keeps_its_bytes_where_a_run_goes_back(self, tmp_path, trainer, pointer):
        """Whatever ``last_good.json`` says: its files are also those of ``checkpoint-4``."""
        trainer.begin()
        trainer.save(4)
        before = weights(tmp_path / "last_good")
        if pointer == "gone":
            (tmp_path / "last_good.json").unlink()
        elif pointer == "broken":
            (tmp_path / "last_good.json").write_text("{")
        elif pointer == "of another":
            guarded_save(folder_saver(1), tmp_path / "final", step=1)
        trainer.begin(2)
        (tmp_path / "checkpoint-4" / "pytorch_model.bin").write_bytes(b"half")
        assert weights(tmp_path / "last_good") == before

    def test_files_in_folders_of_the_good_one_are_its_own_as_well(self, tmp_path, trainer, caplog):
        trainer.begin()
        ranks = tmp_path / "checkpoint-4" / "ranks"
        ranks.mkdir(parents=True)
        (ranks / "0.txt").write_bytes(b"good")
        trainer.save(4)
        trainer.begin(2)
        (ranks / "0.txt").write_bytes(b"half")
        assert (tmp_path / "last_good" / "ranks" / "0.txt").read_bytes() == b"good"
        assert names(tmp_path / "last_good") == ["pytorch_model.bin", "ranks"]
        assert caplog.messages == []

    def test_run_that_goes_on_shares_the_files(self, tmp_path, trainer):
        trainer.begin()
        trainer.save(4)
        trainer.begin(4)
        assert (tmp_path / "last_good" / "pytorch_model.bin").stat().st_nlink == 2

    def test_what_somebody_else_saved_is_not_put_back_as_a_checkpoint(self, tmp_path, trainer):
        guarded_save(folder_saver(1), tmp_path / "final", step=2)
        trainer.begin(2)
        assert trainer.guard.guard.last_good == Good("final", 2)
        trainer.save(4, POISONED)
        assert names(tmp_path) == ["final", "last_good.json", "unfit-checkpoint-4"]

    @pytest.mark.parametrize(
        ("keep", "left"), [("both", [2, 10]), ("first", [2]), ("latest", [10]), ("none", [])]
    )
    def test_first_and_latest_of_the_unfit_by_number(self, tmp_path, trainer, caplog, keep, left):
        (tmp_path / "unfit-checkpoint-mine").mkdir()
        trainer.begin(keep_unfit=keep)
        for step in (2, 9, 10):
            trainer.save(step, POISONED)
        assert names(tmp_path) == sorted(f"unfit-checkpoint-{end}" for end in ["mine", *left])
        assert ("it lies in unfit-checkpoint-10" in caplog.messages[-1]) == (10 in left)

    def test_stopping_is_asked_for_by_the_first_refused_save(self, trainer):
        trainer.begin(on_unfit="stop")
        trainer.save(2)
        assert not trainer.control.should_training_stop
        trainer.save(4, POISONED)
        assert trainer.control.should_training_stop

    def test_best_one_of_before_is_known_again(self, tmp_path, trainer):
        trainer.begin()
        trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-2")
        trainer.save(2)
        trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-4")
        trainer.save(4, POISONED)
        assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


@pytest.mark.parametrize(("backend", "device"), [("nccl", "cuda"), ("gloo", "cpu")])
def test_processes_are_asked_on_the_device_of_their_backend(monkeypatch, backend, device):
    from ckptdoctor.guards.transformers import _agreed

    asked = []
    torch, distributed = ModuleType("torch"), ModuleType("torch.distributed")
    torch.tensor = lambda value, device: asked.append((value, device)) or np.array(value)
    torch.distributed = distributed
    distributed.is_available = distributed.is_initialized = lambda: True
    distributed.get_backend = lambda: backend
    distributed.ReduceOp = SimpleNamespace(MAX="max")
    distributed.all_reduce = lambda answer, op: answer.fill(op == "max")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    assert _agreed(False) is True
    assert asked == [(0, device)]


def test_pointer_of_a_step_that_is_not_known_is_read(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"x")
    write_pointer(tmp_path, Good("m.pt", None))
    assert last_good(tmp_path) == str(tmp_path / "m.pt")
