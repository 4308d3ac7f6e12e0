"""The guard for Lightning, in the real Trainer, under both names that Lightning is installed by."""

import importlib
import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),
]
NAMES = ("lightning", "pytorch_lightning")


class Run:
    """A tiny classifier with BatchNorm, and a Trainer on the CPU that saves every second step."""

    def __init__(self, name, folder, bad_batch=None, bad_value=float("inf"), skip=True, **guard):
        torch = pytest.importorskip("torch")
        self.pl = pytest.importorskip("lightning.pytorch" if name == "lightning" else name)
        self.guards = importlib.import_module(f"ckptdoctor.guards.{name}")
        self.torch, self.folder = torch, folder
        torch.manual_seed(0)
        batches = [torch.randn(8, 4) for _ in range(8)]
        if bad_batch is not None:
            batches[bad_batch] = torch.full((8, 4), bad_value)
        self.batches = torch.stack(batches)
        self.model = self._module(skip)
        settings = {"dirpath": folder, "every_n_train_steps": 2, "filename": "{step}"}
        self.guard = self.guards.CheckpointGuard(**{**settings, **guard})

    def _module(self, skip):
        torch = self.torch

        class Module(self.pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Sequential(
                    torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
                )

            def training_step(self, batch, index):
                self.log("score", float(self.trainer.global_step + 1))
                return self.net(batch[0]).square().mean()

            def on_before_optimizer_step(self, optimizer):
                grads = [p.grad for p in self.parameters()]
                if skip and not all(g.isfinite().all() for g in grads):
                    for grad in grads:  # what a loss scaler does: this step changes no weight
                        grad.zero_()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01)

        return Module()

    def data(self):
        utils = self.torch.utils.data
        return utils.DataLoader(utils.TensorDataset(self.batches.flatten(0, 1)), batch_size=8)

    def trainer(self, callbacks=(), **settings):
        return self.pl.Trainer(
            **{
                "max_epochs": 1,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": [self.guard, *callbacks],
                "default_root_dir": self.folder,
                **settings,
            }
        )

    def fit(self, callbacks=(), resume=None, **settings):
        trainer = self.trainer(callbacks, **settings)
        trainer.fit(self.model, self.data(), ckpt_path=resume, weights_only=False)
        return trainer

    @property
    def files(self):
        return sorted(path.name for path in self.folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_poisoned_statistics_do_not_cost_the_good_checkpoint(name, tmp_path, caplog):
    """The founding case: the step was skipped, so the weights are finite and training looks fine."""
    from ckptdoctor.guards import last_good

    run = Run(name, tmp_path, bad_batch=4, watch_every=1)
    trainer = run.fit()
    assert trainer.global_step == 8  # it went on
    good = tmp_path / "step=4.ckpt"
    assert run.files == [
        "last_good.json",
        "step=4.ckpt",
        "unfit-checkpoint.ckpt",
        "unfit-latest-checkpoint.ckpt",
    ]
    assert last_good(tmp_path) == str(good) == run.guard.best_model_path
    first, second, third = (m for m in caplog.messages if m.startswith("step"))
    assert first == (
        "step 5: BatchNorm 'net.1' running_mean became NaN (and 1 more tensor); weights are "
        f"finite; last good: {good} (step 4)"
    )
    assert second == (
        f"step 6: {tmp_path / 'step=6.ckpt'} is unfit and was not kept: BatchNorm statistics are "
        "NaN in 1 layer; every weight is sound; it lies in unfit-checkpoint.ckpt; "
        f"last good: {good} (step 4)"
    )
    assert third.startswith(f"step 8: {tmp_path / 'step=8.ckpt'} is unfit")
    assert "unfit-latest-checkpoint.ckpt" in third
    assert step_in(run, tmp_path / "unfit-checkpoint.ckpt") == 6
    assert step_in(run, tmp_path / "unfit-latest-checkpoint.ckpt") == 8


def step_in(run, path):
    return run.torch.load(path, weights_only=False)["global_step"]


def test_last_good_resumes_and_evidence_knows_the_first_bad_step(tmp_path):
    from ckptdoctor.guards import last_good

    first = Run("lightning", tmp_path, bad_batch=4, watch_every=1)
    first.fit()
    sound = Run("lightning", tmp_path)
    trainer = sound.fit(resume=last_good(tmp_path), max_epochs=2)
    assert trainer.global_step == 16
    assert sound.guard.guard.first_bad is None
    assert last_good(tmp_path) == str(tmp_path / "step=16.ckpt")
    sick = Run("lightning", tmp_path / "b", bad_batch=None)
    sick.fit(resume=tmp_path / "unfit-checkpoint.ckpt", max_epochs=2)
    assert sick.guard.guard.first_bad.step == 5


@pytest.mark.parametrize("save_last", [True, "link"])
def test_last_checkpoint_and_its_link_stay_good(tmp_path, save_last):
    run = Run("lightning", tmp_path, bad_batch=4, save_last=save_last)
    run.fit()
    assert step_in(run, tmp_path / "last.ckpt") == 4
    assert run.guard.last_model_path == str(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").is_symlink() == (save_last == "link")


def test_best_checkpoints_are_those_that_are_there(tmp_path):
    run = Run("lightning", tmp_path, bad_batch=4, monitor="score", save_top_k=2, mode="max")
    run.fit()
    best = {str(tmp_path / name) for name in run.files if name.startswith("step=")}
    assert (
        best == set(run.guard.best_k_models) == {str(tmp_path / f"step={n}.ckpt") for n in (2, 4)}
    )
    assert run.guard.best_model_path == str(tmp_path / "step=4.ckpt")
    assert float(run.guard.best_model_score) == 4
    assert run.guard.kth_best_model_path == str(tmp_path / "step=2.ckpt")


def test_training_stops_where_asked(tmp_path):
    run = Run("lightning", tmp_path, bad_batch=4, on_unfit="stop", watch_every=1)
    assert run.fit().global_step == 5
    late = Run("lightning", tmp_path / "b", bad_batch=4, on_unfit="stop", watch_every=0)
    assert late.fit().global_step == 6


def test_training_ends_with_the_report_where_asked(tmp_path):
    from ckptdoctor.errors import UnfitCheckpointError

    run = Run("lightning", tmp_path, bad_batch=4, on_unfit="raise", watch_every=0)
    with pytest.raises(UnfitCheckpointError) as e:
        run.fit()
    assert e.value.report.verdict.serve == "unfit"
    assert run.guard.best_model_path == str(tmp_path / "step=4.ckpt")


def test_lost_weights_are_told_from_lost_statistics(tmp_path, caplog):
    run = Run("lightning", tmp_path, bad_batch=2, bad_value=float("nan"), skip=False, watch_every=1)
    run.fit()
    (first, *_) = (m for m in caplog.messages if m.startswith("step 3"))
    assert first.startswith("step 3: layer 'net.0' weight became NaN (and 7 more tensors); last")
    assert "step=2.ckpt" in run.files


def test_model_nobody_trained_is_kept(tmp_path):
    run = Run("lightning", tmp_path, every_n_train_steps=1)
    run.fit(max_steps=1)
    assert "step=1.ckpt" in run.files
    trainer = run.pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    from ckptdoctor.guards import guarded_save

    trainer.strategy.connect(run.model)
    assert guarded_save(trainer.save_checkpoint, tmp_path / "fresh.ckpt").kept


def test_one_step_is_refused_once_however_often_it_is_saved(tmp_path, caplog):
    run = Run(
        "lightning", tmp_path, bad_batch=0, every_n_train_steps=8, save_on_exception=True,
        watch_every=0,
    )  # fmt: skip

    class Interrupting(run.pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run.fit([Interrupting()])
    assert sum("is unfit" in m for m in caplog.messages) == 1
    assert run.files == ["unfit-checkpoint.ckpt"]


def test_checkpoint_saved_on_an_exception_is_guarded(tmp_path):
    run = Run("lightning", tmp_path, bad_batch=4, save_on_exception=True, watch_every=0)

    class Interrupting(run.pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if index == 5:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run.fit([Interrupting()])
    assert run.files == ["last_good.json", "step=4.ckpt", "unfit-checkpoint.ckpt"]


def test_validation_and_epochs_save_as_well(tmp_path):
    run = Run("lightning", tmp_path, bad_batch=4, every_n_train_steps=None, filename="{epoch}")
    data = run.data()
    trainer = run.trainer(max_epochs=1)
    run.model.validation_step = lambda batch, batch_idx: None  # noqa: ARG005
    trainer.fit(run.model, data, data)
    assert run.files == ["unfit-checkpoint.ckpt"]


def test_other_places_and_later_savers_are_told_of_before_training(tmp_path):
    from ckptdoctor.errors import UsageError

    run = Run("lightning", "memory://bucket")
    with pytest.raises(UsageError, match="memory://bucket: is no path of this machine"):
        run.fit(default_root_dir=tmp_path)
    run = Run("lightning", tmp_path)
    plugin = run.pl.plugins.AsyncCheckpointIO()
    with pytest.raises(UsageError, match="saved later"):
        run.fit(plugins=[plugin])


def test_first_bad_step_is_in_the_state_and_says_nothing_while_all_is_well(tmp_path):
    run = Run("lightning", tmp_path)
    run.fit()
    assert run.guard.state_dict()["ckptdoctor"] == {"first_bad": None}
    assert json.loads((tmp_path / "last_good.json").read_text())["first_bad"] is None
    assert run.guard.state_key.startswith("CheckpointGuard")


TWO_PROCESSES = """
import sys, torch, lightning.pytorch as pl
from ckptdoctor.guards.lightning import CheckpointGuard
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    def training_step(self, batch):
        return self.net(batch[0]).square().mean()
    def on_before_optimizer_step(self, optimizer):
        grads = [p.grad for p in self.parameters()]
        if not all(g.isfinite().all() for g in grads):
            [g.zero_() for g in grads]
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
torch.set_num_threads(1)
x = torch.randn(64, 4)
x[32:40] = float("inf")
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 8)
guard = CheckpointGuard(sys.argv[1], every_n_train_steps=2, filename="{step}", on_unfit="stop",
                        watch_every=4, save_last="link")
trainer = pl.Trainer(
    max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[guard],
    use_distributed_sampler=False)
trainer.fit(Module(), data)
"""


def test_two_processes_follow_what_the_first_one_finds(tmp_path):
    pytest.importorskip("lightning")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("step")]
    assert [line.split(": ")[0] for line in said] == ["step 5", "step 6"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.ckpt",
        "last_good.json",
        "step=4.ckpt",
        "unfit-checkpoint.ckpt",
    ]
    assert (tmp_path / "last.ckpt").resolve().name == "step=4.ckpt"
