"""Outcomes as text and JSON: whole outputs compared with files, then one claim at a time.

``UPDATE_SNAPSHOTS=1 pytest tests/report/test_repair.py`` writes the files.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckptdoctor.diagnose import diagnose
from ckptdoctor.edits import (
    Edit,
    NumberEdit,
    Refusal,
    Removal,
    RepairPlan,
    Restamp,
    Trim,
)
from ckptdoctor.findings import Finding, Severity
from ckptdoctor.measure.scan import Measured, measure
from ckptdoctor.outcome import Before, Outcome, Written
from ckptdoctor.report.changes import LONGEST, change_table, rows_of
from ckptdoctor.report.repair import render
from ckptdoctor.report.repair_json import outcome_json
from ckptdoctor.results import ErrorInfo, Report, View, Wishes
from ckptdoctor.tensors import TensorTable

SNAPSHOTS = Path(__file__).parent / "repair_snapshots"
NAN = np.nan


def report_of(file, arrays, roles=None, layers=None):
    table = TensorTable.from_arrays(arrays, roles)
    infos = {n: i._replace(layer_name=(layers or {}).get(n, "")) for n, i in table.items()}
    table = replace(table, path=file, format="keras-h5", infos=infos)
    measured = measure(table)
    found = diagnose(table, Measured(measured.stats, ()), Wishes())
    return Report(
        file=file, format=table.format, weights=found.weights, verdict=found.verdict,
        summary=found.summary, findings=found.findings, diagnoses=found.diagnoses,
        relevant=found.relevant, table=table, stats=measured.stats,
    )  # fmt: skip


def edit(tensor, indices=(0,), remedy="bn-reset", kind="destructive", cures=("BN001",), title=""):
    where = None if indices is None else np.array(indices, np.int64)
    values = np.ones(1 if where is None else where.size, np.float32)
    return Edit(
        tensor=tensor, indices=where, values=values, remedy=remedy, kind=kind, cures=cures,
        title=title or "variance 1",
    )  # fmt: skip


def before(count=4, total=4, was="4 NaN", becomes="1", aliases=()):
    return Before(count=count, total=total, was=was, becomes=becomes, aliases=aliases)


def other(make, remedy="checksum", kind="lossless", cures=(), title="made to fit", **fields):
    return make(remedy=remedy, kind=kind, cures=cures, title=title, **fields)


def outcome_of(changes, shows=None, file="model.pt", arrays=None, plan=None, **fields):
    plan = RepairPlan(changes=tuple(changes), **(plan or {}))
    details = dict(enumerate(shows or ()))
    details = {n: shown for n, shown in details.items() if shown is not None}
    arrays = arrays or {c.tensor: [1.0] for c in changes if isinstance(c, Edit)} or {"w": [1.0]}
    return Outcome(
        file=file, plan=plan, details=details, before=report_of(file, arrays), **fields
    )  # fmt: skip


def written(path="model.repaired.pt", changed=4, size=2048, **fields):
    return Written(path=path, changed=changed, size=size, **fields)


def text_of(outcome, **view):
    return render(outcome, View(**{"width": 80, **view}))


def joined(outcome, **view):
    """Text with its lines put together again."""
    return " ".join(text_of(outcome, **view).split())


def lines_of(outcome, **view):
    return text_of(outcome, **view).splitlines()


def table_of(outcome, width=78):
    return list(change_table(rows_of(outcome), width))


def finding(code, tensor="bn.running_var", severity=Severity.ERROR, message="is bad", name="x"):
    return Finding(
        code=code, name=name, severity=severity, message=message, role="model", tensor=tensor
    )


# --- whole outputs --------------------------------------------------------------------------------


def founding():
    names = [
        f"model_weights/resnet101v2/{layer}/moving_{part}"
        for layer in ("conv5_block3_2_bn", "post_bn")
        for part in ("mean", "variance")
    ]
    sick = dict(zip(names, ([0.5] * 4, [3e3] * 4, [NAN] * 8, [NAN] * 8), strict=True))
    sick["model_weights/resnet101v2/head/kernel"] = np.eye(8, dtype=np.float32) / 2
    # at 0 and 1 they would be found again
    well = dict(zip(names, ([0.1] * 4, [0.9] * 4, [0.1] * 8, [0.9] * 8), strict=True))
    layers = {name: "/".join(name.split("/")[1:3]) for name in names}
    told = report_of("model.h5", sick, layers=layers)
    shows = {
        1: before(4, 4, "3000", "0.9"),
        0: before(8, 8, "8 NaN", "0.1"),
        2: before(8, 8, "8 NaN", "0.9"),
    }
    changes = (edit(names[2], range(8)), edit(names[1], range(4)), edit(names[3], range(8)))
    return Outcome(
        file="model.h5",
        plan=RepairPlan(changes=changes, explicit=True),
        details=shows,
        before=told,
        after=report_of("model.repaired.h5", {**sick, **well}, layers=layers),
        written=written("model.repaired.h5", 80, 94_400_000),
        cured=tuple(f for f in told.findings if f.code == "BN001"),
    )


def planned():
    """A dry run with one change of every kind, refusals, warnings, a donor and shared memory."""
    arrays = {
        "bn1.running_mean": [NAN, 0.5],
        "bn1.running_var": [NAN, 1.0],
        "bn2.running_var": [NAN, 1.0],
        "embed.weight": np.eye(3),
        "head.weight": np.eye(3),
    }
    changes = [
        edit("bn1.running_mean", remedy="donor", kind="statistical", title="from old.pt"),
        edit("bn1.running_var", remedy="donor", kind="statistical", title="from old.pt"),
        edit("bn2.running_var"),
        edit("embed.weight", None, "flipped-bit", "statistical", ("WT004",), "one bit flipped back"),
        NumberEdit(
            name="optimizer.param_groups.0.lr", before=NAN, value=0.001, remedy="set",
            kind="destructive", cures=("TS003",), title="as asked",
        ),
        other(Removal, "drop-optimizer", "destructive", ("TS001",), "dropped", names=("optimizer",)),
        other(Trim, "trim", cures=("CK005",), title="bytes behind the end", size=123456),
        other(Restamp, cures=("CK001",), title="stated anew", where="runs/last.ckpt:archive/data/7"),
    ]  # fmt: skip
    shows = [
        before(1, 2, "1 NaN", "0.25"),
        before(1, 2, "1 NaN", "1.5"),
        before(1, 2, "1 NaN", "1"),
        before(9, 9, "-0.5..1e+30", "-0.5..0.5", ("head.weight",)),
    ]
    suspected = "it is the first BatchNorm, and its variance may be right"
    plan = {
        "warnings": (
            "bn2 stands on the model's input: with variance 1 its channels let raw inputs in, "
            + "which cost all accuracy where it was measured; --bn-silence switches them off.",
        ),
        "refusals": (
            Refusal(target="bn0.running_var", reason=suspected, remedy="bn-reset",
                    hint="--bn-reset --tensor bn0.running_var"),
            Refusal(target="fc.weight", reason="what was trained is lost"),
            Refusal(target="fc.bias", reason="what was trained is lost"),
            Refusal(target="loop.best", reason="a record of the past", hint="nothing needs it"),
        ),
    }  # fmt: skip
    return outcome_of(
        changes, shows, "runs/last.ckpt", arrays, plan,
        donor=("5 of 5 tensors match by name", "the others differ by 0.3 % (median)"),
    )  # fmt: skip


def large():
    """Repeated blocks, and more layers that do not fold than a table has rows."""
    names = [f"layer{i // 9}.{i % 9}.bn.running_{p}" for i in range(90) for p in ("mean", "var")]
    names += [f"{'abcdefghijklmnopqrstuvwxyz'[i]}norm.running_var" for i in range(26)]
    shows = [before(n % 7 + 1, 16, f"{n % 7 + 1} NaN", "0.5..1.5") for n in range(len(names))]
    plan = {"warnings": tuple(f"layer{n} costs something." for n in range(20))}
    plan["refusals"] = tuple(Refusal(target=f"w{n}", reason=f"reason {n}") for n in range(20))
    return outcome_of(
        [edit(n) for n in names], shows, "large.pt", None, plan,
        written=written("large.repaired.pt", 3000, 3 << 30),
        remaining=tuple(finding(f"NF00{n}", f"x{n}.weight") for n in range(9)),
    )  # fmt: skip


def hostile():
    name = "a\x1b[2J\u202eb\n\udcff" + "x" * 150 + ".running_var"
    plan = {
        "warnings": ("evil\x07 \u202e",),
        "refusals": (
            Refusal(target=name, reason="r\x1b[0m", hint="--tensor $(reboot);`id` --x"),
            Refusal(target="n\x9b", reason="why", hint="--tensor 'a"),
        ),
    }
    changes = [
        edit(name, title="t\x1b"),
        NumberEdit(name="n\n\x1b", before=10**5000, value=float("inf"), remedy="s\x1b",
                   kind="destructive", cures=("C\x1b",), title="\x07"),
        other(Removal, names=("\x1b[1m",) * 9),
        other(Restamp, where="\x1b:" + "y" * 300),
    ]  # fmt: skip
    return outcome_of(
        changes, [before(1, 1, "\x1b", "\x9b", ("\u202e",))], "evil\x07\x9b.pt", {name: [NAN]}, plan,
        written=written("out\x1b.pt", -1, 5, moved="be\x1bcause", compared=7),
        donor=("\x1b",), remaining=(finding("NF001", name, message="m\x1b"),),
        uncured=(finding("BN001", "\x1b", message="\x07"),),
    )  # fmt: skip


def nothing():
    same = written("model.repaired.pt", 0, 2048, identical=True)
    clean = report_of("model.pt", {"w": [0.5, 1.0]})
    return Outcome(file="model.pt", plan=RepairPlan(), before=clean, after=clean, written=same)


def in_place():
    """Bytes moved, one finding was not cured, another stays."""
    changes = [edit("bn.running_var", range(4))]
    stays = finding("BN001", message="all 4 channels are NaN", name="nonfinite-running-stats")
    return outcome_of(
        changes, [before()], "model.h5",
        written=written("model.h5", -1, 4096, moved="the data are compressed", compared=31,
                        backup="model.h5.orig"),
        uncured=(stays,),
        remaining=(stays, finding("NF001", "fc.weight", name="nan-values"),
                   finding("WT003", "fc.bias", Severity.WARNING, name="exploded-weights")),
    )  # fmt: skip


def failed():
    error = ErrorInfo(
        type="WriteError", message="no space left on the device", where="model.repaired.h5",
        hint="free 94.0 MiB",
    )  # fmt: skip
    return Outcome(file="model.h5", error=error)


CASES = {f.__name__: f for f in (founding, planned, large, hostile, nothing, in_place, failed)}
VIEWS = {
    "80.txt": View(width=80),
    "200.txt": View(width=200),
    "quiet.txt": View(width=80, quiet=True),
    "color.txt": View(width=80, color=True),
    "json": None,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", CASES)
def test_output_is_as_agreed(case, view):
    options, outcome = VIEWS[view], CASES[case]()
    text = outcome_json(outcome) if options is None else render(outcome, options)
    file = SNAPSHOTS / f"{case}.{view}"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_no_snapshot_is_left_over():
    assert {f.name for f in SNAPSHOTS.iterdir()} == {f"{c}.{v}" for c in CASES for v in VIEWS}


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("case", CASES)
def test_lines_fit_the_width(case, width):
    long = [line for line in lines_of(CASES[case](), width=width) if len(line) > width]
    commands = ("ckptdoctor repair", "ckptdoctor inspect", "not repaired: ", "evil")
    assert all(any(word in line for word in commands) for line in long)


@pytest.mark.parametrize("case", CASES)
def test_nothing_printed_obeys_what_a_file_says(case):
    for options in VIEWS.values():
        if options is None:
            text = outcome_json(CASES[case]())
        elif not options.color:
            text = render(CASES[case](), options)
        else:
            continue
        assert all(c.isprintable() or c == "\n" for c in text)


def test_large_repair_fits_two_screens():
    assert len(lines_of(large())) < 75


# --- the first line -------------------------------------------------------------------------------


class TestHeadline:
    def headline(self, outcome):
        return text_of(outcome, quiet=True, width=200).splitlines()[0].split("; serve")[0]

    def test_layers_count_once_whatever_of_them_changes(self):
        changes = [edit(f"bn.running_{part}", range(2)) for part in ("mean", "var")]
        assert self.headline(outcome_of(changes, written=written())) == (
            "model.pt -> model.repaired.pt: 1 layer repaired, 4 values changed"
        )

    def test_what_is_no_layer_counts_as_a_tensor(self):
        table = {"bn.running_var": [NAN], "optimizer.state.0.exp_avg": [NAN], "loose": [NAN]}
        changes = [edit(name) for name in table]
        outcome = outcome_of(changes, arrays=table, written=written())
        roles = {"optimizer.state.0.exp_avg": "optimizer"}
        outcome = replace(outcome, before=report_of("model.pt", table, roles))
        assert ": 1 layer and 2 other tensors repaired, 3" in self.headline(outcome)
        alone = replace(outcome, plan=RepairPlan(changes=(changes[1],)))
        assert ": 1 tensor repaired, 1 value changed" in self.headline(alone)

    def test_what_nobody_counted_is_left_out(self):
        assert self.headline(outcome_of([edit("w", None)])) == (
            "model.pt: would repair 1 tensor; nothing is written"
        )
        counted = outcome_of([edit("w", None)], [before(0, 9)])
        assert "and change 0 values;" in self.headline(counted)

    def test_dry_run_says_would(self):
        assert self.headline(outcome_of([edit("bn.running_var")])) == (
            "model.pt: would repair 1 layer and change 1 value; nothing is written"
        )

    def test_every_kind_of_change_has_its_verb(self):
        changes = [
            other(Removal, names=("a", "b")),
            other(Trim, size=5),
            other(Restamp, where="x"),
            other(Restamp, where="y"),
            other(NumberEdit, name="lr", before=1, value=2),
        ]
        assert self.headline(outcome_of(changes)) == (
            "model.pt: would set 1 number, remove 2 parts, drop surplus bytes and recompute 2 "
            "checksums; nothing is written"
        )
        assert self.headline(outcome_of(changes, written=written())) == (
            "model.pt -> model.repaired.pt: 1 number set, 2 parts removed, surplus bytes dropped, "
            "2 checksums recomputed"
        )

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({}, "nothing to repair"),
            ({"written": written(identical=True)},
             "nothing to repair: model.repaired.pt is an identical copy"),
            ({"written": written(identical=True, kept=True)},
             "nothing to repair: model.repaired.pt is an identical copy already"),
            ({"written": written("model.pt", identical=True)},
             "nothing to repair: it stays as it is"),
            ({"remaining": (finding("NF001"),)}, "nothing would be repaired, 1 error remains"),
            ({"written": written(identical=True), "remaining": (finding("NF001"),) * 2},
             "nothing repaired, 2 errors remain: model.repaired.pt is an identical copy"),
            ({"plan": {"refusals": (Refusal(target="w", reason="r"),)}},
             "nothing would be repaired"),
        ],
        ids=["dry", "copied", "kept", "in-place", "dry-remaining", "remaining", "refused"],
    )  # fmt: skip
    def test_nothing_done_says_whether_that_is_good(self, fields, told):
        assert self.headline(outcome_of([], **fields)) == f"model.pt: {told}"

    def test_changes_that_change_nothing_are_told_as_such(self):
        same = outcome_of([edit("w")], written=written(identical=True), remaining=(finding("X"),))
        assert self.headline(same).startswith("model.pt: already as it would be repaired: model.re")

    def test_in_place_names_the_file_once(self):
        for place in (written("model.pt"), written("./model.pt", backup="model.pt.orig")):
            assert self.headline(outcome_of([edit("w")], written=place)) == (
                "model.pt: 1 tensor repaired, 1 value changed"
            )

    def test_long_paths_get_lines_of_their_own(self):
        outcome = outcome_of([edit("w")], file="f" * 60, written=written("g" * 60))
        assert lines_of(outcome)[:3] == [
            "f" * 60,
            "  -> " + "g" * 60,
            "  1 tensor repaired, 1 value changed",
        ]
        exact = "model.pt -> model.repaired.pt: 1 tensor repaired, 1 value changed"
        outcome = outcome_of([edit("w")], written=written())
        assert lines_of(outcome, width=len(exact))[0] == exact
        assert lines_of(outcome, width=len(exact) - 1)[0] == "model.pt"

    def test_quiet_is_one_line_with_verdict_and_remainder(self):
        told = text_of(founding(), quiet=True)
        assert told == (
            "model.h5 -> model.repaired.h5: 2 layers repaired, 20 values changed; "
            "serve unfit -> fit\n"
        )
        worse = replace(founding(), after=founding().before, remaining=(finding("A"),) * 2)
        assert text_of(worse, quiet=True).endswith("changed; serve unfit; 2 errors remain\n")


class TestErrors:
    def test_one_line_says_what_where_and_what_next(self):
        for quiet in (False, True):
            assert text_of(failed(), quiet=quiet) == (
                "model.h5: not repaired: no space left on the device (at model.repaired.h5); "
                "free 94.0 MiB\n"
            )

    def test_place_is_left_out_where_it_is_the_file(self):
        error = ErrorInfo(type="ReadError", message="gone", where="m.pt")
        assert text_of(Outcome(file="m.pt", error=error)) == "m.pt: not repaired: gone\n"

    def test_bug_is_named_by_its_type(self):
        error = ErrorInfo(type="KeyError", message="'x'", bug=True)
        assert text_of(Outcome(file="m.pt", error=error)) == "m.pt: not repaired: KeyError: 'x'\n"


# --- the table ------------------------------------------------------------------------------------


class TestTable:
    def test_all_some_and_uncounted_elements_read_differently(self):
        shows = [before(4, 4), before(2, 4), None, None]
        changes = [edit("a.x"), edit("a.y"), edit("a.z", range(3)), edit("a.v", None)]
        text = "\n".join(table_of(outcome_of(changes, shows), 200))
        assert "all 4 " in text
        assert "2 of 4 " in text
        assert " 3  " in text
        assert text.splitlines()[5].split() == ["a", "v", "bn-reset", "destructive", "BN001"]

    def test_numbered_variable_of_keras_is_named(self):
        names = [f"layers/batch_normalization/vars/{n}" for n in range(4)]
        arrays = dict(zip(names, ([1.0], [0.0], [NAN], [NAN]), strict=True))
        layers = dict.fromkeys(names, "post_bn")
        told = report_of("m.keras", arrays, layers=layers)
        outcome = replace(outcome_of([edit(names[2]), edit(names[3])], arrays=arrays), before=told)
        rows = table_of(outcome)
        assert rows[2].split()[:2] == ["post_bn", "moving_mean"]
        assert rows[3].split()[:2] == ["post_bn", "moving_variance"]

    def test_variable_that_no_convention_knows_keeps_its_number(self):
        name = "layers/mystery/vars/7"
        assert table_of(outcome_of([edit(name)]))[2].split()[:2] == [
            "layers/mystery/vars",
            "vars/7",
        ]

    def test_component_of_a_name_with_slashes_may_hold_dots(self):
        assert table_of(outcome_of([edit("net/v1.2/w.0:0")]))[2].split()[:2] == [
            "net/v1.2",
            "w.0:0",
        ]

    def test_name_without_a_layer_stands_alone(self):
        lines = table_of(outcome_of([edit("loose")]))
        assert lines[0].split()[0] == "tensor"
        assert lines[2].split()[0] == "loose"

    def test_tensor_that_the_table_lacks_is_shown_by_its_name(self):
        outcome = replace(outcome_of([edit("bn.running_var")]), before=None)
        assert table_of(outcome)[2].split()[0] == "bn.running_var"

    def test_remedy_and_class_stay_where_there_is_room(self):
        outcome = outcome_of([edit("bn.running_var")], [before()])
        assert table_of(outcome, 90)[0].split()[-3:] == ["remedy", "class", "cures"]
        narrow = {w: table_of(outcome, w)[0].split()[-1] for w in range(40, 91)}
        order = ["becomes", "remedy", "class", "cures"]
        seen = [order.index(narrow[w]) for w in sorted(narrow)]
        assert seen == sorted(seen)
        assert set(seen) == {0, 1, 2, 3}

    def test_remedy_stays_in_the_table_where_there_are_two(self):
        layer = "encoder" * 5
        first, second = edit(f"{layer}.running_var"), edit(f"{layer}.running_mean")
        told = {
            (width, remedy): table_of(
                outcome_of([first, replace(second, remedy=remedy)], [before(), before()]), width
            )[0].split()[-1]
            for width in (40, 60)
            for remedy in ("bn-reset", "donor")
        }
        assert told == {
            (40, "bn-reset"): "becomes", (40, "donor"): "becomes",
            (60, "bn-reset"): "becomes", (60, "donor"): "remedy",
        }  # fmt: skip

    @pytest.mark.parametrize("width", range(60, 130, 7))
    def test_names_give_way_before_the_table_leaves_the_width(self, width):
        names = [f"{'encoder' * 9}.block{n}.{'projection' * 4}" for n in range(3)]
        lines = table_of(outcome_of([edit(n) for n in names], [before()] * 3), width)
        assert max(map(len, lines)) <= width
        assert all("..." in line for line in lines[2:])

    def test_long_words_are_shortened_as_far_as_the_width_asks(self):
        outcome = outcome_of([edit("bn.running_var")], [before(was="w" * 40, becomes="b" * 40)])
        for width, longest in ((200, 24), (72, 24), (70, 23), (40, 8)):
            line = table_of(outcome, width)[2]
            words = [word for word in line.split() if word[0] in "wb" and "..." in word]
            assert [len(word) for word in words] == [longest, longest]

    def test_names_get_room_before_the_class_does(self):
        outcome = outcome_of([edit(f"{'l' * 30}.{'t' * 30}")], [before()])
        edges = {79: "becomes", 80: "remedy", 92: "remedy", 93: "class", 99: "class", 100: "cures"}
        for width, last in edges.items():
            assert table_of(outcome, width)[0].split()[-1] == last

    def test_short_names_are_not_shortened(self):
        name = "layer1.0.bn1.running_var"
        assert "..." not in "".join(table_of(outcome_of([edit(name)], [before()])))

    def test_numbers_of_the_training_state_show_both_values(self):
        changes = [
            other(NumberEdit, name="lr", before=NAN, value=1e-3),
            other(NumberEdit, name="step", before=-1, value=12000),
            other(NumberEdit, name="huge", before=10**16, value=10**16 - 1),
        ]
        rows = [line.split()[1:3] for line in table_of(outcome_of(changes))[2:4]]
        assert rows == [["nan", "0.001"], ["-1", "12,000"]]
        assert "a huge number  9,999,999,999,999,999" in table_of(outcome_of(changes), 200)[4]

    def test_removed_parts_are_named_up_to_three(self):
        three = outcome_of([other(Removal, names=("a", "b", "c"))])
        assert "a, b, c  removed" in table_of(three)[2]
        four = outcome_of([other(Removal, names=("a", "b", "c", "d"))])
        assert "a, b, c and 1 more  removed" in table_of(four)[2]

    def test_cut_and_checksum_say_where(self):
        changes = [other(Trim, size=1234567), other(Restamp, where="model.pt:d/0+12")]
        cut, stamp = table_of(outcome_of(changes))[2:]
        assert cut.startswith("bytes from 1,234,567 on  dropped")
        assert stamp.startswith("d/0+12")
        assert "recomputed" in stamp

    def test_a_screen_of_rows_is_not_folded(self):
        changes = [edit(f"bn{n}.running_var") for n in range(LONGEST)]
        assert len(rows_of(outcome_of(changes))) == LONGEST
        changes += [edit(f"bn{LONGEST}.running_var")]
        (row,) = rows_of(outcome_of(changes))
        assert (row.layer, row.name, row.tensors) == ("bn{0..20}", "running_var", LONGEST + 1)
        assert LONGEST == 20

    def folded(self, shows, changes=None):
        """The one row that is made of several, among enough to be folded."""
        changes = changes or [edit(f"bn{n}.running_var") for n in range(len(shows))]
        fill = [edit(f"other{n}.running_mean") for n in range(LONGEST)]
        rows = rows_of(outcome_of([*changes, *fill], [*shows, *[before()] * LONGEST]))
        return rows[0]

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["4 NaN", "12 NaN"], "16 NaN"),
            (["4 NaN", "4 NaN"], "8 NaN"),
            (["1,200 NaN, 2 Inf", "4 NaN"], "1,204 NaN, 2 Inf"),
            (["4 NaN, 0.5", "4 NaN, -1..0.25"], "8 NaN, -1..0.5"),
            (["1e-3..2", "5..1e+30"], "1e-3..1e+30"),
            (["1", "1"], "1"),
            (["1", "1.0"], "1.0"),
            (["drawn anew", "drawn anew"], "drawn anew"),
            (["drawn anew", "1"], "(differs)"),
            (["", ""], ""),
        ],
        ids=["sum", "equal-counts", "kinds", "mixed", "range", "same", "alike", "words", "differs",
             "nothing"],
    )  # fmt: skip
    def test_folded_words_add_up(self, words, told):
        assert self.folded([before(1, 4, text, "1") for text in words]).was == told
        assert self.folded([before(1, 4, "x", text) for text in words]).becomes == told

    def test_folded_counts_add_up(self):
        row = self.folded([before(1, 4), before(3, 8)])
        assert (row.count, row.total, row.tensors) == (4, 12, 2)
        row = self.folded([before(1, 4), None])
        assert (row.count, row.total) == (2, -1)

    @pytest.mark.parametrize(
        "second",
        [
            edit("bn1.running_mean"),
            edit("bn1.running_var", remedy="donor"),
            edit("bn1.running_var", kind="statistical"),
            edit("bn1.running_var", cures=("BN002",)),
            edit("ln1.running_var"),
        ],
        ids=["part", "remedy", "class", "code", "layer"],
    )
    def test_different_changes_are_not_folded(self, second):
        row = self.folded([before(), before()], [edit("bn0.running_var"), second])
        assert row.tensors == 1

    def test_numbers_fold_as_well(self):
        changes = [
            other(NumberEdit, name=f"opt.{n}.lr", before=NAN, value=0.5) for n in range(LONGEST + 1)
        ]
        (row,) = rows_of(outcome_of(changes))
        assert (row.name, row.was, row.becomes, row.count) == ("opt.{0..20}.lr", "nan", "0.5", -1)

    def test_rows_beyond_the_longest_are_counted(self):
        names = [f"{letter}n.running_var" for letter in "abcdefghijklmnopqrstuvw"]
        text = text_of(outcome_of([edit(n) for n in names]))
        assert "  ... and 3 more changes: --format json" in text
        assert "more changes" not in text_of(outcome_of([edit(n) for n in names[: LONGEST + 1]]))


# --- words below it -------------------------------------------------------------------------------


class TestAdvice:
    def test_class_is_explained(self):
        kinds = {
            "lossless": "(the same model, or a file that could not be used)",
            "statistical": "(an estimate of what was there)",
            "destructive": "(values are invented or gone)",
        }
        for kind, words in kinds.items():
            told = joined(outcome_of([edit("w", kind=kind)]))
            assert f"remedy bn-reset, {kind} {words}: variance 1; against BN001" in told

    def test_titles_and_codes_of_one_remedy_are_told_once(self):
        changes = [
            edit("a", title="mean 0", cures=("BN003",)),
            edit("b", title="variance 1", cures=("BN001",)),
            edit("c", title="mean 0", cures=()),
        ]
        assert ": mean 0; variance 1; against BN001, BN003" in joined(outcome_of(changes))
        assert "against" not in joined(outcome_of(changes[2:]))

    @pytest.mark.parametrize(("count", "told"), [(4, "t3"), (5, "2 more")])
    def test_many_titles_are_counted(self, count, told):
        changes = [edit(f"w{n}", title=f"t{n}") for n in range(count)]
        assert f": t0; t1; t2; {told}; against" in joined(outcome_of(changes))

    @pytest.mark.parametrize(("count", "told"), [(6, " 6 more"), (7, " and 2 more: --format json")])
    def test_many_remedies_are_counted(self, count, told):
        changes = [edit(f"w{n}", remedy=f"r{n}") for n in range(count)]
        text = joined(outcome_of(changes))
        assert (told in text) == (count == 7)
        assert ("r5, destr" in text) == (count == 6)

    def test_long_title_keeps_its_ends(self):
        told = joined(outcome_of([edit("w", title="begin " + "x" * 400 + " end")]))
        assert "begin x" in told
        assert " end; against" in told
        assert "x" * 190 not in told

    def test_shared_memory_is_named(self):
        text = joined(outcome_of([edit("e.w")], [before(aliases=("h.w", "t.w"))]))
        assert "shared h.w, t.w: the same memory as e.w, changes with it" in text
        assert "shared" not in joined(outcome_of([edit("e.w")], [before()]))

    def test_warnings_are_told_once_each_and_counted_beyond_eight(self):
        texts = [f"W{n}." for n in range(9)]
        lines = lines_of(outcome_of([], plan={"warnings": ("W0.", *texts)}))
        assert [line.split()[1] for line in lines if line.startswith("  warning")] == [
            *texts[:8], "1",
        ]  # fmt: skip
        lines = lines_of(outcome_of([], plan={"warnings": tuple(texts[:8])}))
        assert lines[-1] == "  warning    W7."


class TestRefusals:
    def lines(self, *refusals, **fields):
        text = text_of(outcome_of([], plan={"refusals": refusals}, **fields), width=200)
        return text.partition("left alone ")[2].splitlines()

    def test_command_that_would_do_it_can_be_pasted(self):
        refusal = Refusal(target="bn.running_var", reason="too sick", hint="--bn-reset")
        assert self.lines(refusal, file="my model.pt") == [
            "bn.running_var: too sick",
            " " * 13 + "ckptdoctor repair 'my model.pt' --bn-reset",
        ]

    def test_command_writes_over_what_was_just_written(self):
        refusal = Refusal(target="w", reason="r", hint="--bn-reset")
        for place, told in (
            (written(), " --force"),
            (written("other.pt"), " --force -o other.pt"),
            (written("-x y"), " --force -o './-x y'"),
            (written("model.pt", backup="model.pt.orig"), ""),
        ):
            line = self.lines(refusal, written=place)[1]
            assert line.strip() == f"ckptdoctor repair model.pt --bn-reset{told}"

    def test_names_in_options_are_quoted_anew(self):
        refusal = Refusal(target="w", reason="r", hint="--tensor 'a b' --reinit $(id);x")
        assert self.lines(refusal)[1].endswith(" model.pt --tensor 'a b' --reinit '$(id);x'")

    @pytest.mark.parametrize(
        "hint", ["get it again", "--tensor 'a", "-" + "x" * 701, "- x", "", "---"],
        ids=["sentence", "half-quote", "endless", "dash", "nothing", "dashes"],
    )  # fmt: skip
    def test_hint_that_cannot_be_typed_is_told(self, hint):
        lines = self.lines(Refusal(target="w", reason="why.", hint=hint))
        assert lines[0].startswith("w: why; " + hint[:60] if hint else "w: why.")
        assert not any("ckptdoctor repair" in line for line in lines)

    def test_same_reason_is_told_once(self):
        refusals = [Refusal(target=f"w{n}", reason="lost") for n in range(4)]
        assert self.lines(*refusals) == ["w0, w1, w2, w3: lost"]
        refusals.append(Refusal(target="w4", reason="lost"))
        assert self.lines(*refusals) == ["w0, w1, w2, 2 more: lost"]

    def test_same_command_is_told_once_with_its_layers(self):
        arrays = {f"bn{n}.running_{part}": [1.0] for n in range(2) for part in ("mean", "var")}
        refusals = [
            Refusal(target=name, reason=f"{name[-4:]} 0", hint="--bn-reset") for name in arrays
        ]
        lines = self.lines(*refusals, arrays=arrays)
        assert lines[0] == "bn0, bn1: mean 0; _var 0"
        assert len(lines) == 2

    def test_name_is_not_put_before_a_reason_that_starts_with_it(self):
        for reason in ("bn.running_var is fine", "bn is left alone: why"):
            arrays = {"bn.running_var": [1.0]}
            refusal = Refusal(target="bn.running_var", reason=reason)
            assert self.lines(refusal, arrays=arrays) == [reason]
        assert self.lines(Refusal(target="", reason="why")) == ["why"]

    def test_more_than_five_are_counted_by_tensor(self):
        refusals = [Refusal(target=f"w{n}", reason=f"r{min(n, 5)}") for n in range(7)]
        lines = self.lines(*refusals)
        assert lines[4:] == ["  left alone w4: r4", "  left alone 2 more: --format json"]
        assert len(self.lines(*refusals[:5])) == 5


class TestProof:
    def proof(self, **fields):
        return joined(outcome_of([edit("w")], written=written(**fields))).partition("verified ")[2]

    def test_changed_bytes_and_original_are_told(self):
        assert self.proof(changed=512, size=94 << 20) == (
            "512 bytes of 94.0 MiB changed, every other byte is the same. original model.pt, as it "
            "was"
        )
        assert self.proof(changed=0).startswith("0 bytes of 2.0 KiB changed, every")

    def test_moved_bytes_are_told_with_what_was_compared(self):
        assert self.proof(changed=-1, moved="parts were removed", compared=42).startswith(
            "Bytes moved (parts were removed): 42 tensors compared with the original's. original"
        )

    def test_uncounted_change_claims_nothing_about_bytes(self):
        assert self.proof(changed=-1).startswith("Read back as it was to be. original")

    def test_output_that_was_there_is_told(self):
        kept = "output model.repaired.pt was there already, just as it would be written."
        assert kept in self.proof(kept=True)
        assert "output" not in self.proof()

    def test_original_is_where_it_was_put(self):
        assert self.proof(path="model.pt", backup="m.orig").endswith("original kept as m.orig")
        assert self.proof(path="model.pt").endswith("original replaced, and no copy of it was kept")

    def test_identical_copy_needs_no_proof(self):
        assert "verified" not in text_of(outcome_of([], written=written(identical=True)))


class TestRemainder:
    def test_cured_findings_are_counted_by_kind(self):
        cured = (
            finding("BN001", name="a"),
            finding("BN001", "y", name="a"),
            finding("X", name="b"),
        )
        assert "cured 3 findings: BN001 a, X b" in joined(outcome_of([edit("w")], cured=cured))

    def test_verdicts_show_what_changed(self):
        lines = lines_of(founding())
        assert "  serve      unfit -> fit" in lines
        assert "  load       safe" in lines

    def test_verdict_that_is_not_known_is_not_told(self):
        blind = replace(founding().after, verdict=None)
        for fields in ({"after": None}, {"after": blind}, {"before": blind}):
            assert "serve" not in text_of(replace(founding(), **fields))

    def test_findings_that_are_left_come_with_the_command_that_shows_them(self):
        lines = lines_of(outcome_of([edit("w")], written=written(), remaining=(finding("NF001"),)))
        assert lines[-3:] == [
            "  remaining  1 error",
            " " * 13 + "error NF001 x: bn.running_var: is bad",
            " " * 13 + "ckptdoctor inspect model.repaired.pt",
        ]

    def test_dry_run_tells_what_would_stay(self):
        lines = lines_of(outcome_of([], remaining=(finding("NF001"),)))
        assert lines[-3] == "  would stay 1 error"
        assert lines[-1] == " " * 13 + "ckptdoctor inspect model.pt"

    def test_findings_are_counted_worst_first(self):
        kinds = (Severity.WARNING, Severity.ERROR, Severity.NOTE, Severity.WARNING)
        left = tuple(finding("A", severity=kind) for kind in kinds)
        assert "remaining 1 error, 2 warnings, 1 note" in joined(
            outcome_of([], written=written(), remaining=left)
        )

    def test_findings_of_a_kind_are_told_once(self):
        left = tuple(finding("A", f"w{n}") for n in range(3))
        assert "error A x: w0: is bad (and 2 more like it)" in joined(
            outcome_of([], remaining=left)
        )

    def test_more_than_five_kinds_are_counted(self):
        left = tuple(finding(f"A{min(n, 5)}", f"w{n}") for n in range(7))
        assert "and 2 more findings" in text_of(outcome_of([], remaining=left))
        assert "more finding" not in text_of(outcome_of([], remaining=left[:5]))

    def test_uncured_finding_is_a_fault_and_told_once(self):
        text = joined(in_place())
        wanted = (
            "not cured BN001 nonfinite-running-stats: bn.running_var: all 4 channels are NaN; a"
        )
        assert wanted in text
        assert "a fault of the remedy, please report it" in text
        assert text.count("BN001 nonfinite") == 1
        assert "remaining 2 errors, 1 warning error NF001" in text

    def test_many_uncured_findings_are_counted(self):
        bad = tuple(finding("A", f"w{n}") for n in range(6))
        assert "not cured 1 more: --format json" in joined(outcome_of([], uncured=bad))
        assert "more:" not in joined(outcome_of([], uncured=bad[:5]))


# --- JSON -----------------------------------------------------------------------------------------


class TestJson:
    def document(self, outcome):
        def refuse(constant):
            raise AssertionError(constant)

        text = outcome_json(outcome)
        assert text.isascii()
        return json.loads(text, parse_constant=refuse)

    def repair(self, outcome):
        return self.document(outcome)["repair"]

    def test_document_is_versioned(self):
        document = self.document(founding())
        assert (document["schema"], document["tool"]["name"]) == (1, "ckptdoctor")
        assert list(document) == ["schema", "tool", "repair"]
        assert list(document["repair"]) == [
            "file", "format", "done", "dry_run", "verdict", "donor", "recalibration", "written", "plan", "cured",
            "uncured", "remaining", "error",
        ]  # fmt: skip

    def test_changes_come_with_words_and_without_values(self):
        change = self.repair(planned())["plan"]["changes"][0]
        assert change == {
            "type": "elements", "remedy": "donor", "class": "statistical", "cures": ["BN001"],
            "title": "from old.pt", "tensor": "bn1.running_mean", "count": 1, "total": 2,
            "was": "1 NaN", "becomes": "0.25", "aliases": [],
        }  # fmt: skip

    def test_elements_that_nobody_described_are_counted_as_far_as_known(self):
        outcome = outcome_of([edit("w", range(3)), edit("v", None)])
        known, unknown = self.repair(outcome)["plan"]["changes"]
        assert (known["count"], known["total"], known["was"]) == (3, None, "")
        assert unknown["count"] is None

    def test_numbers_that_are_not_finite_are_named(self):
        change = self.repair(planned())["plan"]["changes"][4]
        assert (change["before"], change["value"]) == ("nan", 0.001)
        hexadecimal = self.repair(hostile())["plan"]["changes"][1]["before"]
        assert int(hexadecimal, 16) == 10**5000

    def test_dry_run_and_failure_are_told_apart(self):
        states = [
            (self.repair(outcome)["dry_run"], self.repair(outcome)["done"])
            for outcome in (planned(), failed(), founding(), nothing())
        ]
        assert states == [(True, True), (False, False), (False, True), (False, True)]

    def test_error_holds_message_hint_and_place(self):
        repair = self.repair(failed())
        assert repair["error"] == {
            "type": "WriteError",
            "message": "no space left on the device; free 94.0 MiB",
            "where": "model.repaired.h5",
        }
        assert repair["plan"] is None
        assert repair["written"] is None
        assert repair["verdict"] == {"before": None, "after": None}
        bare = Outcome(file="m", error=ErrorInfo(type="E", message="m"))
        assert self.repair(bare)["error"]["message"] == "m"

    def test_bytes_that_moved_are_not_counted(self):
        assert self.repair(in_place())["written"]["changed"] is None
        assert self.repair(nothing())["written"]["changed"] == 0
        assert self.repair(founding())["written"]["changed"] == 80

    def test_verdicts_of_both_are_given(self):
        verdict = self.repair(founding())["verdict"]
        assert verdict["before"]["serve"] == "unfit"
        assert verdict["after"] == {"load": "safe", "serve": "fit", "resume": "fit"}

    def test_findings_are_those_of_inspect(self):
        told = self.repair(in_place())
        assert [f["code"] for f in told["remaining"]] == ["BN001", "NF001", "WT003"]
        assert told["uncured"][0]["tensor"] == "bn.running_var"

    def test_half_characters_become_escapes(self):
        change = self.repair(hostile())["plan"]["changes"][0]
        assert change["tensor"].startswith("a\x1b[2J\u202eb\n\\udcffx")
