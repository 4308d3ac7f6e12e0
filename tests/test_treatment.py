"""A repair from path to path: dry runs, plans, receipts, and what a failure leaves."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import patients
import pytest
import write_helpers as wh

from ckptdoctor import repair
from ckptdoctor.details import in_words
from ckptdoctor.errors import CkptDoctorError, UsageError, WriteError
from ckptdoctor.formats import open_path
from ckptdoctor.write import checksums
from ckptdoctor.write.draft import Draft


def sick(value):
    """NaN in one channel's statistics of one layer."""
    value["running_mean" if "running_mean" in value else "moving_mean"][3] = np.nan
    value["running_var" if "running_var" in value else "moving_variance"][3] = np.nan


def torch_model(path, *, healthy=False):
    state = patients.state()
    if not healthy:
        state["bn2.running_mean"][3] = state["bn2.running_var"][3] = np.nan
    patients.save_torch(path, state)
    return path


def safetensors_model(path, *, healthy=False):
    state = patients.state()
    if not healthy:
        state["bn2.running_mean"][3] = state["bn2.running_var"][3] = np.nan
    wh.safetensors(path, state)
    return path


def keras_model(path, *, healthy=False):
    state = patients.keras_state()
    if not healthy:
        state["bn2"]["moving_mean"][3] = state["bn2"]["moving_variance"][3] = np.nan
    return patients.save_keras(path, state)


MODELS = {"m.pt": torch_model, "m.safetensors": safetensors_model, "m.h5": keras_model}
RESET = {"bn_reset": True, "trust_hdf5": True}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    return MODELS[request.param](tmp_path / request.param)


@pytest.fixture
def torch(tmp_path):
    return torch_model(tmp_path / "m.pt")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def restored(receipt, repaired):
    """The original's bytes, put back by hand as the receipt says."""
    (file,) = json.loads(receipt.read_text())["files"]
    data = bytearray(repaired)
    data += bytes(max(0, file["input"]["size"] - len(data)))
    for run in file["runs"]:
        old, new = base64.b64decode(run["old"]), base64.b64decode(run["new"])
        at = run["offset"]
        assert bytes(data[at : at + len(new)]) == new
        data[at : at + len(old)] = old
    return bytes(data[: file["input"]["size"]])


class TestRepairs:
    def test_a_repaired_copy_is_written_beside_the_input(self, model):
        before = wh.listing(model.parent)
        outcome = repair(model, **RESET)
        out = model.with_name(f"m.repaired{model.suffix}")
        assert wh.listing(model.parent) == {**before, out.name: out.read_bytes()}
        assert outcome.done
        assert outcome.written.path == str(out)
        assert {f.code for f in outcome.cured} == {"BN001"}
        assert outcome.uncured == ()
        with open_path(out, wh.TRUST) as table:
            mean, var = (next(n for n in table if n.split(":")[0].endswith(e)) for e in (
                "bn2.running_mean" if "bn2.running_mean" in table else "bn2/moving_mean",
                "bn2.running_var" if "bn2.running_var" in table else "bn2/moving_variance",
            ))  # fmt: skip
            assert (table.read(mean)[3], table.read(var)[3]) == (0, 1)

    @pytest.mark.parametrize("name", MODELS)
    def test_of_a_healthy_file_the_identical_copy_is_written(self, tmp_path, name):
        path = MODELS[name](tmp_path / name, healthy=True)
        for number, how in enumerate(({}, {"bn_reset": True}, {"allow": "destructive"})):
            out = tmp_path / f"out{number}"
            outcome = repair(path, out, trust_hdf5=True, **how)
            assert out.read_bytes() == path.read_bytes()
            assert (outcome.written.identical, outcome.written.changed) == (True, 0)

    def test_in_place_the_original_is_kept(self, model):
        old = model.read_bytes()
        outcome = repair(model, in_place=True, **RESET)
        assert outcome.written.backup.endswith(".orig")
        assert model.with_name(f"{model.name}.orig").read_bytes() == old
        assert wh.names(model.parent) == [model.name, f"{model.name}.orig"]

    def test_a_second_repair_finds_the_first(self, model):
        repair(model, **RESET)
        before = wh.listing(model.parent)
        assert repair(model, **RESET).written.kept
        assert wh.listing(model.parent) == before


class TestDryRuns:
    @pytest.mark.parametrize("how", [{}, {"in_place": True}, {"receipt": "r.json"}])
    def test_nothing_at_all_is_written(self, model, monkeypatch, how):
        monkeypatch.chdir(model.parent)
        before = wh.listing(model.parent)
        mtime = model.parent.stat().st_mtime_ns
        outcome = repair(model, dry_run=True, **how, **RESET)
        assert wh.listing(model.parent) == before
        assert model.parent.stat().st_mtime_ns == mtime
        assert (outcome.written, outcome.after) == (None, None)
        assert len(outcome.plan.changes) == 2

    def test_its_plan_is_that_of_the_repair(self, model):
        planned = repair(model, dry_run=True, **RESET)
        assert [str(c) for c in planned.plan.changes] == [
            str(c) for c in repair(model, **RESET).plan.changes
        ]
        assert [(d.count, d.was, d.becomes) for d in planned.details.values()] == [
            (1, "1 NaN", "0"), (1, "1 NaN", "1")
        ]  # fmt: skip


class TestNames:
    """What is said of the result names the result, not its draft."""

    @pytest.fixture
    def damaged(self, torch):
        data = bytearray(torch.read_bytes())
        with open_path(torch) as table:
            at = wh.byte_places(table["fc.bias"], np.arange(4))
        data[at[0]] ^= 1
        data[at[9]] ^= 8
        torch.write_bytes(data)
        return torch

    def test_findings_name_the_output(self, damaged, tmp_path):
        out = tmp_path / "a:b.pt"
        outcome = repair(damaged, out, **RESET)
        (finding,) = [f for f in outcome.remaining if f.code == "CK001"]
        assert finding.where.startswith(f"{out}:archive/data/")
        assert "ckptdoctor" not in str(outcome.after.findings)

    def test_a_colon_in_the_name_does_not_make_a_cure(self, damaged, tmp_path, monkeypatch):
        monkeypatch.setattr(checksums.Checksums, "restate", lambda *_: None)
        outcome = repair(damaged, tmp_path / "a:b.pt", allow="destructive", trust_hdf5=True)
        assert "CK001" in {f.code for f in outcome.uncured}
        assert "CK001" not in {f.code for f in outcome.cured}
        assert not outcome.done

    def test_a_checksum_that_is_restated_is_cured(self, damaged, tmp_path):
        outcome = repair(damaged, tmp_path / "out.pt", allow="destructive")
        assert "CK001" in {f.code for f in outcome.cured}

    def test_findings_about_a_set_name_its_folder(self, tmp_path):
        index = wh.sharded(tmp_path / "set", torch=True)
        shard = sorted((tmp_path / "set").glob("*-of-*"))[1]
        data = bytearray(shard.read_bytes())
        with open_path(shard) as table:
            data[wh.byte_places(table["b.weight"], np.array([9]))[1]] ^= 3
        shard.write_bytes(data)
        outcome = repair(index, tmp_path / "out", reinit=["b.bias=zeros"])
        (finding,) = [f for f in outcome.after.findings if f.code == "CK001"]
        assert finding.where.startswith(f"{tmp_path}/out/{shard.name}:")

    def test_a_donor_is_not_written_over(self, torch, tmp_path):
        donor = torch_model(tmp_path / "donor.pt", healthy=True)
        os.link(donor, tmp_path / "second.pt")
        before = wh.listing(tmp_path)
        for name in ("donor.pt", "second.pt"):
            with pytest.raises(UsageError, match="is the donor"):
                repair(torch, tmp_path / name, donor=donor, force=True)
        assert wh.listing(tmp_path) == before
        repair(torch, tmp_path / "new.pt", donor=donor)


class TestPlans:
    def test_a_stored_plan_gives_the_bytes_of_the_direct_repair(self, model, tmp_path):
        plan = tmp_path / "plan.json"
        repair(model, dry_run=True, write_plan=plan, **RESET)
        repair(model, tmp_path / "direct", **RESET)
        outcome = repair(model, tmp_path / "planned", from_plan=plan, trust_hdf5=True)
        assert (tmp_path / "planned").read_bytes() == (tmp_path / "direct").read_bytes()
        assert {f.code for f in outcome.cured} == {"BN001"}

    def test_a_plan_names_its_file_by_size_and_hash(self, model, tmp_path):
        repair(model, dry_run=True, write_plan=tmp_path / "p", **RESET)
        made_for = json.loads((tmp_path / "p").read_text())["made_for"]
        assert made_for == {"size": model.stat().st_size, "sha256": sha256(model)}

    def test_a_plan_for_a_set_names_all_its_files_in_order(self, tmp_path):
        index = wh.sharded(tmp_path / "set")
        how = {"reinit": ["b.bias=zeros"]}
        repair(index, dry_run=True, write_plan=tmp_path / "p", **how)
        files = [index, *sorted((tmp_path / "set").glob("*-of-*"))]
        hashes = "".join(map(sha256, files)).encode()
        assert json.loads((tmp_path / "p").read_text())["made_for"] == {
            "size": sum(file.stat().st_size for file in files),
            "sha256": hashlib.sha256(hashes).hexdigest(),
        }
        repair(index, tmp_path / "direct", **how)
        repair(index, tmp_path / "planned", from_plan=tmp_path / "p")
        assert wh.listing(tmp_path / "planned") == wh.listing(tmp_path / "direct")

    def test_a_plan_for_another_file_is_refused(self, model, tmp_path):
        plan = tmp_path / "plan.json"
        repair(model, dry_run=True, write_plan=plan, **RESET)
        data = bytearray(model.read_bytes())
        data[-1] ^= 1
        model.write_bytes(data)
        before = wh.listing(tmp_path)
        with pytest.raises(UsageError):
            repair(model, tmp_path / "out", from_plan=plan, trust_hdf5=True)
        assert wh.listing(tmp_path) == before

    @pytest.mark.parametrize(
        ("what", "value", "said"),
        [
            ("tensor", "gone", "'gone', which is not there"),
            ("indices", [[16, 1]], "expected 1 values of float32"),
            ("dtype", "int32", "found 1 of int32"),
        ],
    )
    def test_a_plan_that_does_not_fit_its_file_is_refused(self, torch, tmp_path, what, value, said):
        plan = tmp_path / "plan.json"
        repair(torch, dry_run=True, write_plan=plan, **RESET)
        document = json.loads(plan.read_text())
        document["changes"][0][what] = value
        plan.write_text(json.dumps(document))
        before = wh.listing(tmp_path)
        with pytest.raises(UsageError, match=said):
            repair(torch, from_plan=plan)
        assert wh.listing(tmp_path) == before

    def test_a_plan_of_another_length_is_refused(self, torch, tmp_path):
        plan = tmp_path / "plan.json"
        repair(torch, dry_run=True, write_plan=plan, **RESET)
        document = json.loads(plan.read_text())
        document["changes"][0] |= {"indices": None}
        plan.write_text(json.dumps(document))
        with pytest.raises(UsageError, match=r"expected 16 values of float32 .* found 1"):
            repair(torch, from_plan=plan)


class TestReceipts:
    @pytest.mark.parametrize("in_place", [False, True])
    def test_the_original_can_be_put_back(self, model, tmp_path, in_place):
        old, receipt = model.read_bytes(), tmp_path / "receipt.json"
        out = None if in_place else tmp_path / "out"
        repair(model, out, in_place=in_place, backup=False, receipt=receipt, **RESET)
        new = model if in_place else out
        assert new.read_bytes() != old
        assert restored(receipt, new.read_bytes()) == old
        (file,) = json.loads(receipt.read_text())["files"]
        assert file["output"] == {
            "path": str(new), "size": len(old), "sha256": sha256(new)
        }  # fmt: skip
        assert file["input"]["sha256"] == hashlib.sha256(old).hexdigest()

    def test_bytes_that_were_cut_can_be_put_back(self, tmp_path):
        path, receipt = safetensors_model(tmp_path / "m"), tmp_path / "receipt.json"
        with path.open("ab") as file:
            file.write(b"\0" * 3_000_000)
        old = path.read_bytes()
        repair(path, tmp_path / "out", receipt=receipt, allow="destructive")
        new = (tmp_path / "out").read_bytes()
        assert len(new) == len(old) - 3_000_000
        assert restored(receipt, new) == old

    def test_of_a_set_each_shard_has_its_own_bytes(self, tmp_path):
        index = wh.sharded(tmp_path / "set")
        for shard in sorted((tmp_path / "set").glob("*-of-*"))[:2]:
            with open_path(shard) as table:
                name = "a.weight" if "a.weight" in table else "b.weight"
                wh.write(shard, [wh.edit(name, np.array([np.nan], "f4"), [1])], tmp_path / "x")
            (tmp_path / "x").replace(shard)
        receipt = tmp_path / "receipt.json"
        repair(
            index, tmp_path / "out", receipt=receipt, reinit=["*weight=zeros"], allow="destructive"
        )
        files = json.loads(receipt.read_text())["files"]
        assert [Path(file["output"]["path"]).parent for file in files] == [tmp_path / "out"] * 2
        for file in files:
            data = bytearray(Path(file["output"]["path"]).read_bytes())
            assert hashlib.sha256(data).hexdigest() == file["output"]["sha256"]
            for run in file["runs"]:
                old = base64.b64decode(run["old"])
                data[run["offset"] : run["offset"] + len(old)] = old
            assert hashlib.sha256(data).hexdigest() == file["input"]["sha256"]

    def test_without_its_receipt_nothing_is_replaced(self, torch, tmp_path, monkeypatch):
        """In place and without a backup, it is the only way back."""
        before, write = wh.listing(tmp_path), Draft.write

        def full(self, offset, data):
            if self.target.suffix == ".json":
                raise self.failed("written", OSError(errno.ENOSPC, "No space left on device"))
            write(self, offset, data)

        monkeypatch.setattr(Draft, "write", full)
        receipt = tmp_path / "receipt.json"
        for how in ({"in_place": True, "backup": False}, {"in_place": True}, {}):
            with pytest.raises(WriteError, match="No space left on device; nothing was changed"):
                repair(torch, receipt=receipt, **how, **RESET)
            assert wh.listing(tmp_path) == before

    def test_a_receipt_that_cannot_be_renamed_is_told_as_that(self, torch, tmp_path, monkeypatch):
        replace = os.replace

        def failing(source, target):
            if str(target).endswith(".json"):
                raise OSError(errno.EIO, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(WriteError, match="file is written, its receipt is not") as caught:
            repair(torch, tmp_path / "out", receipt=tmp_path / "receipt.json", **RESET)
        assert caught.value.where == str(tmp_path / "receipt.json")
        assert wh.names(tmp_path) == ["m.pt", "out"]

    def test_a_new_file_whose_folder_cannot_be_flushed_has_its_receipt(
        self, torch, tmp_path, monkeypatch
    ):
        old, fsync = torch.read_bytes(), os.fsync
        (tmp_path / "papers").mkdir()
        receipt = tmp_path / "papers" / "receipt.json"

        def failing(fd):
            if os.path.samestat(os.fstat(fd), tmp_path.stat()):
                raise OSError(errno.EIO, "Input/output error")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(WriteError, match="the file is complete"):
            repair(torch, in_place=True, backup=False, receipt=receipt, **RESET)
        assert restored(receipt, torch.read_bytes()) == old

    def test_where_the_rename_fails_there_is_no_receipt(self, torch, tmp_path, monkeypatch):
        replace = os.replace

        def failing(source, target):
            if not str(target).endswith(".json"):
                raise OSError(errno.EIO, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(WriteError, match="could not be renamed"):
            repair(torch, tmp_path / "out", receipt=tmp_path / "receipt.json", **RESET)
        assert wh.names(tmp_path) == ["m.pt"]

    def test_a_file_that_is_there_already_gets_its_receipt_too(self, torch, tmp_path):
        repair(torch, tmp_path / "out", **RESET)
        receipt = tmp_path / "receipt.json"
        assert repair(torch, tmp_path / "out", receipt=receipt, **RESET).written.kept
        assert restored(receipt, (tmp_path / "out").read_bytes()) == torch.read_bytes()


class TestPapersInTheWay:
    """A name given twice must not cost the checkpoint."""

    @pytest.mark.parametrize("paper", ["write_plan", "receipt"])
    @pytest.mark.parametrize(
        "name", ["m.pt", "soft", "hard", "donor.pt", "out.pt", "notes.txt", "folder", "a/b", "",
                 "fifo", "a\0b", "x" * 300, "folder/../m.pt", "new.pt", "dangling"]
    )  # fmt: skip
    def test_nothing_else_is_replaced(self, torch, tmp_path, paper, name):
        torch_model(tmp_path / "donor.pt", healthy=True)
        (tmp_path / "soft").symlink_to("m.pt")
        os.link(torch, tmp_path / "hard")
        (tmp_path / "notes.txt").write_text("{}")
        (tmp_path / "out.pt").write_text('{"schema": 1, "kind": "repair-plan"}')
        (tmp_path / "folder").mkdir()
        (tmp_path / "dangling").symlink_to("new.pt")
        os.mkfifo(tmp_path / "fifo")
        before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
        out = tmp_path / ("new.pt" if name in ("new.pt", "dangling") else "out.pt")
        papers = {paper: str(tmp_path / name) if name else "."}
        with pytest.raises(UsageError):
            repair(torch, out, force=True, donor=tmp_path / "donor.pt", **papers, **RESET)
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before

    def test_nor_the_original_that_is_kept(self, torch, tmp_path):
        with pytest.raises(UsageError, match="would replace the checkpoint"):
            repair(torch, in_place=True, receipt=tmp_path / "m.pt.orig", **RESET)
        assert wh.names(tmp_path) == ["m.pt"]

    def test_plan_and_receipt_are_two_files(self, torch, tmp_path):
        both = tmp_path / "p.json"
        with pytest.raises(UsageError):
            repair(torch, write_plan=both, receipt=both, **RESET)
        assert wh.names(tmp_path) == ["m.pt"]
        repair(torch, write_plan=both, dry_run=True, **RESET)
        with pytest.raises(UsageError):
            repair(torch, from_plan=both, receipt=both)
        assert wh.names(tmp_path) == ["m.pt", "p.json"]

    def test_older_papers_and_empty_files_are_replaced(self, torch, tmp_path):
        plan, receipt = tmp_path / "plan.json", tmp_path / "receipt.json"
        plan.touch()
        for _ in range(2):
            repair(torch, write_plan=plan, receipt=receipt, **RESET)
            assert json.loads(plan.read_text())["kind"] == "repair-plan"
            assert json.loads(receipt.read_text())["kind"] == "repair-receipt"

    @pytest.mark.parametrize(
        "text", ['{"schema": 1, "kind": "report"}', '{"kind": "repair-plan"}', " "]
    )
    def test_other_json_is_not_replaced(self, torch, tmp_path, text):
        other = tmp_path / "other.json"
        other.write_text(text)
        with pytest.raises(UsageError, match="neither a plan nor a receipt"):
            repair(torch, write_plan=other, **RESET)
        assert other.read_text() == text

    def test_they_are_as_private_as_the_checkpoint(self, torch, tmp_path):
        plan, receipt = tmp_path / "plan.json", tmp_path / "receipt.json"
        for mode, wanted in ((0o600, 0o600), (0o755, 0o644), (0o640, 0o640)):
            torch.chmod(mode)
            repair(torch, write_plan=plan, receipt=receipt, **RESET)
            assert {p.stat().st_mode & 0o7777 for p in (plan, receipt)} == {wanted}

    @pytest.mark.parametrize(
        ("name", "why"),
        [("a\0b", "embedded null"), ("x" * 300, "File name too long")],
        ids=["NUL", "too long"],
    )
    def test_names_that_no_file_can_have_are_told(self, torch, tmp_path, name, why):
        with pytest.raises(UsageError, match=f"cannot be written: {why}"):
            repair(torch, receipt=f"{tmp_path}/{name}", **RESET)

    def test_devices_are_not_replaced(self, torch):
        with pytest.raises(UsageError, match="neither a plan nor a receipt"):
            repair(torch, receipt="/dev/null", **RESET)
        assert not Path("/dev/null").is_file()

    def test_what_killed_runs_left_is_swept_away(self, torch, tmp_path):
        left = tmp_path / f".plan.json.{wh.dead_process()}-0123abcd.ckptdoctor"
        left.touch()
        repair(torch, write_plan=tmp_path / "plan.json", dry_run=True, **RESET)
        assert wh.names(tmp_path) == ["m.pt", "plan.json"]


class TestCures:
    def test_of_findings_of_one_code_only_those_that_were_meant_are_cured(self, tmp_path):
        """Bytes behind the end go; an odd version stays, and was not to be cured."""
        data = {"0": np.arange(6, dtype="f4").tobytes()}
        import torch_bytes as tb

        tree = {"fc.weight": tb.tensor(tb.storage("0", "FloatStorage", 6), (2, 3))}
        (tmp_path / "m").write_bytes(tb.archive(tree, data, version="99") + bytes(50))
        outcome = repair(tmp_path / "m", tmp_path / "out")
        (cured,) = [f for f in outcome.cured if f.code == "CK005"]
        assert "50 bytes follow the end" in cured.message
        assert outcome.uncured == ()
        (left,) = [f for f in outcome.remaining if f.code == "CK005"]
        assert "version" in left.message

    def test_notes_are_no_remainder(self, tmp_path):
        wh.torch_without_crcs(tmp_path / "m")
        outcome = repair(tmp_path / "m", tmp_path / "out")
        assert "CK001" in {f.code for f in outcome.after.findings}
        assert "CK001" not in {f.code for f in outcome.remaining}

    def test_only_errors_of_some_codes_are_damage(self):
        from ckptdoctor.findings import Severity, container_finding
        from ckptdoctor.measure.scan import Measured, measure
        from ckptdoctor.tensors import TensorTable
        from ckptdoctor.treatment import _damage

        found = tuple(
            container_finding(code, severity, "x", where="m")
            for code in ("CK001", "CK002", "CK003", "CK004", "CK005", "CK006")
            for severity in (Severity.ERROR, Severity.WARNING)
        )
        table = TensorTable(path="m", format="x", infos={}, findings=found)
        none = measure(table)
        assert _damage(table, none) == {"CK001": 1, "CK004": 1, "CK005": 1}
        assert _damage(table, Measured(none.stats, found[:1]))["CK001"] == 2

    def test_what_is_replaced_is_told_in_words(self, tmp_path):
        wh.torch_zip(tmp_path / "m")
        outcome = repair(tmp_path / "m", dry_run=True, reinit=["whole=zeros", "half=ones"])
        whole, half = outcome.details.values()
        values = np.frombuffer(wh.STORAGES["0"], "f4")
        assert whole.was == f"{values.min():.4g}..{values.max():.4g}"
        assert set(whole.aliases) == {"tied", "transposed", "every third", "expanded", "scalar"}
        assert half.aliases == ()
        assert (half.count, half.total) == (5000, 5000)

    def test_a_constant_is_told_once(self, tmp_path):
        made = {"fc.weight": np.full((4, 4), 2.5, "f4"), "b.weight": np.full((4, 4), np.nan, "f4")}
        wh.safetensors(tmp_path / "m", made)
        outcome = repair(tmp_path / "m", dry_run=True, reinit=["*=ones"])
        assert [d.was for d in outcome.details.values()] == ["2.5", "16 NaN"]

    def test_a_tensor_without_elements_is_told_as_that(self, tmp_path):
        from ckptdoctor.details import details_of
        from ckptdoctor.results import Report

        wh.safetensors(tmp_path / "m")
        with open_path(tmp_path / "m") as table:
            empty = wh.edit("a.empty", np.zeros(0, "f4"))
            whole = wh.edit("a.steps", np.arange(5))
            drawn = wh.edit("a.half", lambda: np.zeros(3000, "f2"))
            details = details_of(table, wh.plan_of(empty, whole, drawn), Report(file="m"))
        assert [(d.count, d.total, d.was, d.becomes) for d in details.values()] == [
            (0, 0, "", ""),
            (5, 5, "0..4", "0..4"),
            (3000, 3000, details[2].was, "new values"),
        ]


class TestMovingBytes:
    """Where parts go or data is compressed, what is not edited is compared value by value."""

    def test_tied_weights_change_together_while_the_optimizer_goes(self, tmp_path):
        import torch_bytes as tb

        where = tb.storage("0", "FloatStorage", 6)
        model = {"embed.weight": tb.tensor(where, (2, 3)), "head.weight": tb.tensor(where, (6,))}
        adam = {"state": {0: {"exp_avg": tb.tensor(tb.storage("1", "FloatStorage", 6), (6,))}}}
        data = {"0": np.arange(6, dtype="f4").tobytes(), "1": bytes(24)}
        tree = {"model": model, "optimizer": adam, "epoch": 3}
        (tmp_path / "m").write_bytes(tb.archive(tree, data))
        outcome = repair(
            tmp_path / "m", tmp_path / "out", drop_optimizer=True, reinit=["*embed.weight=ones"]
        )
        assert "optimizer was left out" in outcome.written.moved
        assert (outcome.written.changed, outcome.written.compared) == (-1, 2)
        with open_path(tmp_path / "out") as table:
            assert list(table) == ["model.embed.weight", "model.head.weight"]
            assert table.read("model.head.weight").tolist() == [1] * 6
        assert wh.names(tmp_path) == ["m", "out"]


class TestFailures:
    @pytest.mark.parametrize("call", ["copy_file_range", "write", "fsync", "replace"])
    def test_nothing_is_left(self, model, monkeypatch, call):
        def failing(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        before = wh.listing(model.parent)
        monkeypatch.setattr(os, call, failing)
        for how in ({}, {"in_place": True}, {"receipt": model.with_name("r.json")}):
            with pytest.raises(CkptDoctorError):
                repair(model, bn_reset=True, trust_hdf5=True, **how)
            assert wh.listing(model.parent) == before

    def test_a_result_with_new_damage_is_declined(self, torch, monkeypatch):
        """What the tables do not show, the checksums do."""
        monkeypatch.setattr(checksums, "shift", lambda crc, _: crc)
        before = wh.listing(torch.parent)
        with pytest.raises(WriteError, match=r"the written file is damaged \(CK001\); nothing"):
            repair(torch, **RESET)
        assert wh.listing(torch.parent) == before

    def test_damage_that_was_there_is_no_reason_to_decline(self, torch, tmp_path):
        data = bytearray(torch.read_bytes())
        with open_path(torch) as table:
            at = wh.byte_places(table["fc.bias"], np.arange(4))
            data[at[0]] ^= 1
            data[at[9]] ^= 8
        torch.write_bytes(data)
        outcome = repair(torch, **RESET)
        assert "CK001" in {f.code for f in outcome.after.findings}
        assert {f.code for f in outcome.cured} == {"BN001"}


def test_values_in_words():
    assert in_words(np.array([1, np.inf, -np.inf, np.nan, 3], "f4")) == "1 NaN, 2 Inf, 1..3"
    assert in_words(np.zeros(0)) == ""
    assert in_words(np.array([3 + 4j])) == "5"
    assert in_words(np.zeros(2, "f2,f2")) == "complex"
    assert in_words(np.full(3, 2, "i8")) == "2"
