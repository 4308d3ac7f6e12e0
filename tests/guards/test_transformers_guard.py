"""The guard for the Trainer of Hugging Face transformers, in the real one."""

import json

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


class Run:
    """A tiny model with BatchNorm, and a Trainer on the CPU that saves every second step."""

    def __init__(self, folder, bad_batch=None, bad_value=float("inf"), *, skip=True, **guard):
        self.torch = torch = pytest.importorskip("torch")
        self.transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        from ckptdoctor.guards.transformers import CheckpointGuard

        self.folder = folder
        torch.manual_seed(0)
        self.x = torch.randn(64, 4)
        if bad_batch is not None:
            self.x[8 * bad_batch : 8 * bad_batch + 8] = bad_value
        self.model = self._model(skip)
        self.guard = CheckpointGuard(**guard)

    def _model(self, skip):
        torch, transformers = self.torch, self.transformers

        class Model(transformers.PreTrainedModel):
            config_class = transformers.PretrainedConfig

            def __init__(self, config):
                super().__init__(config)
                self.net = torch.nn.Sequential(
                    torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
                )
                self.post_init()
                for p in self.parameters():
                    if skip:  # what a loss scaler does: such a step changes no weight
                        p.register_hook(lambda g: g if g.isfinite().all() else torch.zeros_like(g))

            def forward(self, x):
                out = self.net(x)
                return {"loss": out.square().mean(), "logits": out}

        return Model(transformers.PretrainedConfig())

    def train(self, resume=None, **settings):
        arguments = self.transformers.TrainingArguments(
            **{
                "output_dir": str(self.folder),
                "per_device_train_batch_size": 8,
                "num_train_epochs": 1,
                "save_steps": 2,
                "report_to": [],
                "use_cpu": True,
                "disable_tqdm": True,
                "max_grad_norm": 0.0,
                "optim": "sgd",
                "learning_rate": 0.01,
                **settings,
            }
        )
        data = [{"x": row} for row in self.x]
        self.trainer = self.transformers.Trainer(
            self.model, arguments, train_dataset=data, eval_dataset=data, callbacks=[self.guard]
        )
        if hasattr(self, "evaluate"):
            self.trainer.evaluate = self.evaluate
        self.trainer._get_train_sampler = lambda *_: None
        self.trainer.train(resume_from_checkpoint=resume)
        return self.trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_poisoned_statistics_do_not_cost_the_good_checkpoint(tmp_path, caplog, limit):
    """The founding case; with a limit, the Trainer removes the good one before anybody looks."""
    from ckptdoctor.guards import last_good

    run = Run(tmp_path, bad_batch=4, watch_every=1)
    trainer = run.train(save_total_limit=limit)
    assert trainer.state.global_step == 8  # it went on
    older = ["checkpoint-2"] if limit is None else []
    assert names(tmp_path) == [
        *older,
        "checkpoint-4",
        "last_good",
        "last_good.json",
        "unfit-checkpoint-6",
        "unfit-checkpoint-8",
    ]
    good = tmp_path / "last_good"
    assert last_good(tmp_path) == str(good)
    assert names(good) == names(tmp_path / "checkpoint-4")
    assert weights(good) == weights(tmp_path / "checkpoint-4")
    assert json.loads((good / "trainer_state.json").read_text())["global_step"] == 4
    first, second, third = (m for m in caplog.messages if m.startswith("step"))
    assert first == (
        "step 5: BatchNorm 'net.1' running_mean became NaN (and 1 more tensor); weights are "
        f"finite; last good: {good} (step 4)"
    )
    assert second.startswith(f"step 6: {tmp_path / 'checkpoint-6'} is unfit and was not kept: ")
    assert second.endswith(f"it lies in unfit-checkpoint-6; last good: {good} (step 4)")
    assert "unfit-checkpoint-8" in third


@pytest.mark.parametrize("resume", [True, "last_good"])
def test_training_resumes_from_the_last_good_one(tmp_path, resume):
    Run(tmp_path, bad_batch=4).train(save_total_limit=1)
    run = Run(tmp_path, watch_every=1)
    trainer = run.train(resume if resume is True else str(tmp_path / resume))
    assert trainer.state.global_step == 8
    assert run.guard.guard.first_bad is None
    assert run.guard.guard.last_good.step == 8
    assert trainer.state.log_history[-1]["step"] == 8
    assert {"checkpoint-6", "checkpoint-8", "last_good"} <= set(names(tmp_path))


def test_run_that_goes_back_does_not_write_into_the_good_checkpoint(tmp_path):
    Run(tmp_path).train()
    good = tmp_path / "last_good"
    before = weights(good)
    assert (good / "model.safetensors").stat().st_nlink == 2
    run = Run(tmp_path, bad_batch=4)
    run.train(str(tmp_path / "checkpoint-4"))  # writes checkpoint-6 and -8 again, both bad
    assert weights(good) == before
    assert names(good) == names(tmp_path / "checkpoint-4")
    assert (good / "model.safetensors").stat().st_nlink == 1
    assert run.guard.guard.last_good is None  # of this run


def test_run_that_goes_on_copies_nothing(tmp_path):
    Run(tmp_path).train(max_steps=4)
    Run(tmp_path, bad_batch=4).train(str(tmp_path / "last_good"))
    assert (tmp_path / "last_good" / "model.safetensors").stat().st_nlink == 2


@pytest.mark.parametrize(
    ("keep", "left"),
    [("both", {4, 8}), ("first", {4}), ("latest", {8}), ("none", set())],
)
def test_first_and_latest_of_the_unfit_are_kept_as_asked(tmp_path, keep, left):
    Run(tmp_path, bad_batch=2, keep_unfit=keep).train()
    assert {n for n in names(tmp_path) if "unfit" in n} == {f"unfit-checkpoint-{n}" for n in left}


def test_training_stops_where_asked(tmp_path):
    run = Run(tmp_path / "a", bad_batch=4, watch_every=1, on_unfit="stop")
    assert run.train().state.global_step == 5
    run = Run(tmp_path / "b", bad_batch=4, watch_every=0, on_unfit="stop")
    assert run.train().state.global_step == 6


def test_training_ends_with_the_report_where_asked(tmp_path):
    from ckptdoctor.errors import UnfitCheckpointError

    run = Run(tmp_path, bad_batch=4, watch_every=0, on_unfit="raise")
    with pytest.raises(UnfitCheckpointError) as e:
        run.train()
    assert e.value.report.verdict.serve == "unfit"
    assert names(tmp_path)[-1] == "unfit-checkpoint-6"


def test_lost_weights_are_told_from_lost_statistics_and_the_step_is_exact(tmp_path, caplog):
    Run(tmp_path, bad_batch=2, bad_value=float("nan"), skip=False).train(save_steps=8)
    assert caplog.messages[0].startswith(
        "step 3: layer 'net.0' weight became NaN (and 7 more tensors); no good checkpoint yet"
    )


def test_state_of_the_optimizer_counts_even_where_the_weights_are_finite(tmp_path):
    run = Run(tmp_path)

    def spoil(*_):
        if run.trainer.state.global_step == 4:
            for state in run.trainer.optimizer.state.values():
                state["momentum_buffer"].fill_(float("inf"))

    run.model.register_forward_pre_hook(spoil, with_kwargs=True)
    run.train(optim="sgd", optim_args="momentum=0.9", learning_rate=0.0)
    assert "unfit-checkpoint-6" in names(tmp_path)
    assert run.guard.guard.last_good.step == 4


def test_best_checkpoint_is_one_that_is_there(tmp_path):
    run = Run(tmp_path, bad_batch=4)

    def evaluate(*_, **__):  # better and better
        run.trainer.control.should_evaluate = False
        return {"eval_loss": 1 - run.trainer.state.global_step / 10}

    run.evaluate = evaluate
    trainer = run.train(
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False,
    )  # fmt: skip
    state = trainer.state
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert (state.best_metric, state.best_global_step) == (0.6, 4)
    assert run.model.net[1].running_var.isfinite().all()


def test_model_nobody_trained_is_kept(tmp_path):
    from ckptdoctor.guards import guarded_save

    run = Run(tmp_path)
    run.train(max_steps=1, save_steps=1)
    assert "last_good" in names(tmp_path)
    assert guarded_save(run.trainer.save_model, tmp_path / "final").kept
    config = run.transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=8,
    )  # fmt: skip
    fresh = run.transformers.BertModel(config)
    assert guarded_save(fresh.save_pretrained, tmp_path / "bert").kept


def test_first_bad_step_is_in_what_the_trainer_stores(tmp_path):
    run = Run(tmp_path, bad_batch=4, watch_every=1)
    run.train()
    stored = json.loads((tmp_path / "unfit-checkpoint-6" / "trainer_state.json").read_text())
    state = stored["stateful_callbacks"]["CheckpointGuard"]
    assert state["attributes"]["restored"]["first_bad"]["step"] == 5
    again = type(run.guard).from_state(state)
    assert again.guard.first_bad == run.guard.guard.first_bad
    assert again.guard.terms == run.guard.guard.terms
    assert again.guard.watch_every == 1


def test_folder_that_is_not_there_is_said_not_to_be(tmp_path, caplog):
    run = Run(tmp_path)
    run.train(max_steps=1, save_strategy="no")
    control = run.guard.on_save(run.trainer.args, run.trainer.state, run.trainer.control)
    assert "checkpoint-1 is not there, so it was not examined" in caplog.text
    assert control is run.trainer.control


def test_files_are_copied_where_links_are_not_known(tmp_path, monkeypatch):
    import os

    def refusing(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refusing)
    Run(tmp_path).train(save_total_limit=1)
    assert weights(tmp_path / "last_good") == weights(tmp_path / "checkpoint-8")
    assert (tmp_path / "last_good" / "model.safetensors").stat().st_nlink == 1


def test_processes_agree_on_what_one_of_them_found(tmp_path):
    torch = pytest.importorskip("torch")
    from ckptdoctor.guards.transformers import _agreed

    assert (_agreed(True), _agreed(False)) == (True, False)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert (_agreed(True), _agreed(False)) == (True, False)
    finally:
        torch.distributed.destroy_process_group()
