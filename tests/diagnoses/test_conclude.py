"""Findings -> diagnoses: each told once, worst first, in depth order, with names that are exact."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import patients
import pytest
from hypothesis import given, settings

import ckptdoctor
from ckptdoctor import cli
from ckptdoctor.diagnoses import conclude
from ckptdoctor.diagnoses.facts import short_list
from ckptdoctor.findings import Finding, Severity, container_finding
from ckptdoctor.measure.scan import measure
from ckptdoctor.rules import RULES
from ckptdoctor.rules.base import Context
from ckptdoctor.tensors import TensorTable

NAN, INF = float("nan"), float("inf")
CODES = [rule.code for rule in RULES] + [
    "BN001",
    "BN002",
    "BN003",
    "BN004",
    "BN006",
    "BN010",
    "ZZ999",
]


def context_of(arrays, roles=None, **more):
    table = TensorTable.from_arrays(arrays, roles, **more)
    return Context(table, measure(table).stats)


def finding(code, tensor="", severity=Severity.ERROR, role="model", message="m", **more):
    return Finding(
        code=code, name="an-illness", severity=severity, role=role, tensor=tensor,
        layer=tensor.rpartition(".")[0], message=message, **more,
    )  # fmt: skip


def concluded(arrays, *findings, roles=None, file="m.pt", **more):
    return conclude(context_of(arrays, roles, **more), findings, file=file)


def bn(**spoil):
    """Network of three BatchNorms; ``bn2_var=NAN`` spoils one part."""
    weights = patients.state()
    for name, value in spoil.items():
        layer, part = name.split("_")
        weights[f"{layer}.running_{part}"][:] = value
    return weights


class TestTelling:
    def test_nothing_but_notes_is_no_diagnosis(self):
        note = finding("NF003", "mask", Severity.NOTE)
        assert concluded({"mask": [INF]}, note) == ()
        assert concluded({"w": [1.0]}) == ()

    def test_findings_of_one_cause_are_told_once(self):
        (d,) = concluded(
            bn(bn2_var=5e4, bn3_mean=NAN, bn3_var=NAN),
            finding("BN001", "bn3.running_mean"),
            finding("BN001", "bn3.running_var"),
            finding("BN003", "bn2.running_var", Severity.WARNING),
        )
        assert d.key == "bn-stats-nan"
        assert d.findings == (0, 1, 2)
        assert d.layers == ("bn2", "bn3")
        assert d.suspect == "bn2"
        assert d.severity is Severity.ERROR

    @pytest.mark.parametrize(
        ("part", "value", "told"),
        [
            ("mean", NAN, "BatchNorm statistics are NaN in 1 layer{}; every weight is sound"),
            ("var", NAN, "BatchNorm variance is NaN beside a finite mean in 1 layer{}"),
            ("var", INF, "BatchNorm variance is Inf in 1 layer{}: their channels are silent"),
        ],
    )
    def test_titles_count_what_exploded_apart(self, part, value, told):
        lost = {f"bn1_{part}": value}
        bad = finding("BN001", f"bn1.running_{part}")
        grown = [finding("BN003", f"bn{n}.running_var", Severity.WARNING) for n in (2, 3)]
        for count, more in enumerate(
            ("", *(f" and exploded, still finite, in {n} more" for n in (1, 2)))
        ):
            spoiled = {f"bn{n}_var": 5e4 for n in range(2, 2 + count)}
            (d,) = concluded(bn(**lost, **spoiled), bad, *grown[:count])
            assert d.title == told.format(more)

    def test_general_codes_in_special_places_are_the_same_illness(self):
        special = concluded(bn(bn3_mean=NAN), finding("BN001", "bn3.running_mean"))
        general = concluded(bn(bn3_mean=NAN), finding("NF001", "bn3.running_mean"))
        assert [d.key for d in special] == [d.key for d in general] == ["bn-stats-nan"]

    def test_lost_weights_explain_lost_statistics_and_moments(self):
        arrays = bn(bn3_var=NAN) | {"o.exp_avg": np.float32([NAN])}
        arrays["conv1.weight"][:] = NAN
        (d,) = concluded(
            arrays,
            finding("NF001", "conv1.weight"),
            finding("BN001", "bn3.running_var"),
            finding("TS001", "o.exp_avg", role="optimizer"),
            roles={"o.exp_avg": "optimizer"},
        )
        assert d.key == "weights-nonfinite"
        assert (d.causes[0].name, d.causes[0].confidence) == ("update-step", "high")

    def test_lost_weights_do_not_explain_the_scale_of_the_input(self):
        arrays = {"bn0.running_var": [5e3, 5e3], "bn0.running_mean": [1.0, 2.0], **bn()}
        arrays["fc.weight"][:] = NAN
        warning = finding("BN003", "bn0.running_var", Severity.WARNING)
        ctx = context_of(arrays)
        ctx._graph = ctx.graph._replace(first=frozenset({"bn0"}))
        found = conclude(ctx, (finding("NF001", "fc.weight"), warning), file="m.pt")
        assert [d.key for d in found] == ["weights-nonfinite", "bn-input-scale"]

    def test_notes_stay_out_of_layers_and_roles(self):
        arrays = {"a.running_mean": [NAN], "a.running_var": [1.0], "e.w": [1.0]}
        note = finding("BN003", "e.w", Severity.NOTE, role="ema")
        (d,) = concluded(arrays, finding("BN001", "a.running_mean"), note, roles={"e.w": "ema"})
        assert d.layers == ("a",)
        assert d.findings == (0, 1)

    def test_unknown_codes_are_told_too(self):
        (d,) = concluded({"w": [1.0]}, finding("ZZ999", "w"))
        assert (d.key, d.title, d.next) == ("other", "An illness", "ckptdoctor explain ZZ999")

    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(CODES),
                st.sampled_from(["conv1.weight", "bn2.running_var", "fc.bias", "gone", ""]),
                st.sampled_from(list(Severity)),
                st.sampled_from(["model", "ema", "optimizer", "scaler", "training", "other"]),
            ),
            max_size=12,
        ),
        st.sampled_from([NAN, INF, 1.0]),
    )
    def test_every_error_and_warning_is_in_exactly_one_diagnosis(self, told, value):
        findings = tuple(finding(code, t, severity, role) for code, t, severity, role in told)
        findings = tuple(sorted(findings, key=lambda f: -f.severity))
        arrays = bn()
        for name in ("conv1.weight", "bn2.running_var", "fc.bias"):
            arrays[name].reshape(-1)[0] = value
        found = concluded(arrays, *findings)
        indices = [i for d in found for i in d.findings]
        serious = {i for i, f in enumerate(findings) if f.severity > Severity.NOTE}
        assert len(set(indices)) == len(indices)
        assert serious <= set(indices)
        assert [d.severity for d in found] == sorted((d.severity for d in found), reverse=True)
        assert all(d.title and d.next for d in found)

    def test_worst_comes_first_and_what_is_served_before_the_rest(self):
        arrays = bn(bn3_mean=NAN) | {"o": np.float32([NAN]), "f": np.float32([1])}
        found = concluded(
            arrays,
            finding("TS001", "o", role="optimizer"),
            finding("BN001", "bn3.running_mean"),
            finding("WT006", "f", Severity.WARNING),
            roles={"o": "optimizer"},
        )
        assert [d.key for d in found] == ["bn-stats-nan", "optimizer-poisoned", "weights-vanished"]


class TestDepth:
    def test_order_is_that_of_the_graph_not_of_the_findings(self):
        arrays = bn(bn1_mean=NAN, bn2_mean=NAN, bn3_mean=NAN)
        found = [finding("BN001", f"bn{i}.running_mean") for i in (3, 1, 2)]
        (d,) = concluded(arrays, *found)
        assert d.layers == ("bn1", "bn2", "bn3")

    def test_optimizer_is_told_by_the_parameter_it_belongs_to(self):
        arrays = bn() | {"o.0.exp_avg": np.float32([NAN])}
        moment = finding(
            "TS001", "o.0.exp_avg", role="optimizer", measured={"parameter": "conv2.weight"}
        )
        (d,) = concluded(arrays, moment, roles={"o.0.exp_avg": "optimizer"})
        assert d.suspect == "conv2"


class TestEvidence:
    def test_layers_that_read_the_same_are_told_together(self):
        arrays = bn(bn2_mean=NAN, bn2_var=NAN, bn3_mean=NAN, bn3_var=NAN)
        (d,) = concluded(*[arrays], *[finding("BN001", f"bn{i}.running_var") for i in (2, 3)])
        assert d.evidence[0] == "bn2 and 1 more: mean and variance NaN in all 16 channels"

    def test_channels_are_named_where_some_are_bad(self):
        arrays = bn()
        arrays["bn2.running_mean"][[3, 7, 9, 10, 11]] = INF
        (d,) = concluded(arrays, finding("BN001", "bn2.running_mean"))
        assert d.evidence[0] == "bn2: mean Inf in 5 of 16 channels (3, 7, 9..11), variance finite"

    def test_exploded_statistics_give_their_range(self):
        arrays = bn(bn3_mean=NAN)
        arrays["bn2.running_var"][:] = np.linspace(1601, 8958, 16)
        (d,) = concluded(
            arrays, finding("BN001", "bn3.running_mean"), finding("BN003", "bn2.running_var")
        )
        assert d.evidence[0] == "bn2: variance 1,601 to 8,958, finite but exploded"

    def test_many_kinds_are_counted(self):
        arrays = {f"l{i}.weight": np.zeros((2, 2), np.float32) for i in range(9)}
        found = [finding("WT001", name, message=f"says {name}") for name in arrays]
        (d,) = concluded(arrays, *found)
        assert [line[:20] for line in d.evidence] == [
            "l0.weight: says l0.w", "l1.weight: says l1.w", "l2.weight: says l2.w",
            "6 more like these",
        ]  # fmt: skip

    def test_long_names_and_messages_are_cut_but_the_suspect_is_exact(self):
        name = "x" * 5000 + ".weight"
        (d,) = concluded({name: [[0.0]]}, finding("WT001", name, message="y" * 5000))
        assert len(d.evidence[0]) < 400
        assert d.suspect == "x" * 5000
        assert len(d.next) < 300

    def test_settings_are_told_with_what_they_contribute(self):
        scalars = {"optimizer.param_groups.0.lr": 3.0, "epoch": 4}
        (d,) = concluded({"w.weight": [[1e9]]}, finding("WT003", "w.weight"), scalars=scalars)
        assert d.evidence[-1] == "Stored: learning rate 3 (high for SGD); saved at epoch 4."

    @pytest.mark.parametrize(
        ("numbers", "text"),
        [([], ""), ([4], "4"), ([0, 1], "0..1"), (range(0, 14, 2), "0, 2, 4, 6, 8, 10 and 1 more")],
    )
    def test_short_list(self, numbers, text):
        assert short_list(numbers) == text


class TestCommands:
    @pytest.mark.parametrize(
        ("file", "name", "words"),
        [
            ("m.pt", "bn.running_mean", ["inspect", "m.pt", "--tensor", "bn.*", "--tensors", "all"]),
            ("-m 1.pt", "a [1].running_mean",
             ["inspect", "./-m 1.pt", "--tensor", "a [[]1].*", "--tensors", "all"]),
            ("m.pt", "-x*.running_mean",
             ["inspect", "m.pt", "--tensor=-x[*].*", "--tensors", "all"]),
            ("m.pt", "n/bn/moving_mean",
             ["inspect", "m.pt", "--tensor", "n/bn/*", "--tensors", "all"]),
        ],
        ids=["a plain name", "a space and a bracket", "a dash and a star", "Keras"],
    )  # fmt: skip
    def test_affected_layers_are_named_as_patterns(self, file, name, words):
        (d,) = concluded({name: [NAN]}, finding("BN009", name), file=file)
        assert shlex.split(d.next) == ["ckptdoctor", *words]

    def test_many_layers_are_selected_by_code(self):
        arrays = {f"bn{i}.running_mean": [NAN] for i in range(4)}
        (d,) = concluded(arrays, *[finding("BN009", name) for name in arrays])
        assert d.next == "ckptdoctor inspect m.pt --select BN009"

    def test_exit_code_told_is_that_of_the_purpose(self):
        arrays = {"o": [NAN], "w.weight": [[1.0]]}
        roles = {"o": "optimizer"}
        (fine,) = concluded(arrays, finding("TS001", "o", role="optimizer"), roles=roles)
        assert "Exit code 0." in fine.next_tells
        code = container_finding("CK001", Severity.ERROR, "differs")
        both = concluded(arrays, code, finding("TS001", "o", role="optimizer"), roles=roles)
        assert "Exit code 1." in both[1].next_tells


class TestSnippets:
    def test_torch_names_are_those_of_the_model(self):
        name = "module.layer3.0.bn1"
        arrays = {f"{name}.running_mean": [NAN], f"{name}.running_var": [1.0]}
        (d,) = concluded(arrays, finding("BN001", f"{name}.running_mean"))
        assert 'map(model.get_submodule, ["layer3.0.bn1"])' in d.snippet[1]
        compile("\n".join(d.snippet), "snippet", "exec")

    def test_keras_layers_are_found_in_their_nested_model(self):
        arrays = {f"net/{n}/moving_mean": [NAN] for n in ("a_bn", "post_bn")}
        (d,) = concluded(arrays, *[finding("BN001", name) for name in arrays])
        assert d.snippet[0] == 'net, old = (m.get_layer("net") for m in (model, earlier))'
        assert '["a_bn", "post_bn"]' in d.snippet[1]
        compile("\n".join(d.snippet), "snippet", "exec")

    @pytest.mark.parametrize("name", ['a"b', "x\ny", "a'); import os #", "\u4e2d"])
    def test_names_that_could_be_code_give_no_snippet(self, name):
        arrays = {f"{name}.running_mean": [NAN]}
        (d,) = concluded(arrays, finding("BN001", f"{name}.running_mean"))
        assert d.snippet == ()


SICK = Path(__file__).parents[2] / "sample_checkpoints" / "sick"


@pytest.mark.parametrize("path", sorted(SICK.iterdir()), ids=lambda path: path.name)
def test_commands_on_the_samples_exit_as_they_say(path, capsys, tmp_path):
    path = Path(shutil.copy(path, tmp_path) if path.is_file() else path)
    try:
        diagnoses = ckptdoctor.inspect(path).diagnoses
    except ckptdoctor.CkptDoctorError:
        return
    assert diagnoses
    for d in diagnoses:
        told = re.search(r"[Ee]xit code (\d)", d.next_tells)
        assert cli.run(shlex.split(d.next)[1:]) == int(told[1]), (d.next, d.next_tells)
    assert capsys.readouterr().err == ""


class TestCast:
    """A cast that is asked about is no illness of the file."""

    def told(self, cast_to, **measured):
        context = context_of({"input.running_var": [1e6], "fc.weight": [[1.0]]})
        context.cast_to = cast_to
        found = finding("PR001", "input.running_var", **measured)
        (diagnosis,) = conclude(context, (found,), file="m.pt")
        return diagnosis

    def test_nothing_is_lost_and_what_to_keep_is_listed(self):
        diagnosis = self.told("float16", measured={"keep_float32": True})
        assert diagnosis.key == "cast-would-lose"
        assert diagnosis.title == "Values do not fit float16, which was asked about"
        assert "Keep in float32: input.running_var, or cast to bfloat16" in diagnosis.repair
        assert diagnosis.next == "ckptdoctor inspect m.pt --cast-to bfloat16"

    def test_a_long_list_is_cut(self):
        context = context_of({f"fc{i}.weight": [[1e9]] for i in range(11)})
        context.cast_to = "float16"
        found = [
            finding("PR001", f"fc{i}.weight", measured={"keep_float32": True}) for i in range(11)
        ]
        (diagnosis,) = conclude(context, tuple(found), file="m.pt")
        assert "fc7.weight and 3 more, or cast" in diagnosis.repair
        assert "fc8.weight" not in diagnosis.repair

    def test_bfloat16_is_not_recommended_against_itself(self):
        diagnosis = self.told("bfloat16", measured={"keep_float32": True})
        assert diagnosis.repair == "Nothing is lost yet. Keep in float32: input.running_var."
        assert diagnosis.next == "ckptdoctor explain PR001"

    def test_what_is_stored_narrow_is_told_as_such(self):
        assert self.told("").key == "cast-loses-values"
