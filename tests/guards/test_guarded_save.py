"""``guarded_save``: whatever the function that saves does, a good checkpoint is still there."""

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import patients
import pytest

from ckptdoctor.errors import (
    UncheckedCheckpointError,
    UnfitCheckpointError,
    UsageError,
    WriteError,
)
from ckptdoctor.guards import LOSSES, framework, guarded_save, keras


def good(seed=1.0):
    made = patients.state()
    made["fc.bias"] = made["fc.bias"] * np.float32(seed)
    return made


def poisoned(name="bn3.running_var", value=np.nan):
    made = patients.state()
    made[name] = np.full_like(made[name], value)
    return made


def saver(tree, seen=None):
    def save(path):
        if seen is not None:
            seen.append(path)
        patients.save_torch(Path(path), tree)

    return save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def names(folder):
    """Names of all files but ``last_good.json``."""
    return sorted(path.name for path in Path(folder).iterdir() if path.name != "last_good.json")


def test_fit_checkpoint_replaces_the_one_before(path):
    guarded_save(saver(good()), path)
    before = path.read_bytes()
    saved = guarded_save(saver(good(2.0)), path)
    assert path.read_bytes() != before
    assert (saved.kept, saved.answer, saved.why, saved.aside) == (True, "fit", "", "")
    assert saved.path == str(path)
    assert saved.report.verdict.serve == "fit"
    assert names(path.parent) == ["model.pt"]


def test_unfit_checkpoint_leaves_the_good_one_to_the_last_byte(path, caplog):
    guarded_save(saver(good()), path)
    before = path.read_bytes()
    saved = guarded_save(saver(poisoned()), path, step=1200)
    assert path.read_bytes() == before
    assert (saved.kept, saved.answer) == (False, "unfit")
    assert saved.aside == str(path.with_name("unfit-model.pt"))
    assert [f.code for f in saved.report.findings] == ["BN001"]
    assert names(path.parent) == ["model.pt", "unfit-model.pt"]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ckptdoctor", "WARNING")
    assert record.message == (
        f"step 1,200: {path} is unfit and was not kept: BatchNorm variance is NaN beside a "
        "finite mean in 1 layer; it lies in unfit-model.pt"
    )


def test_unfit_first_checkpoint_is_no_checkpoint(path):
    assert not guarded_save(saver(poisoned()), path).kept
    assert names(path.parent) == ["unfit-model.pt"]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("both", {"unfit-model.pt": 1, "unfit-latest-model.pt": 3}),
        ("first", {"unfit-model.pt": 1}),
        ("latest", {"unfit-latest-model.pt": 3}),
        ("none", {}),
    ],
)
def test_first_and_latest_of_the_unfit_are_kept_as_asked(path, keep, kept):
    for number in (1, 2, 3):
        tree = {**poisoned(), "step": np.full((number, 2), number, np.float32)}
        saved = guarded_save(saver(tree), path, keep_unfit=keep)
        assert (saved.aside != "") == Path(saved.aside).is_file()
    assert set(names(path.parent)) == set(kept)
    from ckptdoctor import open_checkpoint

    for name, number in kept.items():
        with open_checkpoint(path.with_name(name)) as table:
            assert table["step"].shape == (number, 2)


def test_raising_carries_the_report_and_keeps_the_evidence(path):
    with pytest.raises(UnfitCheckpointError, match=r"model\.pt: unfit and was not kept: ") as e:
        guarded_save(saver(poisoned()), path, on_unfit="raise")
    assert e.value.report.verdict.serve == "unfit"
    assert names(path.parent) == ["unfit-model.pt"]


GGUF = b"GGUF" + bytes(400)


def test_what_cannot_be_checked_is_kept_aside_always_the_newest(path, caplog):
    guarded_save(saver(good()), path)
    for byte in b"ab":
        saved = guarded_save(
            lambda name, byte=byte: Path(name).write_bytes(GGUF + bytes([byte])),
            path,
            keep_unfit="none",
        )
        assert (saved.kept, saved.answer) == (False, "unchecked")
    assert names(path.parent) == ["model.pt", "unchecked-model.pt"]
    assert path.with_name("unchecked-model.pt").read_bytes()[-1:] == b"b"
    assert "could not be checked and was not kept: a GGUF" in caplog.text


def test_what_cannot_be_checked_raises_where_asked(path):
    with pytest.raises(UncheckedCheckpointError) as e:
        guarded_save(lambda name: Path(name).write_bytes(GGUF), path, on_unfit="raise")
    assert e.value.report.error is not None


def test_save_that_fails_half_way_changes_nothing(path):
    guarded_save(saver(good()), path)
    before = path.read_bytes()

    def save(name):
        Path(name).write_bytes(before[:100])
        raise KeyError("disk on fire")

    with pytest.raises(KeyError, match="disk on fire"):
        guarded_save(save, path)
    assert path.read_bytes() == before
    assert names(path.parent) == ["model.pt"]


def test_save_that_breaks_off_silently_is_unfit(path):
    guarded_save(saver(good()), path)
    before = path.read_bytes()
    for cut in (0, 100, len(before) - 1):
        saved = guarded_save(lambda n, c=cut: Path(n).write_bytes(before[:c]), path)
        assert saved.answer != "fit"
    assert guarded_save(lambda n: Path(n).write_bytes(before[:-1]), path).answer == "unfit"
    assert path.read_bytes() == before


def test_checkpoint_without_tensors_is_unfit(path):
    guarded_save(saver(good()), path)
    saved = guarded_save(saver({"epoch": 3}), path)
    assert (saved.answer, saved.why) == ("unfit", "it holds no tensors")


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "m.pth.tar", "m", "m{epoch}.ckpt"])
def test_function_gets_the_same_name_in_a_folder_of_its_own(tmp_path, name):
    seen = []
    guarded_save(saver(good(), seen), tmp_path / name)
    (given,) = seen
    assert isinstance(given, str)
    assert Path(given).name == name
    assert Path(given).parent.parent == tmp_path
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ((), "nothing was saved"),
        (("model.npz",), r"expected one file of this name, found 'model\.npz'"),
        (("model.pt", "model.json"), r"expected one file of this name, found 'model\.json'"),
    ],
)
def test_function_that_does_not_write_what_it_was_told_to_is_named(path, written, message):
    guarded_save(saver(good()), path)
    before = path.read_bytes()

    def save(name):
        for other in written:
            patients.save_torch(Path(name).with_name(other), good(3.0))

    with pytest.raises(WriteError, match=message):
        guarded_save(save, path)
    assert path.read_bytes() == before
    assert names(path.parent) == ["model.pt"]


def test_link_stays_a_link(path, tmp_path):
    target = tmp_path / "disk" / "real.pt"
    path.symlink_to(target)
    assert guarded_save(saver(good()), path).kept
    assert path.is_symlink()
    assert target.is_file()
    assert names(target.parent) == ["real.pt"]


def test_folders_on_the_way_are_made(tmp_path):
    assert guarded_save(saver(good()), tmp_path / "a" / "b" / "m.pt").kept
    assert names(tmp_path / "a" / "b") == ["m.pt"]


def test_disk_has_everything_before_the_name_moves(path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("flush"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("move"), replace(a, b)))
    guarded_save(saver(good()), path)
    assert order[:3] == ["flush", "move", "flush"]


def test_draft_is_locked_while_it_is_written(path):
    """Another container cannot see the process: it asks the lock before it tidies up."""
    fcntl = pytest.importorskip("fcntl")

    def save(name):
        fd = os.open(Path(name).parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(fd)
        saver(good())(name)

    assert guarded_save(save, path).kept


def test_leftovers_of_a_killed_process_go(path):
    left = path.with_name(f".model.pt.{2**22 + 1}-0123abcd.ckptdoctor")
    left.mkdir()
    (left / "model.pt").write_bytes(b"half")
    guarded_save(saver(good()), path)
    assert names(path.parent) == ["model.pt"]


def test_threads_that_save_at_once_leave_one_whole_checkpoint(path):
    threads = [
        threading.Thread(target=guarded_save, args=(saver(good(seed)), path)) for seed in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(path.parent) == ["model.pt"]
    from ckptdoctor import inspect

    assert inspect(path).verdict.serve == "fit"


class TestFolders:
    def write(self, path, model, optimizer=None, extra=()):
        folder = Path(path)
        folder.mkdir()
        patients.save_torch(folder / "pytorch_model.bin", model)
        if optimizer is not None:
            patients.save_torch(folder / "optimizer.pt", optimizer)
        for name in extra:
            (folder / name).write_text("{}")

    def save(self, path, *args, **kwargs):
        return guarded_save(lambda p: self.write(p, *args, **kwargs), path)

    def test_folder_is_replaced_as_a_whole(self, tmp_path):
        path = tmp_path / "run"
        assert self.save(path, good(), extra=["old.json"]).kept
        assert self.save(path, good(2.0), extra=["new.json"]).kept
        assert names(path) == ["new.json", "pytorch_model.bin"]
        assert names(tmp_path) == ["run"]

    def test_disk_has_every_file_before_the_names_move(self, tmp_path, monkeypatch):
        self.save(tmp_path / "run", good())
        order = []
        fsync, rename = os.fsync, Path.rename
        monkeypatch.setattr(os, "fsync", lambda fd: (order.append("flush"), fsync(fd)))
        monkeypatch.setattr(Path, "rename", lambda a, b: (order.append("move"), rename(a, b)))
        self.save(tmp_path / "run", good(2.0), extra=["config.json"])
        # two files, the folder, the old one aside, the new one in its place, the folder above
        assert order[:6] == ["flush", "flush", "flush", "move", "move", "flush"]

    @pytest.mark.parametrize("part", ["model", "optimizer"])
    def test_state_beside_the_model_counts(self, tmp_path, part):
        path = tmp_path / "run"
        assert self.save(path, good(), patients.adam(good())).kept
        before = (path / "pytorch_model.bin").read_bytes()
        bad = patients.adam(good())
        bad["state"][0]["exp_avg"] = bad["state"][0]["exp_avg"] * np.float32(np.nan)
        trees = {"model": good(2.0), "optimizer": bad}
        if part == "model":
            trees = {"model": poisoned(), "optimizer": patients.adam(good())}
        saved = self.save(path, **trees)
        assert saved.answer == "unfit"
        assert Path(saved.report.file).name.startswith(
            "pytorch_model" if part == "model" else "optimizer"
        )
        assert len(saved.reports) == 2
        assert (path / "pytorch_model.bin").read_bytes() == before
        assert names(tmp_path) == ["run", "unfit-run"]

    def test_records_of_the_run_beside_it_do_not_count(self, tmp_path):
        def save(path):
            self.write(path, good())
            folder = Path(path)
            for name in ("training_args.bin", "rng_state.pth", "rng_state_0.pth"):
                (folder / name).write_bytes(GGUF)

        saved = guarded_save(save, tmp_path / "run")
        assert (saved.kept, len(saved.reports)) == (True, 1)

    def test_shards_are_examined_once_as_a_set(self, tmp_path):
        def save(path):
            folder = Path(path)
            folder.mkdir()
            tree = good()
            halves = [dict(list(tree.items())[:8]), dict(list(tree.items())[8:])]
            where = {}
            for i, half in enumerate(halves, 1):
                name = f"pytorch_model-{i:05d}-of-00002.bin"
                patients.save_torch(folder / name, half)
                where |= dict.fromkeys(half, name)
            (folder / "pytorch_model.bin.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": where})
            )

        saved = guarded_save(save, tmp_path / "run")
        assert (saved.kept, len(saved.reports)) == (True, 1)

    def test_several_checkpoints_of_no_known_name_all_count(self, tmp_path):
        def save(path, bad=False):
            Path(path).mkdir()
            patients.save_torch(Path(path, "a.pt"), good())
            patients.save_torch(Path(path, "b.pt"), poisoned() if bad else good())

        assert len(guarded_save(save, tmp_path / "run").reports) == 2
        assert guarded_save(lambda p: save(p, bad=True), tmp_path / "run").answer == "unfit"

    def test_folder_of_a_kind_that_is_not_read_is_unchecked(self, tmp_path):
        def save(path):
            Path(path).mkdir()
            (Path(path) / "saved_model.pb").write_bytes(b"x")

        saved = guarded_save(save, tmp_path / "run")
        assert (saved.answer, names(tmp_path)) == ("unchecked", ["unchecked-run"])

    def test_latest_unfit_folder_replaces_the_one_before(self, tmp_path):
        for number in (1, 2, 3):
            self.save(tmp_path / "run", poisoned(), extra=[f"{number}.json"])
        assert "1.json" in names(tmp_path / "unfit-run")
        assert names(tmp_path / "unfit-latest-run") == ["3.json", "pytorch_model.bin"]

    @pytest.mark.parametrize("tree", [good(2.0), poisoned()], ids=["fit next", "unfit next"])
    def test_folder_that_stepped_aside_for_one_that_never_came_is_put_back(self, tmp_path, tree):
        path = tmp_path / "run"
        self.save(path, good())
        path.rename(tmp_path / "run.previous-ckptdoctor")
        saved = self.save(path, tree)
        assert (path / "pytorch_model.bin").is_file()
        assert set(names(tmp_path)) == {"run"} | ({"unfit-run"} if not saved.kept else set())

    def test_process_that_dies_between_the_two_steps_loses_nothing(self, tmp_path, monkeypatch):
        path = tmp_path / "run"
        self.save(path, good())
        before = (path / "pytorch_model.bin").read_bytes()
        rename = Path.rename

        def failing(source, target):
            if ".ckptdoctor" in str(source):
                raise OSError(5, "Input/output error")
            return rename(source, target)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(WriteError, match="Input/output error; it is as it was"):
            self.save(path, good(2.0))
        assert (path / "pytorch_model.bin").read_bytes() == before
        assert names(tmp_path) == ["run"]

    def test_folder_never_replaces_a_file_nor_a_file_a_folder(self, tmp_path):
        path = tmp_path / "run"
        guarded_save(saver(good()), path)
        with pytest.raises(WriteError, match="could not be replaced"):
            self.save(path, good())
        assert path.is_file()
        path.unlink()
        self.save(path, good())
        with pytest.raises(WriteError, match="could not be replaced"):
            guarded_save(saver(good()), path)
        assert names(path) == ["pytorch_model.bin"]


def fresh():
    """A network nobody has trained yet, with a layer that starts from zero."""
    made = patients.state()
    for name, value in made.items():
        if name.endswith(("running_mean", "bias", "num_batches_tracked")) or name == "fc.weight":
            made[name] = np.zeros_like(value)
        elif name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            made[name] = np.ones_like(value)
    made["mask"] = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    return made


def test_model_that_has_not_been_trained_is_kept(path):
    assert guarded_save(saver(fresh()), path).kept


def test_statistics_that_never_moved_are_no_loss(path):
    tree = {**patients.state(), "bn2.running_mean": np.zeros(16), "bn2.running_var": np.ones(16)}
    tree = {name: value.astype(np.float32) for name, value in tree.items()}
    assert guarded_save(saver(tree), path).kept
    saved = guarded_save(saver(tree), path, select=())  # every rule
    assert [f.code for f in saved.report.findings] == ["BN006"]
    assert not saved.kept


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("bn2.running_mean", np.nan, "BN001"),
        ("bn2.running_var", np.inf, "BN001"),
        ("bn2.running_var", -1.0, "BN002"),
        ("bn2.running_var", 1e9, "BN003"),
        ("conv2.weight", np.nan, "NF001"),
        ("bn2.weight", np.nan, "NF001"),
        ("fc.bias", np.inf, "NF002"),
    ],
)
def test_what_is_lost_for_good_is_unfit(path, name, value, code):
    saved = guarded_save(saver(poisoned(name, value)), path)
    assert saved.answer == "unfit"
    assert code in {f.code for f in saved.report.findings}


def optimizer(name, value):
    state = patients.adam(good())
    state["state"][0][name] = np.full_like(state["state"][0][name], value)
    return {"model": good(), "optimizer": state}


@pytest.mark.parametrize(
    ("tree", "code"),
    [
        (optimizer("exp_avg", np.nan), "TS001"),
        (optimizer("exp_avg_sq", -1.0), "TS002"),
        ({"model": good(), "scaler": {"scale": 0.0, "growth_factor": 2.0, "_growth_tracker": 0}}, "TS005"),
        ({"model": good(), "ema_state_dict": poisoned("fc.weight")}, "TS006"),
        ({"model": {**good(), "fc.weight": np.zeros((0,), np.float32)}}, "WT009"),
        ({"model": {**good(), "fc.weight": good()["fc.weight"] * np.float32(1e20)}}, "WT003"),
    ],
)  # fmt: skip
def test_what_ruins_the_next_step_is_unfit(path, tree, code):
    saved = guarded_save(saver(tree), path)
    assert saved.answer == "unfit"
    assert code in {f.code for f in saved.report.findings}


def test_purpose_serve_does_not_ask_for_the_optimizer(path):
    tree = optimizer("exp_avg", np.nan)
    assert not guarded_save(saver(tree), path).kept
    assert not guarded_save(saver(tree), path, purpose="resume").kept
    assert guarded_save(saver(tree), path, purpose="serve").kept


def test_codes_can_be_left_out_and_warnings_counted(path):
    assert guarded_save(saver(poisoned()), path, ignore=["BN001", "NF"]).kept
    large = {**patients.state(), "bn2.running_var": patients.state()["bn2.running_var"] * 3e2}
    assert guarded_save(saver(large), path).kept
    assert not guarded_save(saver(large), path, fail_on="warning").kept


def test_ignoring_all_that_was_selected_leaves_nothing_to_find(path):
    tree = poisoned("fc.weight")
    assert guarded_save(saver(tree), path, select=["BN001"], ignore=["BN001"]).kept


def test_reason_is_the_first_that_counts_for_the_purpose():
    from ckptdoctor.findings import Finding, Severity
    from ckptdoctor.guards.judging import _why
    from ckptdoctor.guards.terms import Terms
    from ckptdoctor.results import Diagnosis, Report

    findings = tuple(
        Finding(code="NF001", name="nan-values", severity=severity, message=message)
        for message, severity in (
            ("the optimizer's", Severity.ERROR),
            ("a warning", Severity.WARNING),
            ("the model's", Severity.ERROR),
        )
    )
    told = tuple(
        Diagnosis(key="x", title=f"diagnosis {i}", severity=Severity.ERROR, findings=(i,))
        for i in range(3)
    )
    relevant = (False, True, True)
    report = Report(file="m.pt", findings=findings, relevant=relevant)
    assert _why(report, Terms()) == "the model's"
    report = Report(file="m.pt", findings=findings, relevant=relevant, diagnoses=told)
    assert _why(report, Terms()) == "diagnosis 2"
    assert _why(report, Terms(fail_on="warning")) == "diagnosis 1"


def test_losses_are_codes_that_exist():
    from ckptdoctor.selection import known_codes

    assert set(LOSSES) <= set(known_codes())
    assert not {"CK002", "BN006", "WT001", "WT002", "WT008"} & set(LOSSES)


@pytest.mark.parametrize(
    "choice",
    [
        {"on_unfit": "stop"},
        {"on_unfit": "panic"},
        {"keep_unfit": "all"},
        {"fail_on": "never"},
        {"purpose": "train"},
        {"select": ["XX999"]},
        {"ignore": "NF001"},
    ],
)
def test_wrong_choices_are_told_before_anything_is_saved(path, choice):
    with pytest.raises(UsageError):
        guarded_save(lambda _: pytest.fail("saved"), path, **choice)
    assert names(path.parent) == []


@pytest.mark.parametrize("name", ["", "/", "..", "s3://bucket/m.pt", "gs://b/m", "hdfs://x/m"])
def test_wrong_paths_are_told_before_anything_is_saved(name):
    with pytest.raises(UsageError):
        guarded_save(lambda _: pytest.fail("saved"), name)


def test_folder_that_takes_nothing_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="takes no new one"):
        guarded_save(saver(good()), tmp_path / "file" / "m.pt")


def test_importing_the_guards_imports_no_framework():
    code = (
        "import sys, ckptdoctor.guards, ckptdoctor.guards.keras, ckptdoctor.guards.lightning\n"
        "import ckptdoctor.guards.pytorch_lightning, ckptdoctor.guards.transformers\n"
        "print({'torch', 'tensorflow', 'keras', 'lightning', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"set()\n"


def told_of(module):
    """Why there is no such callback here."""
    framework.callback_class.cache_clear()
    with pytest.raises(UsageError) as e:
        module.CheckpointGuard  # noqa: B018
    return str(e.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import tensorflow_of_nobody", ("needs keras, whose import fails: No module named "
         "'tensorflow_of_nobody'")),
        ("raise ImportError('too old')", ("needs another version of keras: too old; "
         "pip install --upgrade 'ckptdoctor[tensorflow]'")),
        ("", ("needs another version of keras: module 'keras' has no attribute 'Callback'; "
         "pip install --upgrade 'ckptdoctor[tensorflow]'")),
    ],
    ids=["backend missing", "import refused", "class missing"],
)  # fmt: skip
def test_framework_that_cannot_be_used_says_why(monkeypatch, tmp_path, text, told):
    for name in [n for n in sys.modules if n.partition(".")[0] == "keras"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "keras.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keras, "_BASES", (("keras", "Callback"),))
    assert told_of(keras) == f"ckptdoctor.guards.keras {told}"
    sys.modules.pop("keras", None)


@pytest.mark.parametrize(
    ("guard", "package", "install"),
    [
        ("keras", "keras", "ckptdoctor[tensorflow]"),
        ("lightning", "lightning", "ckptdoctor[lightning]"),
        ("pytorch_lightning", "pytorch_lightning", "pytorch-lightning"),
        ("transformers", "transformers", "ckptdoctor[transformers]"),
    ],
)
def test_missing_framework_is_one_line_that_says_what_to_install(
    monkeypatch, guard, package, install
):
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    module = importlib.import_module(f"ckptdoctor.guards.{guard}")
    assert told_of(module) == (
        f"ckptdoctor.guards.{guard} needs {package}, which is not installed; pip install '{install}'"
    )
    assert "CheckpointGuard" in module.__all__
    with pytest.raises(AttributeError, match="no attribute 'Gard'"):
        module.Gard  # noqa: B018


def test_module_names_what_it_has():
    from ckptdoctor import guards

    assert dir(guards) == sorted(guards.__all__)
    assert all(getattr(guards, name) is not None for name in guards.__all__)
    with pytest.raises(AttributeError, match="no attribute 'guard_save'"):
        guards.guard_save  # noqa: B018


def test_disk_without_locks_on_folders_still_saves(path, monkeypatch):
    real = os.open

    def refusing(name, *args, **kwargs):
        if str(name).endswith(".ckptdoctor"):
            raise PermissionError(13, "Permission denied")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    assert guarded_save(saver(good()), path).kept


def test_what_is_no_function_is_said_in_one_line(path):
    with pytest.raises(UsageError, match=r"expected a function that saves to the path .* 'x'"):
        guarded_save("x", path)


def test_function_whose_checkpoint_cannot_be_checked_is_refused_in_one_sentence(path):
    expected = r"model\.pt: could not be checked and was not kept: a GGUF"
    with pytest.raises(UncheckedCheckpointError, match=expected):
        guarded_save(lambda p: Path(p).write_bytes(GGUF), path, on_unfit="raise")


def test_refusal_escapes_the_path_and_tells_it_once(tmp_path):
    with pytest.raises(UnfitCheckpointError) as caught:
        guarded_save(saver(poisoned()), tmp_path / "a\n.pt", on_unfit="raise")
    assert str(caught.value).startswith(f"{tmp_path}/a\\n.pt: unfit and was not kept: ")
    assert str(caught.value).count("a\\n.pt") == 2  # unfit-a\n.pt
