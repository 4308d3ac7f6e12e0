"""``--recalibrate``: from a file and a model to a file whose statistics fit the data."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import bedside
import numpy as np
import patients
import pytest
from live.numpy_subject import classifier, samples
from safetensors.numpy import load_file, save_file

import ckptdoctor
from ckptdoctor.cli import run
from ckptdoctor.errors import UsageError
from ckptdoctor.recalibration.estimate import estimate, every_channel
from ckptdoctor.remedies.ailments import ailments_of
from ckptdoctor.remedies.recalibrate import Recalibrate

MODEL = """\
from live.numpy_subject import Dense, BatchNorm, NumpySubject, relu


class Model(NumpySubject):
    def load(self, table):
        from ckptdoctor.live.loaded import Loaded

        for name in table:
            layer, _, key = name.rpartition(".")
            self.layers[layer].tensors[key] = table.read(name).astype("float32")
        return Loaded(pairs={name: name for name in table})


def build():
    return Model(
        Dense("fc1", 6, 16), BatchNorm("bn1", 16), relu("relu1"), Dense("fc2", 16, 16),
        BatchNorm("bn2", 16), relu("relu2"), Dense("head", 16, 4),
    )
"""
PARTS = {"gamma": "weight", "beta": "bias"}


def stored(subject):
    """Tensors with torch's names."""
    return {
        f"{layer}.{PARTS.get(key, key)}": value
        for layer, held in subject.layers.items()
        for key, value in held.tensors.items()
    }


@pytest.fixture
def ward(tmp_path, monkeypatch):
    """A folder with a model's code, samples and a healthy file."""
    monkeypatch.chdir(tmp_path)
    text = MODEL.replace(
        'layer, _, key = name.rpartition(".")',
        'layer, _, key = name.rpartition(".")\n'
        '            if layer.startswith("bn"):\n'
        '                key = {"weight": "gamma", "bias": "beta"}.get(key, key)',
    )
    (tmp_path / "model.py").write_text(text)
    np.save("x.npy", samples(128))
    save_file(stored(classifier()), "healthy.safetensors")
    return tmp_path


def broken(**changes):
    held = load_file("healthy.safetensors")
    for key, value in changes.items():
        name = key.replace("__", ".")
        held[name] = np.full_like(held[name], value) if np.isscalar(value) else value
    save_file(held, "broken.safetensors")
    return held


def repair(path="broken.safetensors", **options):
    options = {"recalibrate": "model.py:build", "data": "x.npy", **options}
    return ckptdoctor.repair(path, "out.safetensors", **options)


def changed(before):
    after = load_file("out.safetensors")
    return {
        name for name in before if not np.array_equal(before[name], after[name], equal_nan=True)
    }


NAN = float("nan")


class TestBrokenOnly:
    def test_statistics_are_those_of_the_data_and_nothing_else_changes(self, ward):
        before = broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        outcome = repair()
        assert outcome.done
        assert changed(before) == {"bn1.running_mean", "bn1.running_var"}
        inputs = samples(128) @ before["fc1.weight"] + before["fc1.bias"]
        after = load_file("out.safetensors")
        np.testing.assert_allclose(after["bn1.running_mean"], inputs.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after["bn1.running_var"], inputs.var(0), rtol=1e-4)

    def test_healthy_channels_of_a_broken_layer_stay(self, ward):
        mean, var = (load_file("healthy.safetensors")[f"bn1.running_{p}"] for p in ("mean", "var"))
        mean[5] = var[5] = NAN
        before = broken(bn1__running_mean=mean, bn1__running_var=var)
        assert repair().done
        after = load_file("out.safetensors")
        for name in ("bn1.running_mean", "bn1.running_var"):
            assert np.flatnonzero(before[name] != after[name]).tolist() == [5]

    def test_whole_layers_where_that_is_asked_for(self, ward):
        var = load_file("healthy.safetensors")["bn1.running_var"]
        var[5] = NAN
        before = broken(bn1__running_var=var)
        assert repair(bn_scope="layers").done
        after = load_file("out.safetensors")
        assert (before["bn1.running_var"] != after["bn1.running_var"]).all()
        assert (before["bn1.running_mean"] != after["bn1.running_mean"]).all()

    def test_whole_layers_are_taken_once_however_much_of_them_is_broken(self, ward):
        held = load_file("healthy.safetensors")
        mean, var = held["bn1.running_mean"], held["bn1.running_var"]
        mean[2] = var[5] = NAN
        broken(bn1__running_mean=mean, bn1__running_var=var)
        changes = repair(bn_scope="layers").plan.changes
        assert [(c.tensor, c.indices.size) for c in changes] == [
            ("bn1.running_mean", 16), ("bn1.running_var", 16)
        ]  # fmt: skip

    def test_finding_is_cured(self, ward):
        broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        outcome = repair()
        assert outcome.before.verdict.serve == "unfit"
        assert outcome.after.verdict.serve == "fit"
        assert {finding.code for finding in outcome.cured} == {"BN001"}

    def test_report_says_what_was_compared_and_taken(self, ward):
        broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        facts = repair().recalibration
        assert facts[0] == "ran the code of model.py to make the model"
        assert facts[1] == "128 samples of x.npy, 32 held back to compare on"
        assert facts[2] == "as it is, against training mode: outputs not finite"
        assert facts[3].startswith("broken channels only, against training mode: ")
        assert facts[3].endswith("  <- taken, the narrowest that agrees")
        assert facts[4].startswith("all BatchNorms, against training mode: ")

    def test_whole_layers_cure_their_own_findings(self, ward):
        var = load_file("healthy.safetensors")["bn1.running_var"]
        var[5] = NAN
        broken(bn1__running_var=var)
        outcome = repair(bn_scope="layers")
        assert {change.tensor: change.cures for change in outcome.plan.changes} == {
            "bn1.running_mean": (),
            "bn1.running_var": ("BN001",),
        }
        assert [finding.tensor for finding in outcome.cured] == ["bn1.running_var"]

    def test_layers_that_are_named_are_recomputed_and_no_others(self, ward):
        before = load_file("healthy.safetensors")
        outcome = repair("healthy.safetensors", tensors=["bn1.*"])
        assert changed(before) == {"bn1.running_mean", "bn1.running_var"}
        assert outcome.recalibration[1:] == ("128 samples of x.npy",)


class TestHidden:
    """One channel that is constant costs the outputs less than samples differ by."""

    MANY = 256

    @pytest.fixture
    def wide(self, ward):
        text = (ward / "model.py").read_text().replace(", 16)", f", {self.MANY})")
        text = text.replace('Dense("fc2", 16,', f'Dense("fc2", {self.MANY},')
        text = text.replace('"head", 16, 4', f'"head", {self.MANY}, 4')
        (ward / "model.py").write_text(text)
        spec = importlib.util.spec_from_file_location("wide_model", ward / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        subject = module.build()
        for name, made in estimate(subject, every_channel(subject), [[samples(512)]]).items():
            subject.set_statistics(name, made)
        held = stored(subject)
        held["bn1.running_var"][5] = np.inf
        save_file(held, "broken.safetensors")
        return held

    def test_infinite_variance_is_never_called_in_agreement(self, wide):
        outcome = repair()
        assert outcome.after.verdict.serve == "fit"
        assert changed(wide) == {"bn1.running_mean", "bn1.running_var"}
        told = outcome.recalibration[2]
        assert "relative error 0.0" in told
        assert told.endswith("; its broken channels hold what the data contradict")


class TestUncalled:
    """A BatchNorm of a head for training alone, which inference does not call."""

    @pytest.fixture
    def headed(self, ward):
        text = (ward / "model.py").read_text()
        text = text.replace("import Dense,", "import Layer, Dense,").replace(
            "def build",
            "class Unused(Layer):\n    def forward(self, run, *inputs):\n        return inputs[0]\n\n\n"
            "def build",
        )
        aux = 'Unused("aux", BatchNorm("bn3", 4)), Dense("head"'
        (ward / "model.py").write_text(text.replace('Dense("head"', aux))
        aux = np.linspace(0.4, 0.7, 4, dtype=np.float32)
        held = load_file("healthy.safetensors")
        held |= {
            "bn3.weight": aux,
            "bn3.bias": aux,
            "bn3.running_mean": aux - 0.5,
            "bn3.running_var": aux[::-1] * 2,
        }
        save_file(held, "healthy.safetensors")

    @pytest.mark.parametrize("scope", ["", "all"])
    def test_what_is_broken_there_is_refused_and_the_rest_done(self, headed, scope):
        before = broken(bn1__running_mean=NAN, bn1__running_var=NAN, bn3__running_var=NAN)
        outcome = repair(**({"bn_scope": scope} if scope else {}))
        norms = ("bn1", "bn2") if scope else ("bn1",)
        assert changed(before) == {f"{n}.running_{part}" for n in norms for part in ("mean", "var")}
        (refusal,) = outcome.plan.refusals
        assert refusal.target == "bn3.running_var"
        assert "it is not called on these data" in refusal.reason
        assert outcome.recalibration[-1] == "'bn3' is not called on these data: it stays"
        assert not outcome.done

    def test_what_is_sound_there_stays(self, headed):
        before = broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        outcome = repair(bn_scope="all")
        assert outcome.done
        assert {name.partition(".")[0] for name in changed(before)} == {"bn1", "bn2"}


class TestAll:
    def test_damage_beyond_the_broken_layer(self, ward):
        own = load_file("healthy.safetensors")["bn2.running_var"]
        before = broken(bn1__running_mean=NAN, bn1__running_var=NAN, bn2__running_var=own * 25)
        outcome = repair()
        assert changed(before) == {
            f"bn{i}.running_{part}" for i in (1, 2) for part in ("mean", "var")
        }
        assert any("beyond the broken layers" in text for text in outcome.plan.warnings)

    def test_where_that_is_asked_for(self, ward):
        before = broken(bn1__running_var=NAN)
        outcome = repair(bn_scope="all")
        assert len(changed(before)) == 4
        assert outcome.recalibration[1:] == ("128 samples of x.npy",)


class TestNothing:
    def test_healthy_file_stays_byte_for_byte(self, ward):
        outcome = repair("healthy.safetensors")
        assert outcome.done
        assert outcome.written.identical

    def test_what_the_data_confirm_stays(self, ward):
        """A first BatchNorm of huge variance is only suspected: the inputs may be that large."""
        held = load_file("healthy.safetensors")
        scale = np.float32(1e4)
        np.save("x.npy", samples(128) * scale)
        held["bn1.running_mean"] *= scale
        held["bn1.running_var"] *= scale**2
        save_file(held, "broken.safetensors")
        outcome = repair()
        assert "BN003" in {finding.code for finding in outcome.before.findings}
        assert outcome.done
        assert outcome.written.identical
        assert "agree with these data" in outcome.plan.refusals[0].reason

    def test_what_speaks_against_the_samples_is_said_all_the_same(self, ward):
        x = samples(128)
        x[7, 0] = NAN
        np.save("x.npy", x)
        facts = repair("healthy.safetensors").recalibration
        assert facts[-1] == "Left out 1 of 128 samples for NaN or Inf: number 7."


class TestLimits:
    def test_channel_constant_on_the_data_gets_variance_one(self, ward):
        kernel = load_file("healthy.safetensors")["fc1.weight"]
        kernel[:, 3] = 0
        broken(fc1__weight=kernel, bn1__running_mean=NAN, bn1__running_var=NAN)
        assert repair().done
        assert load_file("out.safetensors")["bn1.running_var"][3] == 1

    def test_float16_that_a_variance_does_not_fit_into_is_refused(self, ward):
        held = load_file("healthy.safetensors")
        np.save("x.npy", samples(128) * 1e4)
        held["bn1.running_mean"] = np.full(16, NAN, np.float16)
        held["bn1.running_var"] = np.full(16, NAN, np.float16)
        save_file(held, "broken.safetensors")
        outcome = repair()
        assert not outcome.done
        (refusal,) = (r for r in outcome.plan.refusals if "16 of 16" in r.reason)
        largest = np.var(np.load("x.npy") @ held["fc1.weight"], axis=0).max()
        assert refusal.reason == f"16 of 16 channels do not fit into float16 (as {largest:.3g})"
        assert refusal.hint.startswith("save the file with its BatchNorms in float32 or bfloat16")

    def test_channel_whose_variance_does_not_fit_keeps_its_mean(self, ward):
        """A new mean beside an old variance is worse than both old."""
        held = load_file("healthy.safetensors")
        scale = np.ones(6, np.float32)
        scale[2] = 1e5
        np.save("x.npy", samples(128) * scale)
        kernel = np.eye(6, 16, dtype=np.float32)
        kernel[:, 6:] = held["fc1.weight"][:, 6:]
        kernel[2, 6:] = 0
        held["fc1.weight"] = kernel
        held["bn1.running_mean"] = np.full(16, 3.0, np.float16)
        held["bn1.running_var"] = np.full(16, NAN, np.float16)
        save_file(held, "broken.safetensors")
        outcome = repair(bn_scope="layers")
        assert not outcome.done
        reasons = " ".join(refusal.reason for refusal in outcome.plan.refusals)
        assert "1 of 16 channels do not fit into float16 (as " in reasons
        after = load_file("out.safetensors")
        assert np.flatnonzero(np.isnan(after["bn1.running_var"])).tolist() == [2]
        assert np.flatnonzero(after["bn1.running_mean"] == 3).tolist() == [2]

    def test_samples_that_are_not_finite_are_left_out_and_told(self, ward):
        broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        x = samples(128)
        x[7, 2] = NAN
        np.save("x.npy", x)
        outcome = repair()
        assert outcome.done
        assert outcome.plan.warnings[0] == ("Left out 1 of 128 samples for NaN or Inf: number 7.")
        assert outcome.recalibration[1] == "127 samples of x.npy, 32 held back to compare on"

    def test_samples_that_are_all_alike_are_refused(self, ward):
        broken(bn1__running_mean=500.0, bn1__running_var=1e7)
        np.save("x.npy", np.zeros((64, 6), np.float32))
        with pytest.raises(UsageError, match="the same for all samples"):
            repair()

    def test_layer_that_the_model_lacks_is_refused(self, ward):
        held = load_file("healthy.safetensors")
        held |= {f"old.{name}": value for name, value in held.items() if name.startswith("bn1")}
        held["old.bn1.running_var"] = np.full(16, NAN, np.float32)
        save_file(held, "broken.safetensors")
        text = (ward / "model.py").read_text()
        text = text.replace(
            "for name in table:",
            "for name in table:\n            if 'old' in name:\n                continue",
        )
        text = text.replace(
            "name: name for name in table", "name: name for name in table if 'old' not in name"
        )
        (ward / "model.py").write_text(text)
        outcome = repair()
        assert not outcome.done
        assert outcome.plan.refusals[0].reason == "no BatchNorm of model.py:build is its partner"

    def test_broken_layer_that_the_model_knows_as_no_batchnorm_is_named_where_it_fails(self, ward):
        """Such as an InstanceNorm with running statistics: training mode does not get past it."""
        held = broken(bn1__running_var=NAN)
        held["bn2.running_mean"] = held["bn2.running_var"] = np.full(16, NAN, np.float32)
        save_file(held, "broken.safetensors")
        text = (ward / "model.py").read_text()
        text += """

class Blind(Model):
    norms = property(lambda self: {k: v for k, v in Model.norms.fget(self).items() if k != "bn2"})
"""
        text = text.replace("return Model(", "return Blind(")
        (ward / "model.py").write_text(text)
        hint = "'bn2.running_mean' is broken as well, and no BatchNorm of model.py:build is its"
        with pytest.raises(UsageError, match="not finite in training mode") as caught:
            repair()
        assert caught.value.hint.startswith(hint)


class TestUsage:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"data": None}, "--recalibrate needs samples"),
            ({"recalibrate": None}, "--data has no effect with no --recalibrate"),
            ({"data": "random:64x6"}, "statistics of random numbers"),
            ({"donor": "healthy.safetensors"}, "--recalibrate and --donor do not go together"),
            ({"bn_reset": True}, "--recalibrate and --bn-reset do not go together"),
            ({"bn_silence": True}, "--recalibrate and --bn-silence do not go together"),
            ({"reinit": ["head.weight"]}, "--recalibrate and --reinit do not go together"),
            ({"recalibrate": "nothing.py:build"}, "no such file"),
            ({"data": "nothing.npy"}, "no such file"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_be_done_is_said_and_nothing_written(self, ward, options, message):
        broken(bn1__running_var=NAN)
        with pytest.raises(UsageError, match=message):
            repair(**options)
        assert not (ward / "out.safetensors").exists()

    def test_few_samples_are_refused_unless_forced(self, ward):
        broken(bn1__running_var=NAN)
        np.save("x.npy", samples(12))
        with pytest.raises(UsageError, match="at least 16 samples, found 12"):
            repair()
        outcome = repair(force=True)
        assert "12 samples are few" in outcome.plan.warnings[0]

    def test_command_line(self, ward, capsys):
        broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        words = "repair broken.safetensors -o out.safetensors --recalibrate model.py:build"
        assert run([*words.split(), "--data", "x.npy"]) == 0
        assert "<- taken" in capsys.readouterr().out

    def test_what_the_model_prints_is_no_part_of_the_report(self, ward, capsys):
        broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        (ward / "model.py").write_text("print('hello')\n" + (ward / "model.py").read_text())
        words = "repair broken.safetensors -o out.safetensors --recalibrate model.py:build"
        assert run([*words.split(), "--data", "x.npy", "--format", "json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["repair"]["done"]
        assert err == "hello\n"

    def test_plan_is_the_same_repair(self, ward):
        broken(bn1__running_mean=NAN, bn1__running_var=NAN)
        repair(write_plan="plan.json")
        direct = (ward / "out.safetensors").read_bytes()
        ckptdoctor.repair("broken.safetensors", "planned.safetensors", from_plan="plan.json")
        assert (ward / "planned.safetensors").read_bytes() == direct


def weights(role, factor=1.0, sick=()):
    """One BatchNorm of the model or its moving average."""
    parts = {f"bn.{part}": patients.values(f"bn.{part}", (8,)) * factor for part in STATISTICS}
    for part in sick:
        parts[f"bn.{part}"][3] = NAN
    return {f"{role}.{name}": value for name, value in parts.items()}


STATISTICS = ("weight", "running_mean", "running_var")
LOST = ("running_mean", "running_var")
OWN, AVERAGE = weights("model"), weights("ema", 1.001)


class TestWhichWeights:
    """The model's weights are in the model; the moving average's where they are what is broken."""

    class Bedside:
        """Notes which weights are asked for, and knows no BatchNorm."""

        def __init__(self):
            self.roles, self.facts = [], []

        def places(self, role):
            self.roles.append(role)
            return {}

        def recalibrated(self, broken, reach):
            return SimpleNamespace(reach="none", warnings=())

    @pytest.mark.parametrize(
        ("tensors", "roles"),
        [
            (OWN, ["model"]),
            (AVERAGE, ["ema"]),
            (AVERAGE | OWN, ["model"]),
            (OWN | weights("ema", sick=LOST), ["ema"]),
            (weights("model", sick=LOST) | AVERAGE, ["model"]),
            (weights("model", sick=LOST) | weights("ema", sick=LOST), ["model", "ema"]),
        ],
        ids=["model", "average", "both", "sick average", "sick model", "both sick"],
    )
    def test_weights_that_run_are_those_that_are_broken(self, tensors, roles):
        sick = bedside.patient(tensors, recalibrate="model.py:build", data="x.npy")
        sick.bedside = self.Bedside()
        list(Recalibrate().propose(sick, ailments_of(sick)))
        assert sick.bedside.roles == roles
