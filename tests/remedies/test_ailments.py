"""Which elements are broken: no more than what is, and with the reason where it is only suspected."""

from __future__ import annotations

import bedside
import numpy as np
import pytest

from ckptdoctor.remedies import ailments
from ckptdoctor.remedies.ailments import ailments_of

NAN, INF = float("nan"), float("inf")
EYE = np.eye(4, dtype=np.float32)[:, :, None, None]


def net(mean, var, first=(1.0, 0.9, 1.1, 1.2), kernel=1.0, dtype=np.float32):
    """Two convolutions with squared norms of 1, each with a BatchNorm; the second is the patient."""
    ones = np.ones(4, np.float32)
    return {
        "conv1.weight": EYE, "bn1.running_mean": np.arange(4.0).astype("f4"),
        "bn1.running_var": np.array(first, "f4"),
        "conv2.weight": EYE * np.float32(kernel), "bn2.weight": ones, "bn2.bias": ones * 0,
        "bn2.running_mean": np.array(mean, dtype), "bn2.running_var": np.array(var, dtype),
    }  # fmt: skip


def broken(tensors, **orders):
    sick = bedside.patient(tensors, **orders)
    return {a.info.name: (a.bad.tolist(), a.suspected) for a in ailments_of(sick)}


class TestChannels:
    def test_healthy_layer_has_none(self):
        assert broken(net([0, 1, 2, 3], [1, 2, 3, 4])) == {}

    def test_only_channels_that_are_not_finite(self):
        assert broken(net([0, NAN, 2, 3], [1, NAN, 3, 4])) == {
            "bn2.running_mean": ([1], ""),
            "bn2.running_var": ([1], ""),
        }

    def test_finite_mean_beside_a_nan_variance_stays(self):
        assert broken(net([0, 1, 2, 3], [NAN] * 4)) == {"bn2.running_var": ([0, 1, 2, 3], "")}

    def test_finite_mean_beside_a_negative_variance_stays(self):
        assert broken(net([0, 1, 2, 3], [1, -0.5, 3, 4])) == {"bn2.running_var": ([1], "")}

    def test_mean_beside_an_infinite_variance_goes_with_it(self):
        assert broken(net([0, 1e27, 2, 3], [1, INF, 3, 4])) == {
            "bn2.running_mean": ([1], ""),
            "bn2.running_var": ([1], ""),
        }

    def test_channels_of_an_exploded_layer_that_did_not_explode_stay(self):
        var = [2e4, 3e4, 4e4, ailments.APART * 0.99]
        assert broken(net([0, 1, 2, 3], var)) == {
            "bn2.running_mean": ([0, 1, 2], ""),
            "bn2.running_var": ([0, 1, 2], ""),
        }
        var[3] = ailments.APART * 1.01
        assert broken(net([0, 1, 2, 3], var))["bn2.running_var"] == ([0, 1, 2, 3], "")

    def test_where_all_layers_exploded_what_is_usual_says_nothing(self):
        tensors = {}
        for i in range(6):
            tensors[f"conv{i}.weight"] = EYE
            tensors[f"bn{i}.running_mean"] = np.zeros(4, "f4")
            tensors[f"bn{i}.running_var"] = np.full(4, 1e12 if i else 1.0, "f4")
        found = broken(tensors)
        assert {f"bn{i}.running_var" for i in range(1, 6)} <= found.keys()

    def test_single_wild_channel_is_the_only_one(self):
        found = broken(net([0, 1, 2, 3], [1, 1, 1, 1e6]))
        assert found["bn2.running_var"] == ([3], "")
        assert found["bn2.running_mean"] == ([3], "")


class TestSuspected:
    def test_large_first_layer_may_be_the_scale_of_the_inputs(self):
        tensors = net([0] * 4, [1.0] * 4, first=[5e6, 2e7, 5e6, 5e6])
        assert broken(tensors)["bn1.running_var"] == ([0, 1, 2, 3], ailments.FIRST)

    def test_note_about_pixels_is_no_ailment(self):
        assert broken(net([0] * 4, [1.0] * 4, first=[5e3] * 4)) == {}

    def test_first_layer_beyond_all_data_is_certain(self):
        tensors = net([0] * 4, [1.0] * 4, first=[1e30] * 4)
        assert broken(tensors)["bn1.running_var"] == ([0, 1, 2, 3], "")

    def test_layer_on_the_input_may_see_raw_values(self):
        tensors = {
            "input_norm.running_mean": [0.0, 9e9], "input_norm.running_var": [1.0, 1e12],
            "conv.weight": np.ones((4, 2, 3, 3), "f4"),
        }  # fmt: skip
        found = broken(tensors)
        assert found["input_norm.running_var"][1] == ailments.INPUT
        tensors["input_norm.running_var"] = [1.0, NAN]
        assert broken(tensors)["input_norm.running_var"] == ([1], "")

    def test_infinity_of_float16_may_be_a_cast(self):
        tensors = net([0, 1, 2, 3], [1, INF, 3, 4], dtype=np.float16)
        assert broken(tensors) == {"bn2.running_var": ([1], ailments.HALF)}
        tensors = net([0, NAN, 2, 3], [1, INF, 3, 4], dtype=np.float16)
        assert broken(tensors)["bn2.running_var"] == ([1], "")

    def test_only_the_infinities_of_float16_are_held(self):
        sick = bedside.patient(net([0, 1, 2, 3], [NAN, INF, -3, 4], dtype=np.float16))
        found = [(a.bad.tolist(), a.suspected) for a in ailments_of(sick) if a.part == "var"]
        assert found == [([0, 2], ""), ([1], ailments.HALF)]

    @pytest.mark.parametrize("name", ["input_norm", "bn1"], ids=["on the input", "first"])
    def test_negative_channel_makes_no_large_one_certain(self, name):
        tensors = {
            f"{name}.running_mean": [0.0, 9.0, 1.0, 2.0],
            f"{name}.running_var": [1e10, -4.0, 3e10, 2e10],
        }
        if name == "bn1":
            tensors = {"conv1.weight": EYE, **tensors}
        tensors["conv2.weight"] = np.ones((4, 4, 3, 3), "f4")
        sick = bedside.patient(tensors)
        certain = {a.part: a.bad.tolist() for a in ailments_of(sick) if not a.suspected}
        assert certain == {"var": [1]}

    def test_channels_that_exploded_beside_lost_ones_are_seen(self):
        kept, lost = ailments.HIDDEN * 0.99, ailments.HIDDEN * 1.01
        found = broken(net([NAN, 1, 2, 3], [NAN, kept, lost, 1.0]))
        assert found["bn2.running_var"] == ([2], "")
        sick = bedside.patient(net([NAN, 1, 2, 3], [NAN, kept, lost, 1.0]))
        every = [a.bad.tolist() for a in ailments_of(sick) if a.part == "var"]
        assert every == [[0], [2]]

    def test_naming_a_tensor_makes_it_certain(self):
        tensors = net([0] * 4, [1.0] * 4, first=[5e6, 2e7, 5e6, 5e6])
        sick = bedside.patient(tensors)
        sick.named = frozenset({"bn1.running_var"})
        (named,) = [a for a in ailments_of(sick) if a.info.name == "bn1.running_var"]
        assert named.suspected == ""

    def test_healthy_layer_that_is_named_is_treated_whole(self):
        sick = bedside.patient(net([0, 1, 2, 3], [1, 2, 3, 4]))
        sick.named = frozenset({"bn2.running_mean"})
        found = {a.info.name: a.bad.tolist() for a in ailments_of(sick)}
        assert found == {"bn2.running_mean": [0, 1, 2, 3], "bn2.running_var": [0, 1, 2, 3]}


class TestValues:
    def test_elements_that_are_not_finite(self):
        assert broken({"fc.weight": [[1.0, NAN], [INF, 2.0]]}) == {"fc.weight": ([1, 2], "")}

    def test_complex_numbers_count_once(self):
        assert broken({"fc.weight": np.array([[1 + 1j, complex(NAN, NAN)]], "c8")}) == {
            "fc.weight": ([1], "")
        }

    def test_negative_second_moments_are_and_negative_first_ones_not(self):
        tensors = {
            "model.fc.weight": [[1.0, 2.0]],
            "optimizer.state.0.exp_avg": [[-1.0, 2.0]],
            "optimizer.state.0.exp_avg_sq": [[-1.0, 2.0]],
        }
        assert broken(tensors) == {"optimizer.state.0.exp_avg_sq": ([0], "")}

    def test_masks_of_infinities_are_none(self):
        assert broken({"attn.mask": np.triu(np.full((4, 4), -INF, "f4"), 1)}) == {}

    def test_gains_of_a_norm(self):
        tensors = {"norm.weight": [1.0, NAN, 1.0], "norm.bias": [0.0, 0.0, INF]}
        assert set(broken(tensors)) == {"norm.weight", "norm.bias"}

    def test_spike_is_one_element(self):
        weight = np.random.default_rng(0).normal(0, 0.05, (16, 16)).astype("f4")
        weight[3, 4] = 1e30
        assert broken({"fc.weight": weight}) == {"fc.weight": ([52], "")}


def test_ailments_come_in_file_order():
    tensors = {"fc.weight": [[NAN]], **net([NAN] * 4, [NAN] * 4), "z.weight": [[NAN]]}
    sick = bedside.patient(tensors)
    names = [a.info.name for a in ailments_of(sick)]
    assert names == ["fc.weight", "bn2.running_mean", "bn2.running_var", "z.weight"]


@pytest.mark.parametrize(("treated", "left"), [([1], [0, 3]), ([0, 1, 3], None), ([2], [0, 1, 3])])
def test_what_is_left_of_an_ailment(treated, left):
    ailment = bedside.ailing(bedside.patient({"fc.weight": [[NAN, NAN, 1.0, NAN]]}), "fc.weight")
    rest = ailment.without(np.array(treated))
    assert (rest.bad.tolist() if rest else None) == left
