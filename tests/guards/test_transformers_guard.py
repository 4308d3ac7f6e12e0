"""The guard for the Trainer of Hugging Face transformers, in the real one."""

import os

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
            self.model, arguments, train_dataset=data, callbacks=[self.guard]
        )
        self.trainer._get_train_sampler = lambda *_: None
        self.trainer.train(resume_from_checkpoint=resume)
        return self.trainer


def test_x(tmp_path, caplog):
    run = Run(tmp_path, bad_batch=4, watch_every=1)
    run.train(save_total_limit=1)
    print(sorted(os.listdir(tmp_path)), caplog.text)
    for f in sorted(tmp_path.rglob("*")):
        print(f, f.stat().st_nlink)
    assert 0
