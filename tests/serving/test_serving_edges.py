"""Where preflight begins and ends to say something, and what a cache takes and leaves."""

import hashlib
import json
import os
from pathlib import Path

import checkups
import numpy as np
import pytest

from ckptdoctor.api import look
from ckptdoctor.errors import UnfitCheckpointError
from ckptdoctor.findings import Severity
from ckptdoctor.results import Wishes
from ckptdoctor.serving import identity as identities
from ckptdoctor.serving import scanning
from ckptdoctor.serving.cache import VerdictCache, opened
from ckptdoctor.serving.folder import PrivateFolder
from ckptdoctor.serving.gate import preflight
from ckptdoctor.serving.identity import identify
from ckptdoctor.serving.stored import as_document, from_document


@pytest.fixture
def fit(tmp_path):
    return checkups.fit(tmp_path / "m.safetensors")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def line(path, **terms):
    """What the log says of a checkpoint that is unfit."""
    with pytest.raises(UnfitCheckpointError) as caught:
        preflight(path, **terms)
    return str(caught.value)


class TestLine:
    def test_three_layers_are_named_with_nothing_left_over(self, tmp_path):
        state = checkups.fit_state()
        for number in (1, 2, 3):
            state[f"bn{number}.running_var"][:] = np.nan
        text = line(checkups.save_safetensors(tmp_path / "m.safetensors", state))
        assert "(bn1, bn2, bn3); next:" in text

    def test_layer_of_sixty_characters_is_named_whole(self, tmp_path):
        for length, whole in ((60, True), (61, False)):
            state = {f"{'x' * length}.weight": np.full((4, 4), np.nan, np.float32)}
            text = line(checkups.save_safetensors(tmp_path / "m.safetensors", state))
            assert (f"({'x' * length})" in text) is whole

    def test_two_files_that_are_others_are_one_and_one_more(self, tmp_path):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        wanted = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()
        }
        for name in sorted(wanted)[:2]:
            wanted[name] = "0" * 64
        assert "(and 1 more) is not the file expected" in line(folder, expect_sha256=wanted)

    def test_next_command_hashes_the_file_that_is_another(self, tmp_path):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        wanted = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()
        }
        shard = "model-00002-of-00002.safetensors"
        wanted[shard] = "0" * 64
        for path in (folder, folder / "model.safetensors.index.json"):
            text = line(path, expect_sha256=wanted)
            assert text.endswith(f"next: sha256sum {folder / shard}")

    def test_beside_missing_weights_surplus_ones_are_told_and_notes_are_not(self, tmp_path):
        state = {**checkups.fit_state(), "fc.position_ids": np.ones(2, np.float32)}
        file = checkups.save_safetensors(tmp_path / "m.safetensors", state)
        names = [name for name in checkups.fit_state() if name != "fc.bias"]
        text = line(file, expect_keys=[*names, "fc2.bias"])
        assert "is missing: 'fc2.bias'" in text
        assert "does not expect: 'fc.bias'" in text
        assert "position_ids" not in text

    def test_next_command_repeats_names_only_where_they_are_what_is_wrong(self, tmp_path):
        names = tmp_path / "names.txt"
        names.write_text("\n".join(checkups.fit_state()))
        file = checkups.unfit(tmp_path / "m.safetensors")
        inspect = f"next: ckptdoctor inspect --purpose serve {file}"
        assert line(file, expect_keys=list(checkups.fit_state())).endswith(inspect)
        assert line(file, expect_keys=names).endswith(inspect)
        names.write_text("fc9.weight")
        again = "next: ckptdoctor preflight --report text=preflight.txt"
        text = line(checkups.fit(file), expect_keys=names)
        assert text.endswith(f"{again} --expect-keys {names} {file}")
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
        assert line(checkups.fit(tmp_path / "model.safetensors")).endswith(
            f"{again} {tmp_path / 'model.safetensors'}"
        )

    def test_what_is_allowed_to_be_unsafe_is_still_told_what_else_is_wrong(self, tmp_path):
        file = checkups.unsafe(tmp_path / "m.pt")
        text = line(file, allow_unsafe_load=True, expect_keys=["w", "v"])
        assert "1 of the 2 weights that the list expects is missing: 'v'" in text
        assert "os.system" not in text


class TestNothingToServe:
    def test_weights_that_are_missing_are_told_once(self, tmp_path):
        state = {"optimizer.exp_avg": np.ones(4, np.float32)}
        file = checkups.save_safetensors(tmp_path / "m.safetensors", state)
        with pytest.raises(UnfitCheckpointError) as caught:
            preflight(file, expect_keys=["fc.weight"])
        errors = [f for f in caught.value.report.findings if f.severity is Severity.ERROR]
        text = "1 of the 1 weights that the list expects is missing: 'fc.weight'; "
        text += "the file holds no weights at all"
        assert [finding.message for finding in errors] == [text]

    def test_optimizer_may_be_examined_for_any_purpose(self, tmp_path):
        state = {"optimizer.exp_avg": np.ones(4, np.float32)}
        file = checkups.save_safetensors(tmp_path / "m.safetensors", state)
        assert preflight(file, purpose="any").verdict.load == "safe"


class TestFolderOfTheCache:
    @pytest.mark.parametrize("mode", [0o755, 0o711, 0o705])
    def test_one_that_others_may_only_read_is_used_itself(self, fit, cache, mode):
        cache.mkdir()
        cache.chmod(mode)
        assert not preflight(fit, cache=cache).cached
        assert preflight(fit, cache=cache).cached
        assert not list(cache.glob("ckptdoctor-*"))

    @pytest.mark.parametrize("mode", [0o644, 0o755, 0o400])
    def test_entry_that_others_may_only_read_is_believed(self, fit, cache, mode):
        preflight(fit, cache=cache)
        (entry,) = cache.glob("*.json")
        entry.chmod(mode)
        assert preflight(fit, cache=cache).cached

    def test_root_is_a_folder_like_others(self):
        root = Path("/").stat()
        if root.st_uid not in (0, os.getuid()) or root.st_mode & 0o022:
            pytest.skip("others may write to it")
        with PrivateFolder("/") as folder:
            assert folder.path == "/"
            assert folder.read("no-such-entry.json") is None

    @pytest.mark.parametrize(
        ("place", "reason"), [("file", "Not a directory"), ("nul\0", "embedded null")]
    )
    def test_one_that_cannot_be_used_is_told_with_the_reason(
        self, fit, tmp_path, caplog, place, reason
    ):
        (tmp_path / "file").write_text("")
        assert preflight(fit, cache=tmp_path / place).verdict.serve == "fit"
        (record,) = caplog.records
        assert f"the cache cannot be used: {reason}" in record.message

    def test_locks_and_entries_are_for_this_user_alone(self, fit, cache):
        preflight(fit, cache=cache)
        assert {file.stat().st_mode & 0o777 for file in cache.iterdir()} == {0o600}


class TestIdentity:
    def test_shard_that_nothing_names_shows_in_the_working_folder(self, tmp_path, monkeypatch):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        monkeypatch.chdir(folder)
        name = "model.safetensors.index.json"
        assert len(identify(name).beside) == 2
        before = identify(name).key()
        (folder / "model-00003-of-00002.safetensors").write_text("")
        assert identify(name).key() != before

    def test_blanks_in_front_do_not_hide_an_index(self, tmp_path):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        index = folder / "model.safetensors.index.json"
        index.write_text(f"\n  {index.read_text()}")
        assert len(identify(str(index)).files) == 3

    def test_index_beyond_measure_is_not_read(self, tmp_path, monkeypatch):
        folder = checkups.save_set(tmp_path / "set", checkups.fit_state())
        index = folder / "model.safetensors.index.json"
        size = index.stat().st_size
        for limit, files in ((size, 3), (size - 1, 1)):
            monkeypatch.setattr(identities, "_MAX_INDEX", limit)
            assert len(identify(str(index)).files) == files


class TestWaiting:
    def test_verdict_that_is_kept_leaves_no_word_for_those_behind(self, fit, cache):
        preflight(fit, cache=cache)
        assert [lock.read_text() for lock in cache.glob("lock-*")] == [""]

    def test_one_that_gave_up_leaves_no_word_for_those_behind(self, cache):
        key = {"number": 1}
        verdicts = VerdictCache(cache)
        with (
            opened(verdicts, Wishes(), print) as one,
            opened(verdicts, Wishes(), print) as other,
            one.turn(key, 0),
        ):
            with other.turn(key, 0) as found:
                assert found is None
            assert [lock.read_text() for lock in cache.glob("lock-*")] == [""]

    @pytest.mark.parametrize(("ahead", "waits"), [(3, True), (10, False)])
    def test_clock_that_is_a_little_behind_is_waited_for_and_no_other(
        self, fit, cache, monkeypatch, ahead, waits
    ):
        slept = []
        monkeypatch.setattr(scanning.time, "time", lambda: fit.stat().st_ctime - ahead)
        monkeypatch.setattr(scanning.time, "sleep", slept.append)
        preflight(fit, cache=cache)
        assert bool(slept) is waits


class TestStored:
    @pytest.fixture
    def document(self, tmp_path):
        file = checkups.unfit(tmp_path / "m.safetensors")
        return json.dumps(as_document(look(str(file), Wishes())))

    def test_diagnosis_of_a_finding_that_is_not_there_is_refused(self, document):
        made = json.loads(document)
        for at, sound in ((len(made["findings"]) - 1, True), (len(made["findings"]), False)):
            made["diagnoses"][0]["findings"] = [at]
            if sound:
                assert from_document(made, Wishes()).diagnoses[0].findings == (at,)
            else:
                with pytest.raises(ValueError, match="not a stored report"):
                    from_document(made, Wishes())

    def test_counts_are_those_that_a_tensor_can_have(self, document):
        made = json.loads(document)
        made["summary"]["nbytes"] = 2**63 - 1
        assert from_document(made, Wishes()).summary.nbytes == 2**63 - 1
        made["summary"]["nbytes"] = 2**63
        with pytest.raises(ValueError, match="not a stored report"):
            from_document(made, Wishes())
