"""Broken moments start again, in all of a parameter's averages together, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import patients
import pytest
from bedside import after, ailing, edits, patient, refusals
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.remedies.base import Orders
from ckptdoctor.remedies.optimizer_state import OptimizerState

NAN, INF = float("nan"), float("inf")


def proposed(sick: Any, *ailments: Any) -> list[Any]:
    return list(OptimizerState().propose(sick, ailments))


def state(key: str, **slots: Any) -> dict[str, Any]:
    return {f"optimizer.state.{key}.{name}": np.float32(value) for name, value in slots.items()}


def test_it_needs_no_asking_and_estimates() -> None:
    assert not OptimizerState().asked(Orders(drop_optimizer=True))
    assert OptimizerState.kind == "statistical"


def test_the_same_elements_of_every_moment_start_again_and_the_counter_stays() -> None:
    tensors = {
        **state("0", step=41, exp_avg=[[1, NAN], [3, 4]], exp_avg_sq=[[5, 6], [-7, INF]],
                max_exp_avg_sq=[[9, 8], [7, 6]]),
        **state("1", step=41, exp_avg=[1, 2], exp_avg_sq=[3, 4], max_exp_avg_sq=[5, 6]),
    }  # fmt: skip
    sick = patient(tensors)
    first = ailing(sick, "optimizer.state.0.exp_avg")
    second = ailing(sick, "optimizer.state.0.exp_avg_sq", [2, 3])
    found = edits(proposed(sick, first, second))
    made = {name.rpartition(".")[2]: after(sick, change).tolist() for name, change in found.items()}
    assert made == {
        "exp_avg": [[1, 0], [0, 0]],
        "exp_avg_sq": [[5, 0], [0, 0]],
        "max_exp_avg_sq": [[9, 0], [0, 0]],
    }
    assert found["optimizer.state.0.exp_avg"].cures == ("TS001",)
    assert set(found["optimizer.state.0.exp_avg_sq"].cures) == {"TS001", "TS002"}
    assert set(found["optimizer.state.0.max_exp_avg_sq"].cures) == {"TS001", "TS002"}
    assert found["optimizer.state.0.exp_avg"].title == "starts again at 0"
    assert "with the moment that is broken" in found["optimizer.state.0.max_exp_avg_sq"].title
    assert all(change.kind == "statistical" for change in found.values())


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from([0.5, NAN, INF, -INF]), min_size=6, max_size=6),
    st.lists(st.sampled_from([0.5, NAN, INF]), min_size=6, max_size=6),
)
def test_afterwards_all_is_finite_and_sound_elements_are_what_they_were(
    m: list[float], v: list[float]
) -> None:
    sick = patient(state("0", exp_avg=m, exp_avg_sq=v))
    ailments = [ailing(sick, name) for name in sick.ctx.table if ailing(sick, name).bad.size]
    found = edits(proposed(sick, *ailments))
    broken = ~(np.isfinite(m) & np.isfinite(v))
    assert bool(found) == bool(broken.any())
    for name, change in found.items():
        expected = np.where(broken, 0, sick.ctx.table.read(name))
        np.testing.assert_array_equal(after(sick, change), expected)


@pytest.mark.parametrize(
    ("slots", "start"),
    [
        ({"momentum_buffer": [1, NAN]}, {"momentum_buffer": 0}),
        ({"square_avg": [1, INF], "grad_avg": [1, 2], "momentum_buffer": [1, 2]},
         {"square_avg": 0, "grad_avg": 0, "momentum_buffer": 0}),
        ({"square_avg": [1, NAN], "acc_delta": [1, 2]}, {"square_avg": 0, "acc_delta": 0}),
        ({"exp_avg": [1, NAN], "exp_inf": [1, 2]}, {"exp_avg": 0, "exp_inf": 0}),
        ({"sum": [1, NAN]}, {"sum": 0}),
        ({"exp_avg": [1, NAN], "exp_avg_var": [1, 2]}, {"exp_avg": 0, "exp_avg_var": 0}),
        ({"exp_avg": [1, NAN], "master_param": [1, 2]}, {"exp_avg": 0}),
    ],
)  # fmt: skip
def test_torchs_optimizers_start_at_0(slots: dict[str, Any], start: dict[str, float]) -> None:
    sick = patient(state("0", **slots))
    bad = next(name for name in sick.ctx.table if not np.isfinite(sick.ctx.table.read(name)).all())
    found = edits(proposed(sick, ailing(sick, bad)))
    made = {name.rpartition(".")[2]: change.after().tolist() for name, change in found.items()}
    assert made == {name: [value] for name, value in start.items()}


def group(number: int, **settings: float) -> dict[str, float]:
    return {f"optimizer.param_groups.{number}.{name}": value for name, value in settings.items()}


def test_adagrad_starts_where_its_group_says() -> None:
    tensors = {**state("0", sum=[NAN, 1]), **state("1", sum=[NAN, 1])}
    scalars = {
        **group(0, lr=0.1, initial_accumulator_value=0.5, **{"params.0": 1}),
        **group(1, lr=0.1, initial_accumulator_value=0.25, **{"params.0": 0}),
    }
    sick = patient(tensors, scalars=scalars)
    found = edits(proposed(sick, *(ailing(sick, name) for name in tensors)))
    assert [change.after().tolist() for change in found.values()] == [[0.25], [0.5]]


@pytest.mark.parametrize("start", [-1.0, NAN, INF, 65504.0])
def test_a_start_that_no_optimizer_has_is_not_believed(start: float) -> None:
    tensors = state("0", sum=[NAN, 1])
    sick = patient(tensors, scalars=group(0, initial_accumulator_value=start))
    (change, *_) = proposed(sick, ailing(sick, "optimizer.state.0.sum"))
    assert change.after().tolist() == [0.0]


K3, K2 = "optimizer_weights/adam/net_fc_kernel", "optimizer_weights/Adam"


@pytest.mark.parametrize(
    ("bad", "others", "strangers"),
    [
        (f"{K3}_velocity", [f"{K3}_momentum", f"{K3}_velocity_hat"],
         ["optimizer_weights/adam/net_fc_bias_momentum", "optimizer_weights/adam/iteration"]),
        (f"{K2}/v/fc/kernel:0", [f"{K2}/m/fc/kernel:0", f"{K2}/vhat/fc/kernel:0"],
         [f"{K2}/m/fc/bias:0", f"{K2}/m/out/kernel:0"]),
        ("optimizer_weights/v/fc/kernel:0", ["optimizer_weights/m/fc/kernel:0"],
         ["optimizer_weights/m/fc/bias:0"]),
        (f"{K2}/fc/kernel/m:0", [f"{K2}/fc/kernel/v:0"], [f"{K2}/fc/bias/v:0"]),
        (f"{K2}/v/kernel/v:0", [f"{K2}/v/kernel/m:0"], [f"{K2}/v/bias/m:0"]),
        ("optimizer_weights/RMSprop/velocity/fc/kernel:0",
         ["optimizer_weights/RMSprop/momentum/fc/kernel:0",
          "optimizer_weights/RMSprop/average_gradient/fc/kernel:0"], []),
        ("optimizer_weights/adamax/fc_norm", ["optimizer_weights/adamax/fc_momentum"], []),
        ("optimizer_weights/ada/fc_accumulated_grad",
         ["optimizer_weights/ada/fc_accumulated_delta_var"], ["optimizer_weights/ada/fc2_accumulated_grad"]),
    ],
)  # fmt: skip
def test_keras_slots_are_paired_by_name(bad: str, others: list[str], strangers: list[str]) -> None:
    tensors = {name: np.float32([1, 2]) for name in [*others, *strangers]}
    sick = patient({bad: np.float32([1, NAN]), **tensors})
    found = edits(proposed(sick, ailing(sick, bad)))
    assert set(found) == {bad, *others}
    assert all(
        after(sick, change).tolist() == [1, 0] for change in found.values() if change.tensor == bad
    )
    assert all(change.after().tolist() == [0] for change in found.values())


@pytest.mark.parametrize(
    ("scalars", "start"),
    [({}, 0.1), ({"training_config/optimizer_config/config/initial_accumulator_value": 0.5}, 0.5)],
)
@pytest.mark.parametrize(
    "name",
    ["optimizer_weights/adagrad/fc_accumulator", "optimizer_weights/Adagrad/accumulator/fc:0"],
)
def test_kerass_adagrad_starts_at_a_tenth_or_as_stored(
    name: str, scalars: dict[str, float], start: float
) -> None:
    sick = patient({name: [1.0, NAN]}, scalars=scalars)
    (change,) = proposed(sick, ailing(sick, name))
    assert change.after().tolist() == [np.float32(start)]


ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}


def numbered(*values: Any, **settings: float) -> Any:
    """Patient with numbered variables, the iteration and the rate before them."""
    tensors: dict[str, Any] = {"optimizer/vars/0": np.int64(9), "optimizer/vars/1": np.float32(0.1)}
    tensors |= {f"optimizer/vars/{n}": np.float32(value) for n, value in enumerate(values, 2)}
    return patient(
        tensors, scalars={f"compile_config/optimizer/config/{k}": v for k, v in settings.items()}
    )


def reset(sick: Any, number: int) -> dict[int, list[int]]:
    """Numbers of the variables that are changed, and the elements."""
    changes = proposed(sick, ailing(sick, f"optimizer/vars/{number}", None, "TS001"))
    return {int(name.rpartition("/")[2]): e.indices.tolist() for name, e in edits(changes).items()}


M, V, M3, V3 = [-1, 2], [1, 2], [-1, 2, 3], [1, 2, 3]


def test_numbered_pairs_are_known_from_the_configuration() -> None:
    assert reset(numbered([-1, NAN], V, M3, V3, **ADAM), 2) == {2: [1], 3: [1]}
    assert reset(numbered(M, V, M3, [1, 2, NAN], **ADAM), 5) == {4: [2], 5: [2]}
    assert reset(numbered([NAN, NAN], [NAN, NAN], **ADAM), 3) == {2: [0, 1], 3: [0, 1]}
    assert reset(numbered([NAN, 1], V, rho=0.9, epsilon=1e-7), 2) == {2: [0], 3: [0]}


def test_numbered_pairs_are_known_from_what_they_hold() -> None:
    assert reset(numbered([-1, NAN], V, M3, V3), 2) == {2: [1], 3: [1]}
    assert reset(numbered(M, [1, NAN], M3, V3), 3) == {2: [1], 3: [1]}
    assert reset(numbered([1, NAN], V, V3, V3), 2) == {}


def test_maxima_behind_the_pairs_belong_to_them() -> None:
    sick = numbered(M, V, [-1, NAN, 3], V3, [3, 4], [3, 4, 5], **ADAM)
    assert reset(sick, 4) == {4: [1], 5: [1], 7: [1]}
    assert reset(numbered(M, V, M3, V3, [3, NAN], [3, 4, 5], **ADAM), 6) == {2: [1], 3: [1], 6: [1]}


def test_what_may_be_pairs_or_maxima_is_left_alone() -> None:
    assert reset(numbered(*[[-1, NAN]] * 12, **ADAM), 2) == {}


def test_single_slots_stand_alone() -> None:
    assert reset(numbered([1, NAN], M, M3, momentum=0.9), 2) == {2: [1]}
    assert reset(numbered([1, NAN], M, M3, beta_1=0.9, beta_2=0.99), 2) == {2: [1]}
    (change,) = proposed(
        sick := numbered([1, NAN], V3, initial_accumulator_value=0.25, epsilon=1e-7),
        ailing(sick, "optimizer/vars/2"),
    )
    assert change.after().tolist() == [0.25]


@pytest.mark.parametrize(
    "settings_",
    [{}, {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7},
     {"initial_accumulator_value": 0.1, "learning_rate_power": -0.5}, {"weight_decay": 0.1}],
)  # fmt: skip
def test_numbers_whose_meaning_is_not_known_are_refused(settings_: dict[str, float]) -> None:
    sick = numbered([1, NAN], [1, 2], [1, 2, 3], **settings_)
    (refusal,) = proposed(sick, ailing(sick, "optimizer/vars/2"))
    assert "by number" in refusal.reason
    assert refusal.hint == "--drop-optimizer"
    assert refusal.codes == ("TS001",)


@pytest.mark.parametrize(
    ("tensors", "name", "words", "hint"),
    [
        (state("0", step=NAN, exp_avg=[1]), "optimizer.state.0.step", "counter", "--set"),
        (state("0", ax=[NAN, 1]), "optimizer.state.0.ax", "'ax'", "--drop-optimizer"),
        (state("0", exp_avg_sq_row=[NAN, 1], exp_avg_sq_col=[1, 1]), "optimizer.state.0.exp_avg_sq_row",
         "factor", "--drop-optimizer"),
        ({"optimizer_weights/Ftrl/accumulator/fc:0": [NAN, 1.0],
          "optimizer_weights/Ftrl/linear/fc:0": [1.0, 1.0]},
         "optimizer_weights/Ftrl/accumulator/fc:0", "Ftrl", "--drop-optimizer"),
        ({"optimizer_weights/Adafactor/r/fc:0": [NAN, 1.0], "optimizer_weights/Adafactor/c/fc:0": [1.0]},
         "optimizer_weights/Adafactor/r/fc:0", "factor", "--drop-optimizer"),
        ({"optimizer_weights/odd/fc_stuff": [NAN, 1.0]}, "optimizer_weights/odd/fc_stuff",
         "not known", "--drop-optimizer"),
    ],
)  # fmt: skip
def test_what_cannot_start_again_is_refused_with_the_reason(
    tensors: dict[str, Any], name: str, words: str, hint: str
) -> None:
    sick = patient(tensors)
    changes = proposed(sick, ailing(sick, name))
    assert words in refusals(changes)[name]
    assert edits(changes) == {}
    assert changes[0].hint.startswith(hint)


def test_the_unfactored_moment_of_a_vector_starts_again() -> None:
    tensors = {
        "optimizer_weights/Adafactor/r/fc:0": [1.0],
        "optimizer_weights/Adafactor/v/fc:0": [NAN, 1.0],
    }
    sick = patient(tensors)
    assert set(edits(proposed(sick, ailing(sick, "optimizer_weights/Adafactor/v/fc:0")))) == {
        "optimizer_weights/Adafactor/v/fc:0"
    }


def test_other_roles_codes_and_suspicions_are_left_to_others() -> None:
    sick = patient({"fc.weight": [[NAN]], **state("0", exp_avg=[NAN, 1])})
    name = "optimizer.state.0.exp_avg"
    assert proposed(sick, ailing(sick, "fc.weight", None, "TS001")) == []
    assert proposed(sick, ailing(sick, name, None, "NF001")) == []
    assert proposed(sick, ailing(sick, name, suspected="perhaps")) == []
    assert len(proposed(sick, ailing(sick, name, None, "TS002"))) == 1


def test_a_setting_that_is_nan_is_named_and_not_guessed() -> None:
    scalars = {**group(0, weight_decay=NAN, lr=0.1), "optimizer.state.3.step": INF}
    sick = patient(state("3", exp_avg=[1.0]), scalars=scalars)
    found = {change.target: change for change in proposed(sick)}
    assert set(found) == {"optimizer.param_groups.0.weight_decay", "optimizer.state.3.step"}
    refusal = found["optimizer.state.3.step"]
    assert refusal.hint == "--set optimizer.state.3.step=NUMBER"
    assert refusal.remedy == "", "nothing that was asked for is left undone"
    told = patient(
        state("3", exp_avg=[1.0]), scalars=scalars, numbers={"optimizer.state.3.step": 5}
    )
    assert [change.target for change in proposed(told)] == ["optimizer.param_groups.0.weight_decay"]


@pytest.mark.oracle
def test_adam_steps_by_three_rates_where_both_moments_start_again_and_by_1e5_where_one_does() -> (
    None
):
    torch = pytest.importorskip("torch")
    moved = {}
    for both in (True, False):
        for gradient in (1e-3, 0.0):
            weight = torch.nn.Parameter(torch.zeros(1))
            optimizer = torch.optim.Adam([weight], lr=1.0)
            weight.grad = torch.zeros(1)
            optimizer.step()
            kept = optimizer.state[weight]
            kept["step"].fill_(1200)
            kept["exp_avg"].fill_(0.0 if both else 1e-3)
            kept["exp_avg_sq"].zero_()
            weight.data.zero_()
            weight.grad.fill_(gradient)
            optimizer.step()
            moved[both, gradient] = abs(float(weight.detach()))
    assert moved[True, 1e-3] == pytest.approx(3.2 * (1 - 0.999**1201) ** 0.5, rel=0.02)
    assert moved[True, 0.0] == 0.0
    assert 20 < moved[False, 1e-3] < 35
    assert 5e4 < moved[False, 0.0] < 1e5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.oracle
@pytest.mark.parametrize("name", ["Adam", "SGD", "Adadelta", "Adagrad", "Lion", "Adamax", "Nadam"])
def test_kerass_numbers_mean_what_is_believed(name: str, tmp_path: Any) -> None:
    """Every variable of a real optimizer that is reset beside another is the same parameter's."""
    keras = pytest.importorskip("keras")
    from ckptdoctor.formats import open_path

    more = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True} if name == "Adam" else {}
    optimizer = getattr(keras.optimizers, name)(**more)
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(5)]
    )
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    path = tmp_path / "m.keras"
    model.save(path)
    words = ("_momentum", "_velocity_hat", "_velocity", "_norm", "_accumulator", "_accumulated_grad",
             "_accumulated_delta_var")  # fmt: skip
    owners = {}
    for number, variable in enumerate(optimizer.variables):
        owner = variable.path
        for word in words:
            owner = owner.removesuffix(word)
        owners[number] = owner if owner != variable.path else None
    with open_path(path) as table:
        sick = patient(table)
        for number, owner in owners.items():
            if owner is None or not table[f"optimizer/vars/{number}"].shape:
                continue
            bad = ailing(sick, f"optimizer/vars/{number}", [0], "TS001")
            found = {int(n.rpartition("/")[2]): e for n, e in edits(proposed(sick, bad)).items()}
            assert set(found) == {n for n, other in owners.items() if other == owner}
            for n, edit in found.items():
                start = optimizer.variables[n].numpy().reshape(-1)[0]
                assert edit.after().tolist() == [start]


def test_adam_of_a_whole_file(tmp_path: Any) -> None:
    from ckptdoctor.formats import open_path

    weights = patients.state()
    tree: dict[str, Any] = {"model": weights, "optimizer": patients.adam(weights)}
    tree["optimizer"]["state"][0]["exp_avg_sq"].reshape(-1)[:3] = [NAN, INF, -1.0]
    path = patients.save_torch(tmp_path / "m.pt", tree)
    with open_path(path) as table:
        sick = patient(table)
        name = "optimizer.state.0.exp_avg_sq"
        found = edits(proposed(sick, ailing(sick, name, [0, 1, 2])))
        assert set(found) == {name, "optimizer.state.0.exp_avg"}
        for change in found.values():
            assert after(sick, change).reshape(-1)[:3].tolist() == [0, 0, 0]
