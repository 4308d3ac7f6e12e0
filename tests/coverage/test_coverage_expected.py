"""A checkpoint against the names that the caller expects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patients import save_torch, state

from ckptdoctor.coverage import coverage_of, expectation_digest
from ckptdoctor.coverage.exact import _matches
from ckptdoctor.errors import UsageError
from ckptdoctor.findings import Severity
from ckptdoctor.formats import open_path

NAMES = ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight"]


def told(findings):
    return [(finding.severity.name, finding.message) for finding in findings]


def test_the_same_names_are_nothing_to_tell(table_of):
    assert coverage_of(table_of(NAMES), "m", NAMES) == ()
    assert coverage_of(table_of(NAMES), "m", tuple(reversed(NAMES))) == ()


def test_a_missing_weight_is_an_error_and_a_surplus_one_a_warning(table_of):
    found = coverage_of(table_of([*NAMES[1:], "extra.bias"]), "m", NAMES)
    assert told(found) == [
        ("ERROR", "1 of the 6 weights that the list expects is missing: 'conv.weight'"),
        ("WARNING", "1 weight that the list does not expect: 'extra.bias'"),
    ]
    assert [finding.code for finding in found] == ["CK003", "CK003"]
    assert dict(found[0].measured) == {"missing": ["conv.weight"], "count": 1}
    assert dict(found[1].measured) == {"surplus": ["extra.bias"], "count": 1}
    assert found[0].role == "container"


def test_several_are_counted(table_of):
    found = coverage_of(table_of([*NAMES[2:], "a.bias", "b.bias"]), "m", NAMES)
    assert told(found) == [
        (
            "ERROR",
            "2 of the 6 weights that the list expects are missing: 'conv.weight', 'bn.weight'",
        ),
        ("WARNING", "2 weights that the list does not expect: 'a.bias', 'b.bias'"),
    ]


def test_where_nothing_fits_a_name_of_the_file_is_shown(table_of):
    found = coverage_of(table_of(["layer1.w"]), "m", ["encoder.kernel"])
    assert found[0].message.endswith("; the file's own names are like 'layer1.w'")


def test_a_name_given_twice_counts_once(table_of):
    found = coverage_of(table_of(NAMES), "m", [*NAMES, "gone", "gone"])
    assert told(found) == [("ERROR", "1 of the 7 weights that the list expects is missing: 'gone'")]


def test_what_frameworks_make_anew_is_a_note_on_either_side(table_of):
    counter = "bn.num_batches_tracked"
    found = coverage_of(table_of(NAMES), "m", [*NAMES, counter])
    text = f"1 that the list expects and loaders make anew is not there: '{counter}'"
    assert told(found) == [("NOTE", text)]
    found = coverage_of(table_of([*NAMES, counter, "emb.position_ids"]), "m", NAMES)
    text = "2 weights that the list does not expect and loaders ignore on purpose: "
    assert told(found) == [("NOTE", f"{text}'{counter}', 'emb.position_ids'")]


def test_what_a_name_only_contains_is_not_passed_by(table_of):
    found = coverage_of(table_of(NAMES), "m", [*NAMES, "xnum_batches_tracked"])
    assert found[0].severity is Severity.ERROR


def test_a_star_stands_for_anything(table_of):
    assert coverage_of(table_of(NAMES), "m", ["conv.*", "bn.*", "*.weight"]) == ()
    found = coverage_of(table_of(NAMES), "m", ["bn.*", "head.*"])
    assert told(found) == [
        ("ERROR", "1 of the 2 weights that the list expects is missing: 'head.*'"),
        ("WARNING", "2 weights that the list does not expect: 'conv.weight', 'fc.weight'"),
    ]


@pytest.mark.parametrize(
    ("name", "pattern", "matches"),
    [
        ("abc", "abc*", True), ("abc", "*abc", True), ("abc", "a*c", True), ("ab", "ab*b", False),
        ("abab", "ab*ab", True), ("axbxc", "a*b*c", True), ("acb", "a*b*c", False), ("a", "*", True),
        ("aXbYb", "a*b*b", True), ("aXb", "a*b*b", False), ("abc", "b*", False),
    ],
)  # fmt: skip
def test_a_pattern_means_its_parts_in_order(name, pattern, matches, table_of):
    missing = [f for f in coverage_of(table_of([name]), "m", [pattern]) if f.severity == 3]
    assert (not missing) is matches


@given(st.text("ab.*", min_size=1, max_size=8), st.text("ab.", max_size=10))
@settings(max_examples=200)
def test_patterns_match_as_regular_expressions_do(pattern, name):
    import re

    wanted = ".*".join(re.escape(part) for part in pattern.split("*"))
    if "*" in pattern:
        starts = name.startswith(pattern.split("*")[0])
        got = starts and _matches(name, pattern.split("*"))
        assert got == (re.fullmatch(wanted, name) is not None)


def test_whole_layers_are_said_once(table_of):
    inner = ["attn.weight", "attn.bias", "mlp.weight"]
    names = [f"h.{i}.{each}" for i in range(9) for each in inner]
    left = [name for name in names if name[2] not in "456"]
    [found] = coverage_of(table_of(left), "m", names)
    assert found.message.endswith(": 'h.4' to 'h.6': all 9 weights")
    left = [name for name in names if name[2] != "5"]
    [found] = coverage_of(table_of(left), "m", names)
    assert found.message.endswith(": 'h.5': all 3 weights")
    left = [name for name in names if name[2] not in "58"]
    [found] = coverage_of(table_of(left), "m", names)
    assert found.message.endswith(": 'h.5': all 3 weights, 'h.8': all 3 weights")


def test_the_same_weight_of_three_layers_is_said_once(table_of):
    names = [f"h.{i}.{each}" for i in range(4) for each in ("a", "b")]
    [found] = coverage_of(
        table_of([n for n in names if n not in ("h.1.b", "h.2.b", "h.3.b")]), "m", names
    )
    assert found.message.endswith(": 'h.*.b' in 3 layers")
    [found] = coverage_of(table_of([n for n in names if n not in ("h.1.b", "h.2.b")]), "m", names)
    assert found.message.endswith(": 'h.1.b', 'h.2.b'")


def test_many_names_are_capped(table_of):
    gone = [f"part{letter}.weight" for letter in "abcdefghij"]
    [found] = coverage_of(table_of(NAMES), "m", [*NAMES, *gone])
    shown = ", ".join(repr(name) for name in gone[:6])
    assert found.message.endswith(f"missing: {shown} and 4 more")
    [found] = coverage_of(table_of(NAMES), "m", [*NAMES, *gone[:6]])
    assert "more" not in found.message
    [found] = coverage_of(table_of(NAMES), "m", [*NAMES, *(f"p{i}a.w" for i in range(600))])
    assert (len(found.measured["missing"]), found.measured["count"]) == (500, 600)


def test_hostile_names_are_escaped_and_cut(table_of):
    names = ["a\x1b[31m\n", "b" * 10_000, "\udc80"]
    [found] = coverage_of(table_of(NAMES), "m", [*NAMES, *names])
    assert found.message.isprintable()
    assert len(found.message) < 400
    assert len(found.measured["missing"][1]) == 500


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.encoder."])
def test_a_prefix_of_the_file_is_one_error_with_its_cure(prefix, table_of):
    [found] = coverage_of(table_of([prefix + name for name in NAMES]), "m", NAMES)
    text = f"all 6 names start with '{prefix}', which the list does not expect: a plain "
    text += "load_state_dict finds none of them; remove it from each: "
    assert told([found]) == [("ERROR", f"{text}name.removeprefix('{prefix}')")]
    assert found.measured["count"] == 6


def test_a_prefix_of_the_expectation_is_one_error_with_its_cure(table_of):
    [found] = coverage_of(table_of(NAMES), "m", [f"model.{name}" for name in NAMES])
    text = "6 names lack the 'model.' in front that the list expects: a plain load_state_dict "
    text += "finds none of them; add it to each: {'model.' + name: value}"
    assert told([found]) == [("ERROR", text)]


def test_compiled_names_are_told_wherever_the_word_stands(table_of):
    for front in ("", "x."):
        names = [f"{front}_orig_mod.{name}" for name in NAMES]
        [found] = coverage_of(table_of(names), "m", [front + name for name in NAMES])
        assert "all 6 names hold '_orig_mod.'" in found.message
        assert found.message.endswith("name.replace('_orig_mod.', '')")
    found = coverage_of(table_of([f"module._orig_mod.{name}" for name in NAMES]), "m", NAMES)
    assert len(found) == 1
    assert "name.removeprefix('module." in found[0].message


def test_behind_a_prefix_the_rest_is_still_named(table_of):
    names = [f"module.{name}" for name in [*NAMES[1:], "new.bias"]]
    found = coverage_of(table_of(names), "m", NAMES)
    assert [(f.severity.name, f.measured.get("count")) for f in found] == [
        ("ERROR", 5), ("ERROR", 1), ("WARNING", 1),
    ]  # fmt: skip
    assert "5 names start with 'module.'" in found[0].message
    assert not found[0].message.startswith("all")
    assert "'conv.weight'" in found[1].message


def test_one_name_that_ends_alike_is_no_prefix(table_of):
    names = ["x.fc.weight", "other.a", "other.b"]
    found = coverage_of(table_of(names), "m", ["fc.weight", "p", "q"])
    assert all("start with" not in finding.message for finding in found)


def test_the_key_that_the_weights_lie_under_is_only_a_note(table_of):
    names = [("state_dict", name) for name in NAMES]
    [found] = coverage_of(table_of(names, format="torch-zip"), "m", NAMES)
    text = "all 6 names of the list lie under the key 'state_dict' of the file"
    assert told([found]) == [("NOTE", text)]


def test_only_the_models_weights_count_as_surplus(table_of):
    names = [*NAMES, "optimizer.state.0.exp_avg"]
    table = table_of(names, roles={names[-1]: "optimizer"})
    assert coverage_of(table, "m", NAMES) == ()


def test_of_a_file_with_averages_alone_they_are_the_weights(table_of):
    table = table_of([*NAMES, "more"], roles=dict.fromkeys([*NAMES, "more"], "ema"))
    [found] = coverage_of(table, "m", NAMES)
    assert "'more'" in found.message


def test_of_a_file_without_weights_all_are_missing(table_of):
    state = table_of(["state.0.exp_avg"], roles={"state.0.exp_avg": "optimizer"})
    for table in (table_of([]), state):
        [(severity, text)] = told(coverage_of(table, "m", NAMES))
        assert severity == "ERROR"
        assert text.startswith("6 of the 6 weights that the list expects are missing")
        assert text.endswith("; the file holds no weights at all")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.json", json.dumps(NAMES)),
        ("keys.json", json.dumps({name: [2, 2] for name in NAMES})),
        ("model.safetensors.index.json", json.dumps({"weight_map": dict.fromkeys(NAMES, "m")})),
        ("keys.txt", "# of the model\n\n" + "\n".join(f" {name} " for name in NAMES)),
        ("keys.txt", "\ufeff" + json.dumps(NAMES)),
    ],
    ids=["JSON list", "JSON object", "index", "text lines", "JSON with a mark in front"],
)
def test_names_may_come_from_a_file(name, text, tmp_path: Path, table_of):
    (tmp_path / name).write_text(text)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert coverage_of(table_of(NAMES), "m", path) == ()
        [found] = coverage_of(table_of(NAMES[1:]), "m", path)
        assert "1 of the 6 weights that " + name + " expects" in found.message


def test_another_checkpoint_gives_names_and_shapes(tmp_path: Path):
    other = save_torch(tmp_path / "other.pt", {"model": state(), "epoch": 3})
    same = save_torch(tmp_path / "same.pt", {"model": state()})
    with open_path(same) as table:
        assert coverage_of(table, str(same), other) == ()
    changed = {**state(), "fc.bias": np.zeros(9, np.float32), "fc.weight": np.zeros((9, 16), "f4")}
    third = save_torch(tmp_path / "third.pt", {"model": changed})
    with open_path(third) as table:
        [found] = coverage_of(table, str(third), other)
    text = "2 weights with another shape than in other.pt, first 'model.fc.weight': [9, 16] "
    assert told([found]) == [("ERROR", f"{text}instead of [4, 16]")]
    assert found.measured["misshaped"] == ["model.fc.weight", "model.fc.bias"]


def test_shapes_are_compared_behind_a_prefix_too(tmp_path: Path, table_of):
    other = save_torch(tmp_path / "other.pt", {"fc.weight": np.zeros((4, 16), np.float32)})
    table = table_of(["module.fc.weight"], shapes={"module.fc.weight": (9, 16)})
    found = coverage_of(table, "m", other)
    assert [f.severity.name for f in found] == ["ERROR", "ERROR"]
    assert "[9, 16] instead of [4, 16]" in found[1].message


def test_a_star_in_a_checkpoints_name_is_a_star(tmp_path: Path, table_of):
    other = save_torch(tmp_path / "other.pt", {"a*": np.zeros((2, 2), np.float32)})
    [missing, _] = coverage_of(table_of(["abc"]), "m", other)
    assert missing.severity is Severity.ERROR


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "found none"),
        (b"{}", "found none"),
        (b"\n# nothing\n", "found none"),
        (b'["a", 3]', "something else among them"),
        (b'["a", ""]', "something else among them"),
        (b"[1, 2", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[" + b"9" * 5000 + b"]", "no JSON"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_without_names_is_refused(content, says, tmp_path: Path, table_of):
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        coverage_of(table_of(NAMES), "m", path)


@pytest.mark.parametrize("keys", [[], [""], ["a", 1]])
def test_a_list_without_names_is_refused(keys, table_of):
    with pytest.raises(UsageError, match="expected names"):
        coverage_of(table_of(NAMES), "m", keys)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, table_of):
    with pytest.raises(UsageError, match="No such file"):
        coverage_of(table_of(NAMES), "m", str(tmp_path / "gone.json"))
    with pytest.raises(UsageError, match="no name of a file"):
        coverage_of(table_of(NAMES), "m", "a\0b")


def test_a_checkpoint_that_cannot_be_read_says_whose_it_is(tmp_path: Path, table_of):
    path = tmp_path / "other.pt"
    path.write_bytes(b"PK\3\4" + b"\0\xff" * 200)
    with pytest.raises(
        UsageError, match="the names to expect cannot be read: the archive breaks off"
    ):
        coverage_of(table_of(NAMES), "m", path)


def test_a_pipe_is_not_waited_for(tmp_path: Path, table_of):
    import os

    path = tmp_path / "keys.json"
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        coverage_of(table_of(NAMES), "m", path)


def test_the_digest_follows_what_is_expected(tmp_path: Path):
    path = tmp_path / "keys.json"
    path.write_text('["a"]')
    first = expectation_digest("m", path)
    assert expectation_digest("elsewhere", str(path)) == first
    path.write_text('["b"]')
    assert expectation_digest("m", path) != first
    digests = {
        expectation_digest("m", keys)
        for keys in (None, ["a"], ["a", "b"], ["ab"], ["b", "a"], ["b"])
    }
    assert len(digests) == 6
    assert expectation_digest("m", ["a", "b"]) == expectation_digest("m", ("a", "b"))
    assert all(len(digest) == 64 for digest in digests)


def test_the_digest_of_a_checkpoint_is_that_of_its_names_and_shapes(tmp_path: Path):
    one = save_torch(tmp_path / "a.pt", {"x": np.zeros((2, 2), np.float32)})
    first = expectation_digest("m", one)
    save_torch(one, {"x": np.ones((2, 2), np.float32)})
    assert expectation_digest("m", one) == first
    save_torch(one, {"x": np.ones((2, 3), np.float32)})
    assert expectation_digest("m", one) != first


def test_the_digest_fails_as_the_comparison_does(tmp_path: Path):
    with pytest.raises(UsageError):
        expectation_digest("m", [])
    with pytest.raises(UsageError):
        expectation_digest("m", tmp_path / "gone.json")
