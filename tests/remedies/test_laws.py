"""Initialisation laws: their names, their numbers, their fans, and the frameworks' own as judges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.errors import UsageError
from ckptdoctor.layers import read_layers
from ckptdoctor.remedies.laws import (
    ALIASES,
    BLOCK,
    LARGEST,
    LAWS,
    Law,
    draw,
    generator,
    law,
    parse_order,
    reach,
    spread,
)
from ckptdoctor.remedies.own_laws import config_law, fans, own_law
from ckptdoctor.tensors import LayerConfig, TensorTable

NEEDED: dict[str, dict[str, Any]] = {
    "normal": {"std": 0.02},
    "truncated_normal": {"std": 0.02},
    "uniform": {"low": -0.1, "high": 0.3},
    "constant": {"value": 0.25},
}


def drawn(
    found: Law, shape: tuple[int, ...], *, keras: bool = False, dtype: Any = "f4", seed: int = 1
) -> Any:
    fan_in, fan_out = fans(shape, keras=keras)
    return draw(
        found, shape, fan_in=fan_in, fan_out=fan_out, rng=generator(seed, "w"),
        dtype=np.dtype(dtype), outputs_last=keras,
    )  # fmt: skip


# --- names and numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pattern", "told"),
    [
        ("fc.*", "fc.*", None),
        ("fc.*=he", "fc.*", "he_normal(mode=fan_in)"),
        ("fc.*=KAIMING", "fc.*", "kaiming_normal(a=0, mode=fan_in)"),
        ("fc.*= xavier ( gain=2 , mode=fan_out ) ", "fc.*", "xavier_uniform(gain=2, mode=fan_out)"),
        ("fc.*=glorot", "fc.*", "glorot_uniform(mode=fan_avg)"),
        ("fc.*=lecun()", "fc.*", "lecun_normal(mode=fan_in)"),
        ("conv[12].w=trunc_normal(std=0.02)", "conv[12].w", "truncated_normal(mean=0, std=0.02)"),
        ("a=b=zeros", "a=b", "zeros"),
        ("a=b=", "a=b", None),
        ("x==ones", "x=", "ones"),
        ("[=]w=orthogonal", "[=]w", "orthogonal(gain=1)"),
        ("w(1)=uniform(minval=-1,maxval=1)", "w(1)", "uniform(low=-1, high=1)"),
        ("two\nlines=constant(value=1e-3)", "two\nlines", "constant(value=0.001)"),
    ],
)
def test_an_order_is_a_pattern_and_a_law(text: str, pattern: str, told: str | None) -> None:
    found, chosen = parse_order(text)
    assert (found, chosen and str(chosen)) == (pattern, told)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("pattern", "nothing")),
        ("w=kaimin", ("'kaimin'", "did you mean 'kaiming'")),
        ("w=wobble", ("'wobble'", "kaiming_normal, ")),
        ("[a=b]*", ("ends with '='",)),
        ("w=normal", ("normal needs std", "normal(std=NUMBER)")),
        ("w=uniform(low=1,high=1)", ("low", "below high")),
        ("w=uniform(low=1,high=-1)", ("low", "below high")),
        ("w=uniform(low=1)", ("uniform needs high",)),
        ("w=normal(std=0)", ("above 0", "0.0")),
        ("w=normal(std=-1)", ("above 0",)),
        ("w=variance_scaling(scale=0)", ("scale", "above 0")),
        ("w=orthogonal(gain=0)", ("gain", "above 0")),
        ("w=normal(std=nan)", ("finite",)),
        ("w=normal(std=inf)", ("finite",)),
        ("w=normal(std=1e101)", ("finite",)),
        ("w=normal(std=wide)", ("finite number", "'wide'")),
        ("w=normal(sdt=1)", ("'sdt'", "did you mean 'std'")),
        ("w=zeros(x=1)", ("no argument 'x'", "none")),
        ("w=he(mode=fan)", ("fan_in or fan_out or fan_avg", "'fan'")),
        ("w=variance_scaling(distribution=odd)", ("uniform", "'odd'")),
        ("w=normal(std=1,std=2)", ("'std' once",)),
        ("w=normal(std)", ("argument=number", "'std'")),
        ("w=normal(std=)", ("argument=number",)),
        ("w=normal(=1)", ("argument=number",)),
        ("w=normal(name=1)", ("no argument 'name'",)),
        ("w=normal(std=1", ("PATTERN=LAW",)),
        ("w=(std=1)", ("PATTERN=LAW",)),
        ("w=normal(std=(1))", ("PATTERN=LAW",)),
    ],
)
def test_a_wrong_order_is_refused_with_what_to_write(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_order(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@settings(max_examples=150)
@given(st.text(max_size=30) | st.text("w=()normalstd,.1[]*", max_size=30))
def test_any_text_is_an_order_or_a_usage_error(text: str) -> None:
    try:
        pattern, chosen = parse_order(text)
    except UsageError:
        return
    assert pattern
    assert chosen is None or chosen.name in LAWS


def test_the_largest_argument_has_a_square() -> None:
    found = law("xavier_uniform", gain=LARGEST)
    assert math.isfinite(spread(found, 1, 1).width)
    assert math.isfinite(spread(law("variance_scaling", scale=LARGEST), 1, 1).width)


def test_every_alias_names_a_law() -> None:
    assert set(ALIASES.values()) <= set(LAWS)


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fan", "scale"),
    [
        ("kaiming_normal", 288, 2), ("kaiming_uniform", 288, 2), ("he_normal", 288, 2),
        ("he_uniform", 288, 2), ("xavier_normal", 432, 1), ("xavier_uniform", 432, 1),
        ("glorot_normal", 432, 1), ("glorot_uniform", 432, 1), ("lecun_normal", 288, 1),
        ("lecun_uniform", 288, 1), ("variance_scaling", 288, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keras", [False, True])
def test_the_variance_is_the_scale_by_the_fan(
    name: str, fan: float, scale: float, keras: bool
) -> None:
    shape = (3, 3, 32, 64) if keras else (64, 32, 3, 3)
    made = drawn(law(name), shape, keras=keras)
    assert made.shape == shape
    assert made.var() == pytest.approx(scale / fan, rel=0.05)
    assert abs(made.mean()) < 4 * math.sqrt(scale / fan / made.size)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 100), ("fan_out", 400), ("fan_avg", 250)])
def test_a_mode_chooses_the_fan(mode: str, fan: int) -> None:
    assert spread(law("variance_scaling", mode=mode, distribution="untruncated_normal"), 100, 400) == (
        "normal", 0.0, pytest.approx(fan**-0.5)
    )  # fmt: skip


def test_a_slope_and_a_gain_scale_a_law() -> None:
    plain = spread(law("kaiming_uniform"), 10, 10).width
    assert spread(law("kaiming_uniform", a=3.0), 10, 10).width == pytest.approx(plain / 10**0.5)
    assert spread(law("xavier_normal", gain=3.0), 10, 10).width == pytest.approx(3 / 10**0.5)
    assert spread(law("variance_scaling", scale=9.0, distribution="uniform"), 10, 0) == (
        "uniform", 0.0, pytest.approx((3 * 9 / 10) ** 0.5)
    )  # fmt: skip


def test_no_inputs_count_as_one() -> None:
    assert spread(law("xavier_normal", gain=1.0), 0, 0).width == 1.0


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_bounds_are_kept(dtype: str) -> None:
    made = drawn(law("uniform", low=-0.1, high=0.3), (500, 100), dtype=dtype)
    assert made.dtype == np.dtype(dtype)
    made = made.astype("f8")
    assert -0.1001 < made.min() < -0.0995
    assert 0.2995 < made.max() < 0.3001
    cut = drawn(law("truncated_normal", mean=1.0, std=0.5), (500, 100), dtype=dtype).astype("f8")
    assert -0.0001 <= cut.min() < 0.001
    assert 1.999 < cut.max() <= 2.001
    assert cut.mean() == pytest.approx(1.0, abs=0.01)
    assert cut.std() == pytest.approx(0.5 * 0.8796, rel=0.02)
    wide = drawn(law("normal", mean=1.0, std=0.5), (500, 100), dtype=dtype)
    assert wide.max() > 2.4
    assert float(wide.astype("f8").std()) == pytest.approx(0.5, rel=0.02)


def test_types_without_a_numpy_name_are_drawn() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    made = drawn(law("lecun_normal"), (64, 256), dtype=ml_dtypes.bfloat16)
    assert made.dtype == ml_dtypes.bfloat16
    assert float(made.astype("f4").var()) == pytest.approx(1 / 256, rel=0.05)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (8, 4, 3, 3), (3, 3, 4, 40)])
@pytest.mark.parametrize("keras", [False, True])
def test_an_orthogonal_matrix_is_one_over_the_axis_of_outputs(
    shape: tuple[int, ...], keras: bool
) -> None:
    made = drawn(law("orthogonal", gain=2.0), shape, keras=keras, dtype="f8")
    matrix = made.reshape(-1, shape[-1]) if keras else made.reshape(shape[0], -1)
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    np.testing.assert_allclose(gram, 4 * np.eye(min(rows, columns)), atol=1e-12)


def test_orthogonal_matrices_have_no_preferred_sign() -> None:
    """Without the sign of R's diagonal, Householder's reflections make the first entry negative."""
    firsts = [drawn(law("orthogonal"), (3, 3), seed=seed)[0, 0] for seed in range(60)]
    assert 15 < sum(value > 0 for value in firsts) < 45


def test_constants_are_what_they_say() -> None:
    assert drawn(law("zeros"), (2, 3)).tolist() == [[0.0] * 3] * 2
    assert drawn(law("ones"), (2,)).tolist() == [1.0, 1.0]
    assert drawn(law("constant", value=-0.5), (2,)).tolist() == [-0.5, -0.5]
    assert drawn(law("zeros"), (), dtype="i8").tolist() == 0
    assert drawn(law("unit_forget_bias"), (8,)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_the_same_seed_and_name_give_the_same_values_whatever_else_is_drawn() -> None:
    one = generator(7, "fc.weight").standard_normal(4)
    generator(7, "other").standard_normal(9)
    assert generator(7, "fc.weight").standard_normal(4).tolist() == one.tolist()
    assert generator(8, "fc.weight").standard_normal(4).tolist() != one.tolist()
    assert generator(7, "fc.weights").standard_normal(4).tolist() != one.tolist()
    generator(-1, "\udc80")  # any integer, any name


def test_blocks_do_not_repeat() -> None:
    made = drawn(law("normal", std=1.0), (BLOCK + 1000,))
    assert not np.array_equal(made[:1000], made[BLOCK:])
    assert np.unique(made).size > 0.9 * made.size


@pytest.mark.parametrize("name", LAWS)
def test_nothing_is_drawn_beyond_its_reach(name: str) -> None:
    found = law(name, **NEEDED.get(name, {}))
    low, high = reach(spread(found, 64, 32))
    made = drawn(found, (32, 64), keras=False)
    assert low - 1e-6 <= made.min() <= made.max() <= high + 1e-6


def test_a_normal_law_reaches_eight_deviations_and_a_cut_one_two() -> None:
    assert reach(spread(law("normal", mean=1.0, std=0.5), 1, 1)) == (-3.0, 5.0)
    assert reach(spread(law("truncated_normal", mean=1.0, std=0.5), 1, 1)) == (0.0, 2.0)
    assert reach(spread(law("unit_forget_bias"), 1, 1)) == (0.0, 1.0)


def test_laws_know_whether_they_are_random() -> None:
    fixed = {name for name in LAWS if not law(name, **NEEDED.get(name, {})).random}
    assert fixed == {"constant", "zeros", "ones", "unit_forget_bias"}


# --- the layer's own law --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ("GlorotUniform", "glorot_uniform(mode=fan_avg)"),
        ("glorot_normal", "glorot_normal(mode=fan_avg)"),
        ("HeNormal", "he_normal(mode=fan_in)"),
        ("LecunUniform", "lecun_uniform(mode=fan_in)"),
        ("Zeros", "zeros"), ("Ones", "ones"), ("zero", "zeros"), ("one", "ones"),
        ("Constant", "constant(value=0)"),
        ("RandomNormal", "normal(mean=0, std=0.05)"),
        ("TruncatedNormal", "truncated_normal(mean=0, std=0.05)"),
        ("uniform", "uniform(low=-0.05, high=0.05)"),
        ({"class_name": "Constant", "value": 3}, "constant(value=3)"),
        ({"class_name": "RandomUniform", "minval": -1, "maxval": 2}, "uniform(low=-1, high=2)"),
        ({"class_name": "Orthogonal", "gain": 0.5}, "orthogonal(gain=0.5)"),
        ({"class_name": "VarianceScaling", "scale": 3.0, "mode": "fan_out", "distribution": "uniform"},
         "variance_scaling(scale=3, mode=fan_out, distribution=uniform)"),
        ({"class_name": "VarianceScaling", "scale": 1.0, "input_axes": (0, 1), "output_axes": (2,)}, None),
        ({"class_name": "VarianceScaling", "output_axes": (2,)}, None),
        ({"class_name": "Constant", "value": float("nan")}, None),
        ({"class_name": "Constant", "value": (1, 2)}, None),
        ({"class_name": "Constant", "value": True}, None),
        ({"class_name": "RandomNormal", "stddev": 0.0}, None),
        ({"class_name": None, "value": 1}, None),
        ("mine>GlorotUniform", None), ("Identity", None), ("he", None), ("", None), (7, None),
    ],
)  # fmt: skip
def test_a_stored_initialiser_is_a_law_or_none_is_known(stored: object, told: str | None) -> None:
    found = config_law(stored)
    assert (found and str(found)) == told


def owned(tensor: str, tensors: dict[str, tuple[int, ...]], **config: Any) -> str | None:
    """Own law of a tensor."""
    arrays = {each: np.zeros(shape, "f4") for each, shape in tensors.items()}
    layers = [LayerConfig(**config)] if config else []
    layer = read_layers(table := TensorTable.from_arrays(arrays, layers=layers)).of(tensor)
    assert layer is not None, list(table)
    found = own_law(layer, read_layers(table).part_of(tensor))
    return f"{found[0]} {found[1]}" if found else None


CONV = {"c.weight": (8, 4, 3, 3), "c.bias": (8,)}
LSTM = {"r/kernel": (5, 16), "r/recurrent_kernel": (4, 16), "r/bias": (16,)}
RNN = {"r.weight_ih_l0": (16, 5), "r.weight_hh_l0": (16, 4), "r.bias_ih_l0": (16,),
       "r.bias_hh_l0": (16,)}  # fmt: skip
NORM = {"n.weight": (4,), "n.bias": (4,), "n.running_mean": (4,), "n.running_var": (4,)}


@pytest.mark.parametrize(
    ("name", "tensors", "told"),
    [
        ("c.weight", CONV, "kaiming_uniform(a=2.236, mode=fan_in)"),
        ("c.bias", CONV, "uniform(low=-0.1667, high=0.1667)"),
        ("f.weight", {"f.weight": (3, 4)}, "kaiming_uniform(a=2.236, mode=fan_in)"),
        ("wte.weight", {"wte.weight": (30, 4)}, "normal(mean=0, std=1)"),
        ("n.weight", NORM, "ones"), ("n.bias", NORM, "zeros"),
        ("n.running_mean", NORM, "zeros"), ("n.running_var", NORM, "ones"),
        ("r.weight_ih_l0", RNN, "uniform(low=-0.5, high=0.5)"),
        ("r.weight_hh_l0", RNN, "uniform(low=-0.5, high=0.5)"),
        ("r.bias_hh_l0", RNN, "uniform(low=-0.5, high=0.5)"),
        ("r.weight_hh_l0", {**RNN, "r.weight_hh_l0": (16, 2), "r.weight_hr_l0": (2, 4)},
         "uniform(low=-0.5, high=0.5)"),
        ("a.in_proj_weight", {"a.in_proj_weight": (12, 4)}, "xavier_uniform(gain=1, mode=fan_avg)"),
        ("a.in_proj_bias", {"a.in_proj_weight": (12, 4), "a.in_proj_bias": (12,)}, "zeros"),
        ("a.bias_k", {"a.in_proj_weight": (12, 4), "a.bias_k": (1, 1, 4)},
         "xavier_normal(gain=1, mode=fan_avg)"),
        ("q.lora_A.weight", {"q.lora_A.weight": (2, 8), "q.lora_B.weight": (8, 2)},
         "kaiming_uniform(a=2.236, mode=fan_in)"),
        ("q.lora_B.weight", {"q.lora_A.weight": (2, 8), "q.lora_B.weight": (8, 2)}, "zeros"),
        ("w.weight_v", {"w.weight_g": (8, 1), "w.weight_v": (8, 4)},
         "kaiming_uniform(a=2.236, mode=fan_in)"),
        ("w.weight_g", {"w.weight_g": (8, 1), "w.weight_v": (8, 4)}, None),
        ("s.weight_u", {"s.weight_orig": (8, 4), "s.weight_u": (8,), "s.weight_v": (4,)}, None),
    ],
)  # fmt: skip
def test_torch_layers_start_by_torchs_laws(
    name: str, tensors: dict[str, tuple[int, ...]], told: str | None
) -> None:
    assert owned(name, tensors) == (told and f"{told} torch's default")


@pytest.mark.parametrize(
    ("name", "tensors", "told"),
    [
        ("d/kernel", {"d/kernel": (4, 3)}, "glorot_uniform(mode=fan_avg)"),
        ("c/kernel", {"c/kernel": (3, 3, 4, 8), "c/bias": (8,)}, "glorot_uniform(mode=fan_avg)"),
        ("c/bias", {"c/kernel": (3, 3, 4, 8), "c/bias": (8,)}, "zeros"),
        ("e/embeddings", {"e/embeddings": (30, 4)}, "uniform(low=-0.05, high=0.05)"),
        ("r/kernel", LSTM, "glorot_uniform(mode=fan_avg)"),
        ("r/recurrent_kernel", LSTM, "orthogonal(gain=1)"),
        ("r/bias", LSTM, "unit_forget_bias"),
        ("r/bias", {**LSTM, "r/kernel": (5, 12), "r/recurrent_kernel": (4, 12), "r/bias": (2, 12)},
         "zeros"),
        ("r/bias", {**LSTM, "r/bias": (32,)}, None),
        ("s/depthwise_kernel", {"s/depthwise_kernel": (3, 3, 4, 1), "s/pointwise_kernel": (1, 1, 4, 8)},
         "glorot_uniform(mode=fan_avg)"),
        ("n/gamma", {"n/gamma": (4,), "n/beta": (4,)}, "ones"),
        ("n/mean", {"n/mean": (4,), "n/variance": (4,), "n/count": ()}, None),
        ("Embed_0/embedding", {"Embed_0/embedding": (30, 4)}, None),
    ],
)  # fmt: skip
def test_keras_layers_start_by_keras_laws(
    name: str, tensors: dict[str, tuple[int, ...]], told: str | None
) -> None:
    assert owned(name, tensors) == (told and f"{told} Keras' default")


@pytest.mark.parametrize(
    ("name", "tensors", "settings_", "told"),
    [
        ("d/kernel", {"d/kernel": (4, 3)}, {"kernel_initializer": "HeNormal"}, "he_normal(mode=fan_in)"),
        ("d/kernel", {"d/kernel": (4, 3)}, {"kernel_initializer": "mine>Odd"}, None),
        ("d/kernel", {"d/kernel": (3, 3, 4, 1)},
         {"depthwise_initializer": "HeUniform", "kernel_initializer": "Zeros"}, "he_uniform(mode=fan_in)"),
        ("d/gamma", {"d/gamma": (3,), "d/moving_variance": (3,)}, {"gamma_initializer": "Zeros"}, "zeros"),
        ("d/moving_variance", {"d/moving_variance": (3,)},
         {"moving_variance_initializer": {"class_name": "Constant", "value": 2.0}}, "constant(value=2)"),
        ("d/bias", {f"d{name[1:]}": shape for name, shape in LSTM.items()},
         {"bias_initializer": "Zeros", "unit_forget_bias": True}, "unit_forget_bias"),
        ("d/bias", {f"d{name[1:]}": shape for name, shape in LSTM.items()},
         {"bias_initializer": "Zeros", "unit_forget_bias": False}, "zeros"),
        ("d/bias", {f"d{name[1:]}": shape for name, shape in LSTM.items()},
         {"bias_initializer": "HeNormal", "unit_forget_bias": True}, None),
    ],
)  # fmt: skip
def test_the_stored_initialiser_decides(
    name: str, tensors: dict[str, tuple[int, ...]], settings_: dict[str, Any], told: str | None
) -> None:
    found = owned(name, tensors, name="d", class_name="X", settings=settings_)
    assert found == (told and f"{told} stored in the configuration")


# --- fans, and the frameworks themselves ----------------------------------------------------------


SHAPES = [(8, 6), (8, 6, 3), (8, 6, 3, 5), (8, 1, 3, 3), (2, 8, 6, 3, 5)]


@pytest.mark.parametrize("shape", [(), (5,), *SHAPES])
@pytest.mark.oracle
def test_fans_are_those_that_keras_counts(shape: tuple[int, ...]) -> None:
    pytest.importorskip("keras")
    from keras.src.initializers.random_initializers import compute_fans

    assert fans(shape, keras=True) == compute_fans(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.oracle
def test_fans_are_those_that_torch_counts(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    told = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert fans(shape, keras=False) == told


def alike(ours: Any, theirs: Any) -> None:
    """Compare two samples of one law: moments, and how far they reach."""
    ours, theirs = np.asarray(ours, "f8"), np.asarray(theirs, "f8")
    assert ours.shape == theirs.shape
    spread_ = theirs.std()
    assert ours.std() == pytest.approx(spread_, rel=0.03)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=5 * spread_ / ours.size**0.5 + 1e-9)
    levels = (0, 0.5, 1, 10, 25, 50, 75, 90, 99, 99.5, 100)
    got, want = np.percentile(ours, levels), np.percentile(theirs, levels)
    np.testing.assert_allclose(got[1:-1], want[1:-1], atol=0.07 * spread_)
    kurtosis = [((v - v.mean()) ** 4).mean() / v.var() ** 2 for v in (ours, theirs)]
    assert kurtosis[0] == pytest.approx(kurtosis[1], rel=0.05)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("kaiming_normal_", {"a": 0.3, "mode": "fan_out"}), ("kaiming_uniform_", {"a": 5**0.5}),
        ("xavier_normal_", {"gain": 2.0}), ("xavier_uniform_", {}), ("normal_", {"std": 0.02}),
    ],
)  # fmt: skip
@pytest.mark.oracle
def test_torch_draws_the_same_law(name: str, numbers: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.empty(128, 64, 3, 3)
    getattr(torch.nn.init, name)(weight, **numbers)
    alike(drawn(law(name.rstrip("_"), **numbers), tuple(weight.shape)), weight.numpy())


@pytest.mark.oracle
def test_torchs_layers_start_as_ours() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = {
        "c": torch.nn.Conv2d(64, 128, 3), "t": torch.nn.ConvTranspose2d(64, 128, 3),
        "g": torch.nn.Conv2d(256, 256, 3, groups=4), "f": torch.nn.Linear(300, 400),
        "embed": torch.nn.Embedding(400, 100), "r": torch.nn.LSTM(50, 60),
        "a": torch.nn.MultiheadAttention(128, 4),
    }  # fmt: skip
    state = {
        f"{name}.{key}": value.detach().numpy()
        for name, layer in layers.items()
        for key, value in layer.state_dict().items()
    }
    found = read_layers(TensorTable.from_arrays(state))
    for name, value in state.items():
        layer = found.of(name)
        told = own_law(layer, found.part_of(name)) if layer is not None else None
        assert told is not None, name
        if name == "a.out_proj.bias":
            continue  # torch starts this one at 0; its name does not tell it from any Linear's
        if value.size >= 10_000:
            alike(drawn(told[0], value.shape), value)
        else:
            bound = reach(spread(told[0], *fans(value.shape, keras=False)))[1]
            assert abs(value).max() == pytest.approx(bound, rel=0.15), name


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("HeNormal", {}), ("HeUniform", {}), ("GlorotNormal", {}), ("GlorotUniform", {}),
        ("LecunNormal", {}), ("LecunUniform", {}), ("RandomNormal", {"stddev": 0.3}),
        ("RandomUniform", {"minval": -1.0, "maxval": 0.5}), ("TruncatedNormal", {"stddev": 0.3}),
        ("VarianceScaling", {"scale": 3.0, "mode": "fan_out", "distribution": "uniform"}),
        ("VarianceScaling", {"distribution": "untruncated_normal", "mode": "fan_avg"}),
        ("VarianceScaling", {}),
    ],
)  # fmt: skip
@pytest.mark.oracle
def test_keras_draws_the_same_law(name: str, numbers: dict[str, Any]) -> None:
    keras = pytest.importorskip("keras")
    theirs = getattr(keras.initializers, name)(seed=3, **numbers)
    stored = {"class_name": name, **{k: v for k, v in theirs.get_config().items() if v is not None}}
    found = config_law(stored)
    assert found is not None
    shape = (3, 3, 64, 128)
    alike(drawn(found, shape, keras=True), keras.ops.convert_to_numpy(theirs(shape)))


@pytest.mark.oracle
def test_keras_layers_start_as_ours() -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    lstm = keras.layers.LSTM(100)
    lstm.build((None, 5, 90))
    theirs = {v.name: np.asarray(v.value.numpy()) for v in lstm.weights}
    table = TensorTable.from_arrays({f"lstm/{name}": value for name, value in theirs.items()})
    found = read_layers(table)
    for name, value in theirs.items():
        layer = found.of(f"lstm/{name}")
        assert layer is not None
        told = own_law(layer, found.part_of(f"lstm/{name}"))
        assert told is not None
        ours = drawn(told[0], value.shape, keras=True)
        if told[0].name == "unit_forget_bias":
            assert ours.tolist() == value.tolist()
        elif told[0].name == "orthogonal":
            np.testing.assert_allclose(ours @ ours.T, value @ value.T, atol=1e-5)
        else:
            alike(ours, value)
