"""Where a repair may go, decided before any work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ckptdoctor.errors import UsageError, WriteError
from ckptdoctor.sources import FileSource
from ckptdoctor.write.target import choose, default_output, same_bytes


@pytest.fixture
def source(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"model")
    opened = FileSource(tmp_path / "model.pt")
    yield opened
    opened.close()


@pytest.fixture
def chosen(source):
    def choose_it(output=None, **how):
        out = None if output is None else str(output)
        return choose(source.name, (source,), out, **how)

    return choose_it


class TestDefaultNames:
    @pytest.mark.parametrize(
        ("path", "output"),
        [
            ("a/model.pt", "a/model.repaired.pt"),
            ("model.h5", "model.repaired.h5"),
            ("M.Weights.H5", "M.repaired.Weights.H5"),
            ("best.pth.tar", "best.repaired.pth.tar"),
            ("best.pt.tar", "best.repaired.pt.tar"),
            ("net.torchscript.pt", "net.repaired.torchscript.pt"),
            ("epoch.12.ckpt", "epoch.12.repaired.ckpt"),
            ("m.safetensors.index.json", "m.repaired.safetensors.index.json"),
            ("model", "model.repaired"),
            (".hidden", ".hidden.repaired"),
            ("/abs/x.keras", "/abs/x.repaired.keras"),
            ("new\nline.pt", "new\nline.repaired.pt"),
        ],
    )
    def test_of_a_file_it_is_beside_it_with_the_same_ending(self, path, output):
        assert default_output(path) == output

    def test_of_a_set_it_is_a_folder_beside_theirs(self, tmp_path, monkeypatch):
        (tmp_path / "llama").mkdir()
        assert default_output(str(tmp_path / "llama"), folder=True) == f"{tmp_path}/llama.repaired"
        index = tmp_path / "llama" / "m.index.json"
        assert default_output(str(index), folder=True) == f"{tmp_path}/llama.repaired"
        monkeypatch.chdir(tmp_path)
        assert default_output("llama/m.index.json", folder=True) == "llama.repaired"
        monkeypatch.chdir(tmp_path / "llama")
        for path in ("m.index.json", ".", "./m.index.json"):
            assert default_output(path, folder=True) == f"{tmp_path}/llama.repaired"
        (tmp_path / "llama" / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "llama" / "sub")
        assert default_output("..", folder=True) == f"{tmp_path}/llama.repaired"
        assert default_output("/", folder=True) == "/checkpoint.repaired"


class TestOutputs:
    def test_a_name_that_is_free(self, chosen, tmp_path):
        target = chosen(tmp_path / "out.pt")
        assert (target.path, target.shown) == (tmp_path / "out.pt", str(tmp_path / "out.pt"))
        assert (target.fresh, target.exists, target.replaces) == (True, False, False)
        assert (target.backup, target.folder) == (None, False)

    def test_without_a_name_it_is_the_default(self, chosen, tmp_path):
        assert chosen().path == tmp_path / "model.repaired.pt"

    def test_a_name_that_is_taken_is_kept_unless_it_may_be_replaced(self, chosen, tmp_path):
        (tmp_path / "out.pt").touch()
        kept, replaced = chosen(tmp_path / "out.pt"), chosen(tmp_path / "out.pt", force=True)
        assert (kept.fresh, kept.exists) == (False, True)
        assert (replaced.fresh, replaced.exists) == (False, False)

    @pytest.mark.parametrize("name", ["", ".", "..", "a/..", "/", "new/"])
    def test_what_names_no_file_is_refused(self, chosen, name):
        with pytest.raises(UsageError, match="expected the name of a file to write"):
            chosen(name)

    @pytest.mark.parametrize("force", [False, True])
    def test_the_input_is_refused_by_every_name(self, chosen, tmp_path, force):
        os.link(tmp_path / "model.pt", tmp_path / "hard.pt")
        (tmp_path / "folder").symlink_to(tmp_path)
        for name in ("model.pt", "hard.pt", "folder/model.pt", "./model.pt"):
            with pytest.raises(UsageError, match="is the input itself; --in-place replaces it"):
                chosen(tmp_path / name, force=force)

    def test_a_link_to_the_input_is_refused(self, chosen, tmp_path):
        (tmp_path / "soft.pt").symlink_to("model.pt")
        with pytest.raises(UsageError, match=r"is a link to 'model\.pt'"):
            chosen(tmp_path / "soft.pt")
        with pytest.raises(UsageError, match="is the input itself"):
            chosen(tmp_path / "soft.pt", force=True)

    def test_any_file_of_the_input_is_the_input(self, source, tmp_path):
        (tmp_path / "second").touch()
        second = FileSource(tmp_path / "second")
        with pytest.raises(UsageError, match="is the input itself"):
            choose(source.name, (source, second), str(tmp_path / "second"))
        second.close()

    def test_a_link_is_followed_only_when_forced(self, chosen, tmp_path):
        (tmp_path / "real.pt").touch()
        (tmp_path / "soft.pt").symlink_to("real.pt")
        (tmp_path / "dangling.pt").symlink_to("nothing.pt")
        for name in ("soft.pt", "dangling.pt"):
            with pytest.raises(UsageError, match="--force writes to what it points to"):
                chosen(tmp_path / name)
        target = chosen(tmp_path / "soft.pt", force=True)
        assert target.path == Path(os.path.realpath(tmp_path / "real.pt"))
        assert target.shown == str(tmp_path / "soft.pt")
        assert not target.fresh
        assert chosen(tmp_path / "dangling.pt", force=True).fresh

    def test_a_link_that_leads_in_a_circle_is_refused(self, chosen, tmp_path):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(UsageError, match="Too many levels"):
            chosen(tmp_path / "a", force=True)

    @pytest.mark.parametrize("force", [False, True])
    def test_folders_and_devices_are_refused(self, chosen, tmp_path, force):
        (tmp_path / "folder").mkdir()
        with pytest.raises(UsageError, match="is a folder; name a file in it"):
            chosen(tmp_path / "folder", force=force)
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", "/dev/null"):
            with pytest.raises(UsageError, match="is no regular file"):
                chosen(path, force=force)
        assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("a\0b", "embedded null"),
            ("x" * 256, "File name too long"),
            ("y/" * 2048 + "z", "File name too long"),
            ("a\0b/c", "embedded null"),
        ],
        ids=["NUL", "256", "4097", "NUL in a folder"],
    )
    def test_names_that_no_file_can_have_are_refused(self, chosen, tmp_path, name, why):
        with pytest.raises(UsageError, match=f"cannot be written: {why}"):
            chosen(f"{tmp_path}/{name}")

    def test_an_empty_name_is_shown_as_one(self, chosen):
        with pytest.raises(UsageError, match=r"^'': expected the name of a file to write"):
            chosen("")

    def test_a_folder_that_is_not_there_is_named(self, chosen, tmp_path):
        with pytest.raises(UsageError, match=r"no folder '.*/gone'"):
            chosen(tmp_path / "gone" / "out.pt")
        with pytest.raises(UsageError, match=r"no folder '.*/model.pt'"):
            chosen(tmp_path / "model.pt" / "out.pt")

    def test_a_read_only_folder_is_refused(self, chosen, tmp_path, monkeypatch):
        asked = []

        def access(_, mode):
            asked.append(mode)
            return False

        monkeypatch.setattr(os, "access", access)  # for root, every folder takes files
        with pytest.raises(WriteError, match="is read-only; nothing was changed; -o writes"):
            chosen(tmp_path / "out.pt")
        with pytest.raises(WriteError, match="is read-only"):
            chosen(in_place=True)
        assert set(asked) == {os.W_OK | os.X_OK}

    def test_the_store_of_a_cache_is_not_written_to_through_a_link(self, chosen, tmp_path):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "snapshots" / "main").mkdir(parents=True)
        (tmp_path / "blobs" / "ab12").touch()
        link = tmp_path / "snapshots" / "main" / "model.pt"
        link.symlink_to("../../blobs/ab12")
        with pytest.raises(UsageError, match="Hugging Face cache"):
            chosen(link, force=True)


class TestFolders:
    def test_a_new_folder_is_free(self, chosen, tmp_path):
        target = chosen(tmp_path / "new", folder=True)
        assert (target.fresh, target.exists, target.folder) == (True, False, True)
        assert chosen(f"{tmp_path}/new/", folder=True).path == tmp_path / "new"

    def test_a_folder_that_is_there_is_kept_whatever_is_forced(self, chosen, tmp_path):
        (tmp_path / "there").mkdir()
        for force in (False, True):
            assert chosen(tmp_path / "there", folder=True, force=force).exists

    def test_a_file_is_refused(self, chosen, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="a sharded set is written as a folder"):
            chosen(tmp_path / "file", folder=True, force=True)


class TestInPlace:
    def test_the_input_is_replaced_and_kept(self, chosen, tmp_path):
        target = chosen(in_place=True)
        assert target.path == Path(os.path.realpath(tmp_path / "model.pt"))
        assert target.shown == str(tmp_path / "model.pt")
        assert target.backup == target.path.with_name("model.pt.orig")
        assert (target.replaces, target.fresh, target.exists) == (True, False, False)

    def test_without_a_backup_when_asked(self, chosen):
        assert chosen(in_place=True, backup=False).backup is None

    def test_through_a_link_the_file_itself_is_replaced(self, tmp_path):
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "model.pt").touch()
        (tmp_path / "link.pt").symlink_to("store/model.pt")
        source = FileSource(tmp_path / "link.pt")
        target = choose("link.pt", (source,), None, in_place=True)
        assert target.path == Path(os.path.realpath(tmp_path / "store" / "model.pt"))
        assert target.backup.parent.name == "store"
        source.close()

    @pytest.mark.parametrize("output", ["", "x"])
    def test_two_places_are_one_too_many(self, chosen, output):
        with pytest.raises(UsageError, match="either -o or --in-place"):
            chosen(output, in_place=True)

    def test_a_set_is_refused(self, chosen):
        with pytest.raises(UsageError, match="-o FOLDER writes a new set"):
            chosen(in_place=True, folder=True)

    def test_an_original_that_is_kept_already_is_accepted_if_it_is_the_input(
        self, chosen, tmp_path
    ):
        kept = tmp_path / "model.pt.orig"
        kept.write_bytes(b"model")
        assert not chosen(in_place=True).taken
        for other in (b"mode", b"modem", b"models", b""):
            kept.write_bytes(other)
            assert chosen(in_place=True).taken
        assert not chosen(in_place=True, backup=False).taken
        kept.unlink()
        assert not chosen(in_place=True).taken
        kept.mkdir()
        assert chosen(in_place=True).taken

    @pytest.mark.parametrize("to", ["model.pt", "copy.pt", "nothing"])
    def test_a_link_is_no_original(self, chosen, tmp_path, to):
        """It would be a link to the repaired file as soon as that has the name."""
        (tmp_path / "copy.pt").write_bytes(b"model")
        (tmp_path / "model.pt.orig").symlink_to(to)
        assert chosen(in_place=True).taken

    def test_a_second_name_of_the_input_is_an_original(self, chosen, tmp_path):
        """A run that was killed between the link and the rename leaves it."""
        os.link(tmp_path / "model.pt", tmp_path / "model.pt.orig")
        assert not chosen(in_place=True).taken

    @pytest.mark.parametrize(("folder", "refused"), [("blobs", True), ("models", False)])
    def test_the_store_of_a_cache_is_refused(self, tmp_path, folder, refused):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ab12").touch()
        (tmp_path / "snapshots" / "main").mkdir(parents=True)
        link = tmp_path / "snapshots" / "main" / "model.pt"
        link.symlink_to(f"../../{folder}/ab12")
        source = FileSource(link)
        if refused:
            with pytest.raises(UsageError, match="Hugging Face cache"):
                choose(str(link), (source,), None, in_place=True)
        else:
            choose(str(link), (source,), None, in_place=True)
        (tmp_path / "snapshots").rename(tmp_path / "other")
        source.close()
        source = FileSource(tmp_path / "other" / "main" / "model.pt")
        assert choose(source.name, (source,), None, in_place=True).replaces
        source.close()


class TestSameBytes:
    @pytest.mark.parametrize(
        ("other", "same"),
        [(-1, True), (0, False), (1 << 20, False), ((1 << 20) + 4, False), (None, False)],
        ids=["equal", "first byte", "second block", "last byte", "longer"],
    )
    def test_every_byte_counts(self, tmp_path, other, same):
        data = bytearray((1 << 20) + 5)
        (tmp_path / "a").write_bytes(data)
        if other is None:
            data += b"x"
        elif other >= 0:
            data[other] = 1
        (tmp_path / "b").write_bytes(data)
        source = FileSource(tmp_path / "a")
        assert same_bytes(source, tmp_path / "b") is same
        source.close()

    def test_what_cannot_be_read_is_not_the_same(self, source, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        for name in ("gone", "fifo", "."):
            assert not same_bytes(source, tmp_path / name)
