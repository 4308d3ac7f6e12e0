"""A repair where something goes wrong, or is asked for twice: nothing lost, nothing half done."""

from __future__ import annotations

import base64
import errno
import json
import os
import zipfile

import h5py
import numpy as np
import patients
import pytest
import torch_bytes as tb
import write_helpers as wh

from ckptdoctor import repair, treatment
from ckptdoctor.cli import run
from ckptdoctor.containers import hdf5_readers
from ckptdoctor.containers.hdf5_process import ProcessLost
from ckptdoctor.edits import Refusal, RepairPlan
from ckptdoctor.errors import ChangedError, CkptDoctorError, ReadError, UsageError, WriteError
from ckptdoctor.findings import Finding, Severity
from ckptdoctor.formats import open_path
from ckptdoctor.outcome import Outcome
from ckptdoctor.results import ErrorInfo, Report


@pytest.fixture
def torch(tmp_path):
    """NaN in one channel's statistics of one layer."""
    state = patients.state()
    state["bn2.running_mean"][3] = state["bn2.running_var"][3] = np.nan
    return patients.save_torch(tmp_path / "m.pt", state)


def flip(path, name, *bits):
    """Flip bits of a tensor's bytes: two, so that the checksum does not tell which."""
    data = bytearray(path.read_bytes())
    with open_path(path) as table:
        places = wh.byte_places(table[name], np.arange(4))
    for at, bit in zip((0, 9), bits, strict=False):
        data[places[at]] ^= bit
    path.write_bytes(data)


class TestChangedMeanwhile:
    """Whoever writes to the input during a repair is not overruled."""

    @pytest.fixture
    def written_to(self, torch, monkeypatch):
        """Another process writes to the checkpoint when it has been examined."""
        details_of = treatment.details_of

        def late(*args):
            made = details_of(*args)
            data = bytearray(torch.read_bytes())
            data[-1] ^= 1
            torch.write_bytes(data)
            os.utime(torch, ns=(1, 1))
            return made

        monkeypatch.setattr(treatment, "details_of", late)
        return torch

    @pytest.mark.parametrize(
        "how", [{"dry_run": True}, {}, {"in_place": True}], ids=["dry", "beside", "in place"]
    )
    def test_nothing_is_written(self, written_to, how):
        with pytest.raises(ChangedError):
            repair(written_to, bn_reset=True, **how)
        assert wh.names(written_to.parent) == ["m.pt"]

    def test_no_plan_vouches_for_a_file_that_was_not_examined(self, written_to, tmp_path):
        with pytest.raises(ChangedError):
            repair(written_to, bn_reset=True, dry_run=True, write_plan=tmp_path / "plan.json")
        assert wh.names(tmp_path) == ["m.pt"]


class TestCures:
    def test_of_two_wrong_ones_that_which_is_restated_is_cured(self, torch, tmp_path):
        """What a plan leaves out stays, and is neither cured nor a failed cure."""
        flip(torch, "fc.bias", 1, 8)
        flip(torch, "fc.weight", 1, 8)
        plan = tmp_path / "plan.json"
        repair(torch, dry_run=True, allow="destructive", write_plan=plan)
        document = json.loads(plan.read_text())
        restated = [c for c in document["changes"] if c["type"] == "checksum"]
        assert len(restated) == 2
        document["changes"].remove(restated[1])
        plan.write_text(json.dumps(document))
        outcome = repair(torch, from_plan=plan)
        assert len([f for f in outcome.before.findings if f.code == "CK001"]) == 2
        (cured,) = [f for f in outcome.cured if f.code == "CK001"]
        assert cured.where == restated[0]["where"]
        (left,) = [f for f in outcome.remaining if f.code == "CK001"]
        assert left.where.removeprefix(outcome.written.path) == restated[1]["where"].removeprefix(
            str(torch)
        )
        assert outcome.uncured == ()

    def test_a_plan_whose_values_cure_nothing_is_told_as_that(self, torch, tmp_path):
        """Edited by hand, and wrongly: it is written as it says, and is no success."""
        plan = tmp_path / "plan.json"
        repair(torch, dry_run=True, bn_reset=True, write_plan=plan)
        document = json.loads(plan.read_text())
        (var,) = [c for c in document["changes"] if c["tensor"].endswith("var")]
        var["values"] = base64.b64encode(np.array([np.nan], "<f4").tobytes()).decode()
        plan.write_text(json.dumps(document))
        outcome = repair(torch, from_plan=plan)
        assert {(f.code, f.tensor) for f in outcome.uncured} == {("BN001", var["tensor"])}
        assert not outcome.done
        assert run(["repair", str(torch), "--from-plan", str(plan)]) == 1

    @pytest.mark.parametrize("value", [1e9, 0.5], ids=["no better", "sound"])
    def test_a_number_that_was_asked_for_is_done_whatever_the_rules_say_of_it(
        self, tmp_path, value
    ):
        weights = patients.state()
        state = {"model": weights, "optimizer": patients.adam(weights, lr=np.nan)}
        path = patients.save_torch(tmp_path / "m.pt", state)
        name = "optimizer.param_groups.0.lr"
        assert name in {f.tensor for f in repair(path, dry_run=True).before.findings}
        outcome = repair(path, numbers={name: value})
        assert outcome.uncured == ()
        assert outcome.done


class TestNames:
    """What is said names what the caller named."""

    def test_a_set_that_was_given_as_a_folder_is_told_as_that_folder(self, tmp_path):
        wh.sharded(tmp_path / "set")
        outcome = repair(tmp_path / "set", reinit=["b.bias=zeros"])
        assert outcome.file == str(tmp_path / "set")
        assert outcome.written.path == str(tmp_path / "set.repaired")

    def test_a_checkpoint_that_was_found_in_a_folder_is_repaired_beside_itself(self, tmp_path):
        (tmp_path / "run").mkdir()
        wh.safetensors(tmp_path / "run" / "model.safetensors")
        outcome = repair(tmp_path / "run", reinit=["a.weight=zeros"])
        assert outcome.file == str(tmp_path / "run" / "model.safetensors")
        assert wh.names(tmp_path / "run") == ["model.repaired.safetensors", "model.safetensors"]
        assert wh.names(tmp_path) == ["run"]

    def test_a_checkpoint_is_not_its_own_donor_in_place_either(self, torch, tmp_path):
        os.link(torch, tmp_path / "second.pt")
        before = wh.listing(tmp_path)
        for donor in ("m.pt", "second.pt"):
            with pytest.raises(UsageError, match="the donor is the file to be repaired"):
                repair(torch, in_place=True, donor=tmp_path / donor)
        assert wh.listing(tmp_path) == before


class TestDonors:
    def test_who_trusts_the_files_reads_the_donor_without_a_guard_too(self, tmp_path, monkeypatch):
        """Where no process can be started, ``--trust-hdf5`` is what the message advises."""

        def lost(*_):
            raise ProcessLost("did not start")

        state = patients.keras_state()
        patients.save_keras(tmp_path / "donor.h5", state)
        state["bn2"]["moving_mean"][3] = state["bn2"]["moving_variance"][3] = np.nan
        path = patients.save_keras(tmp_path / "m.h5", state)
        monkeypatch.setattr(hdf5_readers, "take", lost)
        with pytest.raises(ReadError) as caught:
            repair(path, donor=tmp_path / "donor.h5")
        assert "--trust-hdf5" in caught.value.hint
        outcome = repair(path, donor=tmp_path / "donor.h5", trust_hdf5=True)
        assert {c.remedy for c in outcome.plan.changes} == {"donor"}
        assert outcome.done


class TestFailures:
    def test_a_folder_that_cannot_be_flushed_is_told_without_a_receipt_too(
        self, torch, tmp_path, monkeypatch
    ):
        fsync = os.fsync

        def failing(fd):
            if os.path.samestat(os.fstat(fd), tmp_path.stat()):
                raise OSError(errno.EIO, "Input/output error")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(WriteError, match="the file is complete"):
            repair(torch, tmp_path / "out.pt", bn_reset=True)


COMMON = {"remedy": "by hand", "class": "destructive", "cures": [], "title": "as I say"}
WRONG = {
    "number that is not there": ({"type": "number", "name": "gone", "before": 1, "value": 2},
        "the plan names 'gone', which is not there"),
    "number that is another": ({"type": "number", "name": "epoch", "before": 7, "value": 2},
        "the plan says that 'epoch' is 7, found 3"),
    "number of another kind": ({"type": "number", "name": "epoch", "before": 3, "value": 2.5},
        "stored as a whole number"),
    "endless number": ({"type": "number", "name": "epoch", "before": "0x" + "f" * 9000, "value": 2},
        "the plan says that 'epoch' is 0xffff"),
    "key that is not there": ({"type": "removal", "names": ["optimizer", "gone"]}, "'gone'"),
    "more bytes than there are": ({"type": "trim", "size": 10**9}, "expected to keep at most"),
    "part of the archive": ({"type": "trim", "size": 9999}, "nothing was changed"),
    "no bytes": ({"type": "trim", "size": 0}, "the file is empty; nothing was changed"),
    "checksum that is not there": ({"type": "checksum", "where": "gone"}, "expected a member"),
}  # fmt: skip


class TestPlansByHand:
    """What a plan says is done as it says, or not at all."""

    def planned(self, path, *changes):
        plan = path.with_name("plan.json")
        repair(path, dry_run=True, write_plan=plan)
        document = json.loads(plan.read_text())
        document["changes"] = [{**COMMON, **change} for change in changes]
        plan.write_text(json.dumps(document))
        return plan

    @pytest.fixture
    def training(self, tmp_path):
        weights = patients.state()
        tree = {"model": weights, "optimizer": patients.adam(weights, lr=np.nan), "epoch": 3}
        return patients.save_torch(tmp_path / "m.pt", tree)

    @pytest.mark.parametrize(("change", "said"), WRONG.values(), ids=WRONG)
    def test_what_does_not_fit_the_file_is_declined(self, training, change, said):
        plan = self.planned(training, change)
        before = wh.listing(training.parent)
        with pytest.raises(CkptDoctorError, match=said) as caught:
            repair(training, from_plan=plan)
        assert len(caught.value.message) < 600
        assert wh.listing(training.parent) == before
        assert run(["repair", str(training), "--from-plan", str(plan)]) in (2, 3)

    @pytest.mark.parametrize("name", ["optimizer_weights", "model_weights/bn2", "gone"])
    def test_a_group_that_an_hdf5_file_lacks_is_not_said_to_be_left_out(self, tmp_path, name):
        path = patients.save_keras(tmp_path / "m.h5", patients.keras_state())
        plan = self.planned(path, {"type": "removal", "names": [name]})
        before = wh.listing(tmp_path)
        with pytest.raises(UsageError, match=f"the plan names '{name}', which is not there"):
            repair(path, from_plan=plan)
        assert wh.listing(tmp_path) == before

    def test_what_a_format_cannot_lose_is_declined_by_the_name_of_the_plan(self, tmp_path):
        wh.safetensors(tmp_path / "m.safetensors")
        plan = self.planned(tmp_path / "m.safetensors", {"type": "removal", "names": ["a"]})
        with pytest.raises(UsageError, match="parts of safetensors files cannot be left out") as e:
            repair(tmp_path / "m.safetensors", from_plan=plan)
        assert e.value.where == str(plan)

    def test_a_number_that_was_nan_is_set(self, training):
        name = "optimizer.param_groups.0.lr"
        change = {"type": "number", "name": name, "before": "nan", "value": 0.5}
        outcome = repair(training, from_plan=self.planned(training, change))
        assert outcome.done
        with open_path(outcome.written.path) as table:
            assert table.scalars[name] == 0.5

    def test_a_stored_plan_can_be_stored_again(self, training, tmp_path):
        plan = self.planned(training, {"type": "removal", "names": ["optimizer"]})
        again = tmp_path / "again.json"
        repair(training, from_plan=plan, write_plan=again, dry_run=True)
        one, other = (json.loads(path.read_text()) for path in (plan, again))
        assert one == other


class TestReceipts:
    """What a receipt says is enough to go back, and is true."""

    def files(self, receipt):
        return json.loads(receipt.read_text())["files"]

    def test_bytes_behind_the_end_are_in_it(self, tmp_path):
        path, receipt = tmp_path / "m.safetensors", tmp_path / "r.json"
        wh.safetensors(path)
        size, tail = path.stat().st_size, bytes(range(1, 256)) * 5000
        with path.open("ab") as file:
            file.write(tail)
        repair(path, tmp_path / "out", allow="destructive", receipt=receipt)
        (file,) = self.files(receipt)
        assert (file["input"]["size"], file["output"]["size"]) == (size + len(tail), size)
        assert b"".join(base64.b64decode(run["old"]) for run in file["runs"]) == tail
        assert {run["new"] for run in file["runs"]} == {""}
        assert file["runs"][0]["offset"] == size

    def test_where_bytes_moved_it_has_the_values(self, tmp_path):
        where = tb.storage("0", "FloatStorage", 6)
        adam = {"state": {0: {"exp_avg": tb.tensor(tb.storage("1", "FloatStorage", 6), (6,))}}}
        tree = {"model": {"fc.weight": tb.tensor(where, (2, 3))}, "optimizer": adam}
        data = {"0": np.arange(6, dtype="f4").tobytes(), "1": bytes(24)}
        path, receipt = tmp_path / "m.pt", tmp_path / "r.json"
        path.write_bytes(tb.archive(tree, data))
        repair(path, drop_optimizer=True, reinit=["model.fc.weight=ones"], receipt=receipt)
        (file,) = self.files(receipt)
        assert "optimizer was left out" in file["moved"]
        assert file["runs"] == []
        (values,) = file["values"]
        old, new = (np.frombuffer(base64.b64decode(values[k]), "<f4") for k in ("old", "new"))
        assert (values["tensor"], values["indices"]) == ("model.fc.weight", None)
        assert old.tolist() == [0, 1, 2, 3, 4, 5]
        assert new.tolist() == [1] * 6

    @pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
    def test_of_an_archive_it_has_the_archive_alone(self, tmp_path, compressed):
        """Weights in a compressed archive are unpacked for HDF5: that file is nobody's."""
        path, receipt = tmp_path / "m.keras", tmp_path / "r.json"
        wh.keras_zip(path)
        if compressed:
            with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "x", "w", 8) as new:
                for name in old.namelist():
                    new.writestr(name, old.read(name))
            (tmp_path / "x").replace(path)
        with open_path(path) as table:
            (name,) = [n for n in table if n.endswith("layer_1/vars/0")]
        plan = tmp_path / "p.json"
        outcome = repair(path, reinit=[f"{name}=zeros"], receipt=receipt, write_plan=plan)
        (file,) = self.files(receipt)
        assert (file["input"]["path"], file["output"]["path"]) == (str(path), outcome.written.path)
        assert json.loads(plan.read_text())["made_for"]["size"] == path.stat().st_size
        assert bool(file["moved"]) == compressed

    def test_a_donor_is_no_place_for_it(self, torch, tmp_path):
        donor = patients.save_torch(tmp_path / "donor.pt", patients.state())
        with pytest.raises(UsageError, match="would replace the checkpoint, the donor"):
            repair(torch, donor=donor, receipt=donor)

    def test_nothing_stays_open_and_the_hashing_is_told(self, torch, tmp_path):
        told = []
        repair(
            torch, bn_reset=True, receipt=tmp_path / "r.json", force=True
        )  # what is once per run
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
        repair(
            torch, bn_reset=True, receipt=tmp_path / "r.json", force=True,
            note=lambda what, _, total: told.append((what, total)),
        )  # fmt: skip
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        assert ("hashing", torch.stat().st_size) in told


def found(severity, tensor="w"):
    return Finding(code="NF001", name="odd", severity=severity, message="", tensor=tensor)


class TestDone:
    """What exit code 0 means."""

    SICK = Report(file="m", findings=(found(Severity.ERROR),))
    WELL = Report(file="m")
    NO = Refusal(target="w", reason="lost")

    def outcome(self, before, after, refusals=(), *, explicit=False, uncured=()):
        return Outcome(
            file="m", plan=RepairPlan(refusals=refusals, explicit=explicit), before=before,
            after=after, uncured=uncured, remaining=after.findings if after is not None else (),
        )  # fmt: skip

    def test_errors_that_are_left_are_not_done_whatever_the_plan_knew_of_them(self):
        assert not self.outcome(self.SICK, self.SICK).done
        assert not self.outcome(self.WELL, self.SICK).done
        assert self.outcome(self.SICK, self.WELL).done

    def test_a_refusal_is_no_failure_where_no_error_is_left(self):
        assert self.outcome(self.SICK, self.WELL, (self.NO,)).done

    def test_warnings_that_are_left_are_done(self):
        warned = Report(file="m", findings=(found(Severity.WARNING),))
        assert self.outcome(warned, warned).done
        assert self.outcome(warned, None, (self.NO,)).done

    def test_a_dry_run_fails_where_an_error_would_stay(self):
        assert not self.outcome(self.SICK, None, (self.NO,)).done
        assert self.outcome(self.SICK, None).done

    def test_what_was_asked_for_and_refused_is_not_done(self):
        refused = Refusal(target="w", reason="lost", remedy="reinit")
        assert not self.outcome(self.WELL, self.WELL, (refused,), explicit=True).done
        assert self.outcome(self.SICK, self.SICK, (self.NO,), explicit=True).done

    def test_a_cure_that_failed_is_not_done(self):
        assert not self.outcome(
            self.SICK, self.SICK, explicit=True, uncured=self.SICK.findings
        ).done

    def test_what_was_not_planned_or_failed_is_not_done(self):
        assert not Outcome(file="m").done
        error = ErrorInfo(type="ReadError", message="no", where="m", hint="")
        assert not Outcome(file="m", plan=RepairPlan(), error=error).done


def test_where_no_byte_moved_nothing_had_to_be_compared(torch):
    written = repair(torch, bn_reset=True).written
    assert (written.moved, written.compared, written.identical, written.kept) == (
        "",
        0,
        False,
        False,
    )


def test_a_stored_plan_drops_the_optimizer_of_an_hdf5_file(tmp_path):
    path, plan = patients.save_keras(tmp_path / "m.h5", patients.keras_state()), tmp_path / "p"
    with h5py.File(path, "a") as file:
        file["optimizer_weights/adam/m/head/kernel"] = np.ones((16, 4), "f4")
    repair(path, dry_run=True, drop_optimizer=True, write_plan=plan)
    outcome = repair(path, from_plan=plan)
    assert outcome.done
    with h5py.File(outcome.written.path) as file:
        assert "optimizer_weights" not in file
        assert "model_weights" in file


def test_tied_statistics_that_are_reset_leave_nothing_to_refuse(tmp_path):
    """The dry run says what the run says."""
    state = {}
    storages = {"w": np.ones(8, "f4"), "b": np.zeros(8, "f4"), "m": patients.values("m", (8,)),
                "v": patients.values("running_var", (8,))}  # fmt: skip
    storages["m"][3] = storages["v"][3] = np.nan
    names = {"weight": "w", "bias": "b", "running_mean": "m", "running_var": "v"}
    for layer in ("bn1", "bn2"):
        for part, key in names.items():
            state[f"{layer}.{part}"] = tb.tensor(tb.storage(key, "FloatStorage", 8), (8,))
    path = tmp_path / "m.pt"
    path.write_bytes(tb.archive(state, {key: value.tobytes() for key, value in storages.items()}))
    planned = repair(path, dry_run=True, allow="destructive")
    assert len(planned.plan.changes) == 2
    assert planned.plan.refusals == ()
    assert planned.done
    assert repair(path, allow="destructive").done
