"""Receipts: enough to put the original back by hand, and nothing that depends on when or where."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.edits import Edit, NumberEdit, Refusal, RepairPlan, Trim
from ckptdoctor.receipt import PIECE, Identity, Replaced, Rewritten, receipt_json, receipt_pieces

PAGE = Path(__file__).parent.parent / "docs" / "repair.md"
COMMON = {"remedy": "bn-reset", "kind": "destructive", "cures": ("BN001",), "title": "variance 1"}
EDIT = Edit(
    tensor="bn.running_var",
    indices=np.array([1, 2, 7]),
    values=np.ones(3, np.float32),
    **COMMON,
)


def identity(path, content):
    return Identity(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def rewritten(old, new, runs=(), **fields):
    return Rewritten(
        input=identity("m.pt", old), output=identity("m.repaired.pt", new), runs=runs, **fields
    )


def read(*files, plan=None):
    return json.loads(receipt_json(plan or RepairPlan(), files))


def snippet():
    """The lines of the page that put an original back."""
    (lines,) = re.findall(r"<!-- restore -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return lines


def put_back(folder, receipt, repaired):
    """What is in the original after the page's lines ran."""
    (folder / "receipt.json").write_text(receipt, encoding="utf-8")
    (folder / "model.repaired.pt").write_bytes(repaired)
    text = snippet()
    for name in ("receipt.json", "model.repaired.pt", "model.original.pt"):
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', repr(str(folder / name)))
    exec(compile(text, str(PAGE), "exec"), {})  # noqa: S102  (the page is ours)
    return (folder / "model.original.pt").read_bytes()


@st.composite
def repairs(draw):
    """A file, runs of it that were overwritten, and perhaps a tail that was cut off."""
    old = draw(st.binary(min_size=1, max_size=60))
    size = draw(st.integers(0, len(old)))
    new, runs, at = bytearray(old[:size]), [], 0
    while at < size and draw(st.booleans()):
        start = draw(st.integers(at, size - 1))
        stop = draw(st.integers(start + 1, size))
        now = draw(st.binary(min_size=stop - start, max_size=stop - start))
        runs.append((start, old[start:stop], now))
        new[start:stop] = now
        at = stop
    if size < len(old):
        runs.append((size, old[size:], b""))
    return old, bytes(new), runs


class TestBytes:
    @settings(max_examples=60, deadline=None)
    @given(repair=repairs())
    def test_original_comes_back_to_the_last_byte(self, repair, tmp_path_factory):
        old, new, runs = repair
        text = receipt_json(RepairPlan(), [rewritten(old, new, runs)])
        assert put_back(tmp_path_factory.mktemp("x"), text, new) == old

    @pytest.mark.parametrize("extra", [0, 1, PIECE - 1], ids=["exact", "one-more", "nearly-two"])
    def test_long_runs_are_told_in_pieces(self, tmp_path, extra):
        old = np.random.default_rng(0).bytes(PIECE + extra + 9)
        new = old[:4] + bytes(PIECE + extra) + old[-5:]
        runs = [(4, old[4:-5], new[4:-5])]
        files = [rewritten(old, new, runs)]
        told = read(*files)["files"][0]["runs"]
        assert [run["offset"] for run in told] == ([4] if not extra else [4, 4 + PIECE])
        assert b"".join(base64.b64decode(run["new"]) for run in told) == new[4:-5]
        assert put_back(tmp_path, receipt_json(RepairPlan(), files), new) == old

    def test_cut_tail_is_told_in_pieces_too(self, tmp_path):
        old = np.random.default_rng(1).bytes(PIECE + 20)
        files = [rewritten(old, old[:10], [(10, old[10:], b"")])]
        told = read(*files)["files"][0]["runs"]
        assert [(run["offset"], run["new"]) for run in told] == [(10, ""), (10 + PIECE, "")]
        assert put_back(tmp_path, receipt_json(RepairPlan(), files), old[:10]) == old

    def test_pieces_need_no_padding(self):
        assert PIECE % 3 == 0
        assert PIECE == 768 << 10

    def test_page_refuses_a_file_that_is_not_the_repaired_one(self, tmp_path):
        text = receipt_json(RepairPlan(), [rewritten(b"abc", b"axc", [(1, b"b", b"x")])])
        with pytest.raises(SystemExit, match=r"model\.repaired\.pt is not the file of the receipt"):
            put_back(tmp_path, text, b"ayc")


class TestDocument:
    def test_receipt_says_what_it_is(self):
        document = read(rewritten(b"abc", b"axcd"))
        assert list(document) == [
            "schema", "kind", "tool", "made_for", "changes", "refusals", "warnings", "files",
        ]  # fmt: skip
        assert (document["schema"], document["kind"]) == (1, "repair-receipt")
        assert document["tool"]["name"] == "ckptdoctor"
        (file,) = document["files"]
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert file["input"] == {"path": "m.pt", "size": 3, "sha256": sha256}
        assert (file["output"]["path"], file["output"]["size"]) == ("m.repaired.pt", 4)
        assert (file["moved"], file["runs"], file["values"]) == ("", [], [])

    def test_plan_is_told_without_values(self):
        number = NumberEdit(name="lr", before=np.nan, value=0.1, **COMMON)
        plan = RepairPlan(
            changes=(EDIT, number, Trim(size=3, **COMMON)),
            refusals=(Refusal(target="w", reason="lost"),),
            warnings=("it costs",),
            made_for={"size": 3, "sha256": "0" * 64},
        )
        document = read(plan=plan)
        elements, changed, cut = document["changes"]
        assert elements == {
            "type": "elements", "remedy": "bn-reset", "class": "destructive", "cures": ["BN001"],
            "title": "variance 1", "tensor": "bn.running_var", "indices": [[1, 2], [7, 1]],
        }  # fmt: skip
        assert (changed["before"], changed["value"], cut["size"]) == ("nan", 0.1, 3)
        assert document["refusals"][0]["reason"] == "lost"
        assert document["warnings"] == ["it costs"]
        assert document["made_for"]["size"] == 3

    def test_moved_values_are_told_by_tensor(self):
        old, new = np.array([np.nan, 2, 3], ">f4"), np.ones(3, np.float32)
        values = [
            Replaced(tensor="bn.running_var", indices=EDIT.indices, old=old, new=new),
            Replaced(tensor="w", indices=None, old=new, new=new),
        ]
        (file,) = read(rewritten(b"a", b"b", values=values, moved="compressed"))["files"]
        first, second = file["values"]
        assert (file["moved"], first["tensor"], first["dtype"]) == (
            "compressed", "bn.running_var", "float32",
        )  # fmt: skip
        assert first["indices"] == [[1, 2], [7, 1]]
        assert second["indices"] is None
        told = np.frombuffer(base64.b64decode(first["old"]), "<f4")
        assert np.isnan(told[0])
        assert told[1:].tolist() == [2, 3]
        assert base64.b64decode(first["new"]) == new.tobytes()

    def test_every_shard_has_its_entry(self):
        shards = [
            rewritten(b"a", b"b", [(0, b"a", b"b")]),
            rewritten(b"c", b"d", [(0, b"c", b"d")]),
        ]
        told = read(*shards)["files"]
        assert [base64.b64decode(file["runs"][0]["old"]) for file in told] == [b"a", b"c"]

    def test_same_repair_gives_the_same_receipt(self):
        one, other = (
            receipt_json(RepairPlan(changes=(EDIT,)), [rewritten(b"ab", b"xb", [(0, b"a", b"x")])])
            for _ in range(2)
        )
        assert one == other
        assert one.isascii()
        assert one.endswith("]}\n")

    def test_runs_are_taken_one_by_one(self):
        taken = []

        def runs():
            for offset in range(9):
                taken.append(offset)
                yield offset, b"a", b"b"

        pieces = receipt_pieces(RepairPlan(), iter([rewritten(b"a" * 9, b"b" * 9, runs())]))
        assert any('"offset": 0,' in piece for piece in pieces)
        assert taken == [0]

    def test_hostile_names_are_escaped_and_come_back(self):
        path = "a\x1b\n\udcff"
        file = Rewritten(input=identity(path, b""), output=identity(path, b""))
        assert "\x1b" not in receipt_json(RepairPlan(), [file])
        assert read(file)["files"][0]["input"]["path"] == path
