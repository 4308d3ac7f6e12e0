"""A flipped exponent bit is flipped back where the tensor shows which; everything else is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch_bytes as tb
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.diagnose import diagnose
from ckptdoctor.edits import Edit, Refusal
from ckptdoctor.errors import FormatError
from ckptdoctor.findings import Severity
from ckptdoctor.formats import open_path
from ckptdoctor.layers import Layer
from ckptdoctor.measure.scan import measure
from ckptdoctor.remedies.ailments import spikes_of
from ckptdoctor.remedies.base import Ailment, Orders, Patient
from ckptdoctor.remedies.flipped_bits import FlippedBits, Layout, Ordinary
from ckptdoctor.rules.base import Context
from ckptdoctor.tensors import Array, Quantisation, TensorTable

TYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}
WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def weights(count: int = 256, size: float = 0.05, kind: str = "float32") -> Array:
    drawn = np.random.default_rng(count).standard_t(5, count) * size
    return drawn.astype(TYPES[kind])


def flip(values: Array, index: int, bit: int) -> Array:
    changed = values.copy()
    changed.view(WORDS[values.itemsize])[index] ^= WORDS[values.itemsize](1 << bit)
    return changed


def bits_of(values: Array) -> list[int]:
    return values.view(WORDS[values.itemsize]).tolist()


def patient_of(arrays: dict[str, Array]) -> Patient:
    table = TensorTable.from_arrays(arrays)
    measured = measure(table)
    with np.errstate(all="ignore"):
        findings = diagnose(table, measured).findings
    return Patient(ctx=Context(table, measured.stats), findings=findings, orders=Orders())


def ailing(
    patient: Patient,
    name: str,
    *bad: int,
    layer: Layer | None = None,
    part: str = "",
    suspected: str = "",
    codes: Sequence[str] = ("NF001",),
) -> Ailment:
    return Ailment(
        info=patient.ctx.table[name], layer=layer, part=part, bad=np.array(bad, np.int64),
        codes=tuple(codes), suspected=suspected,
    )  # fmt: skip


def treat(values: Array, *bad: int, **more: str) -> list[Edit | Refusal]:
    patient = patient_of({"fc.weight": values})
    with np.errstate(all="ignore"):
        return list(FlippedBits().propose(patient, [ailing(patient, "fc.weight", *bad, **more)]))


def reason(values: Array, *bad: int, **more: str) -> str:
    (answer,) = treat(values, *bad, **more)
    assert isinstance(answer, Refusal)
    assert (answer.target, answer.remedy) == ("fc.weight", "flipped-bits")
    assert answer.codes == ("NF001",)
    return answer.reason


@pytest.mark.parametrize("kind", TYPES)
def test_the_highest_exponent_bit_of_a_weight_is_restored_to_the_bit(kind):
    whole = weights(kind=kind)
    (edit,) = treat(flip(whole, 17, 8 * whole.itemsize - 2), 17)
    assert isinstance(edit, Edit)
    assert edit.indices.tolist() == [17]
    assert bits_of(edit.after()) == bits_of(whole[17:18])
    assert edit.after().dtype == whole.dtype
    assert (edit.remedy, edit.kind, edit.cures) == ("flipped-bits", "statistical", ("NF001",))
    assert f"-> {float(whole[17]):.6g}" in edit.title


@given(st.integers(0, 255), st.booleans())
@settings(max_examples=40, deadline=None)
def test_restored_weights_are_the_original_or_none(index, big):
    whole = weights() * np.float32(20 if big else 1)
    (answer,) = treat(flip(whole, index, 30), index)
    assert isinstance(answer, Refusal) or bits_of(answer.after()) == bits_of(whole[[index]])


def test_three_flipped_bits_are_restored_each_by_its_own():
    whole = weights()
    sick = flip(flip(flip(whole, 3, 30), 40, 30), 200, 30)
    (edit,) = treat(sick, 3, 40, 200)
    assert edit.indices.tolist() == [3, 40, 200]
    assert bits_of(edit.after()) == bits_of(whole[[3, 40, 200]])


def test_bad_elements_are_found_in_whichever_block_they_lie():
    whole = weights(140_000)  # three blocks of 256 KiB
    places = (65_535, 65_536, 139_999)
    sick = whole
    for place in places:
        sick = flip(sick, place, 30)
    (edit,) = treat(sick, *places)
    assert bits_of(edit.after()) == bits_of(whole[list(places)])


def test_four_bad_elements_are_a_pattern_that_is_not_looked_at():
    sick = weights()
    for place in range(4):
        sick = flip(sick, place, 30)
    assert treat(sick, 0, 1, 2, 3) == []
    assert treat(sick) == []


@pytest.mark.parametrize(("count", "treated"), [(63, False), (64, True)], ids=str)
def test_a_tensor_shows_what_is_ordinary_from_64_elements_on(count, treated):
    whole = np.full(count, 0.5, np.float32)
    assert bool(treat(flip(whole, 5, 30), 5)) is treated


def test_ailments_that_are_only_suspected_are_left_alone():
    assert treat(flip(weights(), 5, 30), 5, suspected="it may be the inputs' scale") == []


@pytest.mark.parametrize("what", ["float8", "integer", "quantised", "optimizer"])
def test_kinds_of_tensor_without_a_clear_answer_are_not_looked_at(what):
    arrays = {
        "float8": weights().astype(ml_dtypes.float8_e5m2),
        "integer": np.arange(256, dtype=np.int32),
    }
    patient = patient_of({"w": arrays.get(what, weights())})
    ailment = ailing(patient, "w", 5)
    more = {"quantised": {"encoding": "quantised"}, "optimizer": {"role": "optimizer"}}
    info = ailment.info._replace(
        **more.get(what, {}),
        quantisation=Quantisation(scheme="affine", scale=1.0, zero_point=0),
    )
    ailment = Ailment(info=info, layer=None, part="", bad=ailment.bad, codes=("NF001",))
    assert list(FlippedBits().propose(patient, [ailment])) == []


# --- NaN and infinities ---------------------------------------------------------------------------


def gains(kind: str = "float32") -> Array:
    return np.random.default_rng(5).uniform(0.7, 1.6, 128).astype(TYPES[kind])


@pytest.mark.parametrize("kind", TYPES)
def test_a_nan_that_keeps_the_bits_of_a_gain_is_restored(kind):
    whole = gains(kind)
    index = next(i for i in range(20, 128) if 1.1 < whole[i] < 1.4)
    sick = flip(whole, index, 8 * whole.itemsize - 2)
    with np.errstate(invalid="ignore"):
        assert np.isnan(sick[index])
    (edit,) = treat(sick, index)
    assert bits_of(edit.after()) == bits_of(whole[[index]])


@pytest.mark.parametrize(
    "bits",
    [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7F800001],
    ids=["positive quiet", "negative quiet", "all ones", "lowest bit"],
)
def test_a_nan_that_arithmetic_makes_is_left_alone(bits):
    sick = gains()
    sick.view(np.uint32)[7] = bits
    assert "arithmetic" in reason(sick, 7)


def test_a_nan_among_weights_that_are_all_below_one_has_no_original():
    sick = weights(size=0.01)
    sick.view(np.uint32)[7] = 0x7F812345
    assert "no bit leads back" in reason(sick, 7)


@pytest.mark.parametrize(("ones", "most"), [(64, True), (63, False), (1, False)], ids=str)
def test_an_infinity_is_restored_only_to_what_most_of_the_tensor_is(ones, most):
    others = np.linspace(1.1, 1.9, 127 - ones)
    sick = np.concatenate([[np.inf], np.ones(ones), others]).astype(np.float32)
    (answer,) = treat(sick, 0)
    assert isinstance(answer, Edit) is most
    if most:
        assert answer.after().tolist() == [1.0]
    else:
        assert "overflow" in answer.reason


# --- what is not surely a flipped bit -------------------------------------------------------------


def test_a_spike_that_no_bit_explains_is_left_alone():
    sick = weights()
    sick[9] = 3.0e9
    assert "no bit leads back to the size of the others" in reason(sick, 9)


def test_an_original_that_could_be_either_of_two_is_left_alone():
    # exponents 119 and 123 are both common, 127 has one bit more than each
    whole = np.concatenate([np.full(64, 2.0**-8), np.full(64, 2.0**-4)]).astype(np.float32)
    whole[0] = 1.25
    assert "2 bits lead back" in reason(whole, 0)


@pytest.mark.parametrize(("rare", "sure"), [(1, True), (2, False)], ids=["1 of 100", "2 of 101"])
def test_the_likeliest_original_has_99_percent_of_the_weight(rare, sure):
    whole = np.concatenate([[1.25], np.full(rare, 2.0**-4), np.full(99, 2.0**-8)])
    (answer,) = treat(whole.astype(np.float32), 0)
    assert isinstance(answer, Edit) is sure


@pytest.mark.parametrize(("count", "common"), [(99, True), (100, False)], ids=str)
def test_the_originals_size_is_that_of_one_percent_of_the_others(count, common):
    whole = np.concatenate([[2.0**124], np.full(1, 2.0**-4), np.full(count, 2.0**-1)])
    whole[1:2] = 2.0**-4
    (answer,) = treat(whole.astype(np.float32), 0)
    assert isinstance(answer, Edit) is common
    if not common:
        assert "few of the others are of the size of 0.0625" in answer.reason


@pytest.mark.parametrize(("exponent", "far"), [(-8, True), (-4, False)], ids=["256", "16"])
def test_a_weight_must_be_256_times_its_original(exponent, far):
    whole = np.full(128, 2.0**exponent, np.float32)
    whole[4] = 1.25
    (answer,) = treat(whole, 4)
    assert isinstance(answer, Edit) is far
    if not far:
        assert "16 times its likely original is not far enough" in answer.reason


@pytest.mark.parametrize("part", ["mean", "var"])
@pytest.mark.parametrize(("power", "far"), [(5, True), (4, False)], ids=["2**32", "2**16"])
def test_a_running_statistic_must_be_far_beyond_what_a_batch_can_do(part, power, far):
    # of exponent 127 - 2**power, the bit 2**power is 0
    whole = np.full(128, 2.0 ** -(2**power), np.float32)
    whole[4] = 1.25
    (answer,) = treat(whole, 4, part=part)
    assert isinstance(answer, Edit) is far
    assert isinstance(treat(whole, 4, part="gamma")[0], Edit)


def test_a_negative_variance_is_left_alone():
    whole = np.random.default_rng(6).uniform(0.2, 1.2, 128).astype(np.float32)
    whole[4] *= -1
    assert "no bit leads back" in reason(whole, 4, part="var")


def test_a_negative_number_is_not_restored_where_all_others_are_positive():
    whole = np.random.default_rng(6).uniform(0.2, 1.2, 128).astype(np.float32)
    sick = whole.copy()
    sick[4] = flip(-whole, 4, 30)[4]
    assert "no bit leads back" in reason(sick, 4)


def test_an_original_within_the_range_of_the_others_counts_though_none_has_its_size():
    # one bit leads to 2**-8, which half of the others are, another to 2**-4, which none is
    whole = np.array([1.25] + [2.0**-8] * 49 + [2.0**-3] * 49, np.float32)
    assert "2 bits lead back" in reason(whole, 0)


def test_zeros_are_no_example_of_what_is_ordinary():
    whole = np.zeros(128, np.float32)
    whole[4] = 2.0**120
    assert "no bit leads back" in reason(whole, 4)


def test_a_place_that_is_broken_in_two_tensors_of_a_layer_is_no_accident():
    statistics = np.random.default_rng(7).uniform(1.1, 1.9, 128).astype(np.float32)
    arrays = {
        "bn.weight": np.ones(128, np.float32), "bn.bias": np.zeros(128, np.float32),
        "bn.running_mean": flip(statistics, 9, 30), "bn.running_var": flip(statistics, 9, 30),
    }  # fmt: skip
    patient = patient_of(arrays)
    layer = patient.ctx.layers.of("bn.running_var")
    mean = ailing(patient, "bn.running_mean", 9, layer=layer, part="mean")
    var = ailing(patient, "bn.running_var", 9, layer=layer, part="var")
    answers = list(FlippedBits().propose(patient, [mean, var]))
    assert [type(answer) for answer in answers] == [Refusal, Refusal]
    assert "'bn.running_var' is broken in the same place" in answers[0].reason
    elsewhere = ailing(patient, "bn.running_var", 10, 11, layer=layer, part="var")
    assert isinstance(next(FlippedBits().propose(patient, [mean, elsewhere])), Edit)
    nobody = ailing(patient, "bn.running_var", 9, part="var")
    assert isinstance(next(FlippedBits().propose(patient, [mean, nobody])), Edit)
    assert isinstance(next(FlippedBits().propose(patient, [nobody, mean])), Edit)


def test_values_that_cannot_be_read_are_refused(monkeypatch):
    patient = patient_of({"fc.weight": weights()})

    def broken(*_):
        raise FormatError("expected a chunk, found none")

    monkeypatch.setattr(TensorTable, "blocks", broken)
    (answer,) = FlippedBits().propose(patient, [ailing(patient, "fc.weight", 5)])
    assert answer.reason == "its values cannot be read: expected a chunk, found none"


# --- the rule that finds them ---------------------------------------------------------------------


def test_spikes_that_the_rule_finds_are_cured():
    whole = weights(16 * 64).reshape(16, 64)
    sick = flip(whole.reshape(-1), 130, 30).reshape(16, 64)
    patient = patient_of({"fc.weight": sick, "fc.bias": np.zeros(16, np.float32)})
    (ailment,) = spikes_of(patient)
    assert (ailment.info.name, ailment.bad.tolist()) == ("fc.weight", [130])
    assert (ailment.codes, ailment.part, ailment.suspected) == (("WT004",), "kernel", "")
    assert ailment.layer is not None
    (edit,) = FlippedBits().propose(patient, [ailment])
    assert edit.cures == ("WT004",)
    cured = sick.reshape(-1).copy()
    cured[edit.indices] = edit.after()
    assert cured.tobytes() == whole.tobytes()
    after = patient_of({"fc.weight": cured.reshape(16, 64), "fc.bias": np.zeros(16, np.float32)})
    assert not list(after.about("WT004"))


@pytest.mark.parametrize(
    ("severity", "count"), [(Severity.NOTE, 0), (Severity.WARNING, 1), (Severity.ERROR, 1)], ids=str
)
def test_spikes_count_from_a_warning_on(severity, count):
    sick = flip(weights(16 * 64), 130, 30).reshape(16, 64)
    patient = patient_of({"fc.weight": sick})
    patient.findings = tuple(replace(f, severity=severity) for f in patient.about("WT004"))
    assert len(list(spikes_of(patient))) == count


def test_spikes_are_listed_in_the_order_of_their_places():
    sick = flip(flip(weights(16 * 64), 130, 30), 70, 30).reshape(16, 64)
    patient = patient_of({"fc.weight": sick})
    (finding,) = patient.about("WT004")
    patient.findings = (replace(finding, measured={"index": [[2, 2], [1, 6]]}),)
    (ailment,) = spikes_of(patient)
    assert ailment.bad.tolist() == [70, 130]


def test_spikes_in_shared_memory_are_listed_once(tmp_path):
    sick = flip(weights(16 * 64), 130, 30)
    where = tb.storage("0", "FloatStorage", 1024)
    names = ("embed.weight", "head.weight")
    state = {name: tb.tensor(where, (16, 64)) for name in names}
    path = tmp_path / "tied.pt"
    path.write_bytes(tb.archive(state, {"0": sick.tobytes()}))
    with open_path(path) as table:
        measured = measure(table)
        findings = diagnose(table, measured).findings
        patient = Patient(ctx=Context(table, measured.stats), findings=findings, orders=Orders())
        assert {finding.tensor for finding in patient.about("WT004")} == set(names)
        (ailment,) = spikes_of(patient)
        assert ailment.bad.tolist() == [130]


def test_a_healthy_tensor_has_no_spikes():
    patient = patient_of({"fc.weight": weights(16 * 64).reshape(16, 64)})
    assert not list(spikes_of(patient))


def test_counts_leave_out_zeros_and_what_is_bad():
    layout = Layout.of(patient_of({"w": weights()}).ctx.table["w"].kind)
    values = np.array([0.0, -0.0, 1.0, -1.0, 1.5, 3e38], np.float32)
    found = Ordinary.among(iter([values[:3], values[3:]]), layout, np.array([5]))
    assert found.bad == (int(values[5:].view(np.uint32)[0]),)
    assert {int(code): int(found.counts[code]) for code in np.flatnonzero(found.counts)} == {
        127: 2, 127 + 256: 1,
    }  # fmt: skip
