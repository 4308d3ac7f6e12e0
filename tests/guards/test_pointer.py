"""``last_good.json``: which checkpoint to resume from."""

import json

import pytest

from ckptdoctor.errors import FormatError, UsageError
from ckptdoctor.guards import last_good
from ckptdoctor.guards.pointer import NAME, Good, read_pointer, write_pointer


def test_nothing_is_good_before_the_first_save(tmp_path):
    assert last_good(tmp_path) is None
    assert last_good(tmp_path / "missing") is None


@pytest.mark.parametrize("name", ["epoch=3.ckpt", "03/model.keras", "last_good"])
def test_newest_good_checkpoint_is_found_by_its_path(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    write_pointer(tmp_path, Good("older", 1))
    write_pointer(tmp_path, Good(name, 1200), {"step": 1300})
    assert last_good(tmp_path) == str(path)
    assert read_pointer(tmp_path) == Good(name, 1200)
    assert json.loads((tmp_path / NAME).read_text()) == {
        "schema": 1,
        "file": name,
        "step": 1200,
        "first_bad": {"step": 1300},
    }
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644


def test_folder_that_was_moved_still_knows(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.pt").write_bytes(b"x")
    write_pointer(tmp_path / "a", Good("m.pt", 5))
    (tmp_path / "a").rename(tmp_path / "b")
    assert last_good(tmp_path / "b") == str(tmp_path / "b" / "m.pt")


def test_checkpoint_that_is_gone_is_named(tmp_path):
    write_pointer(tmp_path, Good("m.pt", 5))
    told = r"last_good\.json: names 'm\.pt', which is gone; resume from another checkpoint there"
    with pytest.raises(UsageError, match=told):
        last_good(tmp_path)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "\ud800"], ids=["long", "nul", "surrogate"])
def test_name_that_no_disk_takes_is_gone(tmp_path, name):
    write_pointer(tmp_path, Good(name, 5))
    with pytest.raises(UsageError, match="which is gone"):
        last_good(tmp_path)


def test_folder_that_stepped_aside_for_one_that_never_came_is_found(tmp_path):
    (tmp_path / "run.previous-ckptdoctor").mkdir()
    write_pointer(tmp_path, Good("run", 5))
    assert last_good(tmp_path) == str(tmp_path / "run.previous-ckptdoctor")
    (tmp_path / "run").mkdir()
    assert last_good(tmp_path) == str(tmp_path / "run")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"file": "m.pt"}',
        b'{"file": "m.pt", "step": "5"}',
        b'{"file": "m.pt", "step": true}',
        b'{"file": 5, "step": 5}',
        b'{"file": "", "step": 5}',
        b'{"file": ".", "step": 5}',
        b'{"file": "../m.pt", "step": 5}',
        b'{"file": "a/../../m.pt", "step": 5}',
        b'{"file": "/etc/passwd", "step": 5}',
        b'{"file": "m.pt", "step": 5}' + b" " * 65536,
        b"\xff\xfe",
        b"[" * 60000,
        b'{"file": "m.pt", "step": ' + b"9" * 5000 + b"}",
    ],
)
def test_file_that_no_guard_wrote_is_refused(tmp_path, text):
    (tmp_path / NAME).write_bytes(text)
    with pytest.raises(FormatError, match="as a guard writes them; delete it"):
        last_good(tmp_path)


def test_folder_in_its_place_is_one_line_and_ends_no_training(tmp_path, caplog):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        last_good(tmp_path)
    write_pointer(tmp_path, Good("m.pt", 5))
    (record,) = caplog.records
    assert record.message == (
        f"{tmp_path / NAME} may not name m.pt, the newest that is fit: "
        "could not be renamed: Is a directory; nothing was changed"
    )
