"""Which bytes a verdict is about: what moves an identity, and what leaves it alone."""

import hashlib
import json
import os
import time
from dataclasses import replace

import checkups
import pytest

from ckptdoctor.errors import ChangedError, CkptDoctorError, UsageError
from ckptdoctor.serving import identity as module
from ckptdoctor.serving.digests import digests_of
from ckptdoctor.serving.identity import FileState, Identity, identify, sha256_of, unsettled
from ckptdoctor.sources import FileSource


@pytest.fixture
def file(tmp_path):
    return checkups.fit(tmp_path / "m.safetensors")


@pytest.fixture
def folder(tmp_path):
    return checkups.save_set(tmp_path / "set", checkups.fit_state())


def put_back(path, change, at=-1):
    """Change one byte, and restore size and modification time."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[at] = change(data[at])
    with path.open("r+b") as stream:
        stream.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert after.st_ino == before.st_ino


class TestFile:
    def test_untouched_file_keeps_it(self, file):
        assert identify(str(file)) == identify(str(file))
        file.read_bytes()
        assert identify(str(file)).key() == identify(str(file)).key()

    def test_changed_byte_shows_with_size_and_time_restored(self, file):
        before = identify(str(file))
        time.sleep(0.02)
        put_back(file, lambda byte: byte ^ 1)
        after = identify(str(file))
        assert after.key() != before.key()
        assert replace(after.files[0], ctime=0, sample="") == replace(
            before.files[0], ctime=0, sample=""
        )

    @pytest.mark.parametrize(
        "field", ["name", "inode", "size", "mtime", "ctime", "sample", "sha256"]
    )
    def test_every_part_counts(self, file, field):
        found = identify(str(file), content=field == "sha256")
        state = found.files[0]
        other = replace(state, **{field: "x" if isinstance(getattr(state, field), str) else 1})
        assert replace(found, files=(other,)).key() != found.key()

    def test_path_counts_as_reports_repeat_it(self, file, monkeypatch):
        monkeypatch.chdir(file.parent)
        assert identify(file.name).key() != identify(str(file)).key()
        assert identify(file.name).files == identify(str(file)).files

    def test_content_alone_counts_where_all_of_it_is_hashed(self, file):
        before = identify(str(file), content=True)
        assert before.files[0].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        copy = file.with_name("copy")
        copy.write_bytes(file.read_bytes())
        os.utime(copy, (1, 1))
        copy.replace(file)
        after = identify(str(file), content=True)
        assert after.files[0].inode != before.files[0].inode
        assert after.key() == before.key()
        assert after.unhashed() != before.unhashed()
        assert after.unhashed() == identify(str(file))

    def test_key_is_plain_data(self, folder):
        for content in (False, True):
            key = identify(str(folder), content=content).key()
            assert json.loads(json.dumps(key)) == key

    def test_no_such_file(self, tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            identify(str(tmp_path / "gone"))
        with pytest.raises(CkptDoctorError):
            identify(str(tmp_path))

    def test_fifo_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CkptDoctorError, match="not a regular file"):
            identify(str(tmp_path / "pipe"))

    def test_file_that_is_written_to_meanwhile(self, file, monkeypatch):
        def writing(*_):
            file.write_bytes(b"x")
            return ""

        monkeypatch.setattr(module, "_hashed", writing)
        with pytest.raises(ChangedError, match="changed while it was being read"):
            identify(str(file))


class TestSamples:
    SIZE = 8 << 20

    def sample(self, path, at, data=b"x"):
        content = bytearray(self.SIZE)
        content[at : at + len(data)] = data
        path.write_bytes(content)
        return identify(str(path)).files[0].sample

    def test_ends_and_windows_are_read_and_no_more(self, tmp_path):
        path = tmp_path / "big"
        plain = self.sample(path, 0, b"\0")
        end, window = 65536, (self.SIZE - 4096) * 3 // 33
        seen = (0, end - 1, self.SIZE - end, self.SIZE - 1, window, window + 4095)
        unseen = (end, window - 1, window + 4096, self.SIZE - end - 1)
        for at in seen:
            assert self.sample(path, at) != plain, at
        for at in unseen:
            assert self.sample(path, at) == plain, at

    def test_every_window_is_read(self, tmp_path):
        path = tmp_path / "big"
        plain = self.sample(path, 0, b"\0")
        starts = [(self.SIZE - 4096) * number // 33 for number in range(1, 33)]
        assert all(self.sample(path, at) != plain for at in starts)

    @pytest.mark.parametrize("at", [0, 65536, 100_000, 131072, 262143])
    def test_small_file_is_taken_whole(self, tmp_path, at):
        path = tmp_path / "small"
        content = bytearray(262144)
        path.write_bytes(content)
        plain = identify(str(path)).files[0].sample
        assert plain == hashlib.sha256(content).hexdigest()
        content[at] = 1
        path.write_bytes(content)
        assert identify(str(path)).files[0].sample != plain

    def test_file_beyond_that_is_not(self, tmp_path):
        path = tmp_path / "larger"
        path.write_bytes(bytes(262145))
        assert identify(str(path)).files[0].sample != hashlib.sha256(bytes(262145)).hexdigest()

    @pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
    def test_hash_of_all_is_that_of_sha256sum(self, tmp_path, size):
        path = tmp_path / "file"
        path.write_bytes(os.urandom(size))
        source = FileSource(path)
        assert sha256_of(source) == hashlib.sha256(path.read_bytes()).hexdigest()
        source.close()


class TestSet:
    def test_folder_leads_to_index_and_shards(self, folder):
        found = identify(str(folder))
        names = [file.name for file in found.files]
        assert names == [
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
        index = identify(str(folder / names[0]))
        assert index.files == found.files

    @pytest.mark.parametrize(
        "name", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"]
    )
    def test_change_of_any_file_shows(self, folder, name):
        before = identify(str(folder)).key()
        time.sleep(0.02)
        put_back(folder / name, lambda byte: byte ^ 1)
        assert identify(str(folder)).key() != before

    def test_shard_that_goes_shows(self, folder):
        before = identify(str(folder))
        (folder / "model-00002-of-00002.safetensors").unlink()
        after = identify(str(folder))
        assert after.absent == ("model-00002-of-00002.safetensors",)
        assert after.key() != before.key()

    def test_shard_that_nothing_names_shows(self, folder):
        before = identify(str(folder)).key()
        (folder / "notes.txt").write_text("")
        assert identify(str(folder)).key() == before
        (folder / "model-00003-of-00002.safetensors").write_text("")
        assert identify(str(folder)).key() != before

    def test_other_checkpoint_that_a_finding_tells_of_shows(self, folder):
        before = identify(str(folder)).key()
        (folder / "pytorch_model.bin").write_text("")
        assert identify(str(folder)).key() != before

    @pytest.mark.parametrize(
        "index",
        ["{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[]", "{}", '{"a": ' * 100_000,
         '{"weight_map": {"a": "../x", "b": "\\u0000", "c": ""}}'],
        ids=["cut", "number", "name", "list", "empty", "deep", "names"],
    )  # fmt: skip
    def test_index_that_is_none_is_a_file(self, tmp_path, index):
        path = tmp_path / "m.index.json"
        path.write_text(index)
        assert len(identify(str(path)).files) == 1
        assert identify(str(path)).absent == ()

    def test_names_without_measure_are_not_looked_for(self, tmp_path):
        path = tmp_path / "m.index.json"
        path.write_text(json.dumps({"weight_map": {f"{n}": f"f{n}" for n in range(1000)}}))
        assert len(identify(str(path)).absent) == 1000
        path.write_text(json.dumps({"weight_map": {f"{n}": f"f{n}" for n in range(1001)}}))
        assert identify(str(path)).absent == ()

    def test_shard_of_another_kind_is_absent(self, folder):
        shard = folder / "model-00002-of-00002.safetensors"
        shard.unlink()
        os.mkfifo(shard)
        assert identify(str(folder)).absent == (shard.name,)


class TestHolds:
    def test_files_that_were_read_are_these(self, folder):
        found = identify(str(folder))
        sources = [FileSource(path) for path in folder.iterdir()]
        assert found.holds(sources)
        assert found.holds(sources[:1])
        for part in ("inode", "size", "mtime"):
            old = sources[0].identity
            sources[0].identity = replace(old, **{part: 1})
            assert not found.holds(sources), part
            sources[0].identity = old
        sources[0].temporary = True
        sources[0].identity = replace(sources[0].identity, inode=1)
        assert found.holds(sources)
        for source in sources:
            source.close()


class TestSettling:
    def seconds(self, *ctimes, now):
        files = tuple(FileState("m", 1, 1, 0, int(ctime * 1e9), "") for ctime in ctimes)
        return unsettled(Identity("m", files), now)

    def test_fine_clock_ticks_a_hundredth(self):
        assert self.seconds(100.5, now=100.5) == pytest.approx(0.1)
        assert self.seconds(100.5, now=100.56) == pytest.approx(0.04)
        assert self.seconds(100.5, now=100.61) == 0

    def test_whole_seconds_are_of_a_coarse_clock(self):
        assert self.seconds(100, now=100) == pytest.approx(2)
        assert self.seconds(100, now=101.5) == pytest.approx(0.5)
        assert self.seconds(100, now=102.01) == 0

    def test_youngest_file_decides(self):
        assert self.seconds(90.5, 100.5, 95.5, now=100.5) == pytest.approx(0.1)

    def test_time_in_the_future_is_far(self):
        assert self.seconds(200.5, now=100.5) == pytest.approx(100.1)

    def test_clock_of_the_machine_is_asked(self, file):
        assert 0 <= unsettled(identify(str(file))) <= 2
        time.sleep(0.15)
        found = identify(str(file))
        if found.files[0].ctime % 10**9:
            assert unsettled(found) == 0


class TestDigests:
    def test_digests_are_of_the_same_bytes(self, folder):
        found = identify(str(folder))
        digests = digests_of(str(folder), found)
        assert digests == {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()
        }
        assert digests_of(str(folder), identify(str(folder), content=True)) == digests
        time.sleep(0.02)
        put_back(folder / "model-00002-of-00002.safetensors", lambda byte: byte ^ 1)
        with pytest.raises(ChangedError):
            digests_of(str(folder), found)
