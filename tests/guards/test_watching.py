"""The first bad step: found exactly, said once, and never at the cost of the training itself."""

import json

import numpy as np
import patients
import pytest

from ckptdoctor.errors import UncheckedCheckpointError, UnfitCheckpointError, UsageError
from ckptdoctor.guards.guard import Guard, Standin
from ckptdoctor.guards.pointer import Good, read_pointer, write_pointer
from ckptdoctor.guards.saving import Saved, guarded_save
from ckptdoctor.guards.terms import Terms
from ckptdoctor.guards.watching import Bad, Slot, Watch

SLOTS = [
    Slot("conv1", "weight", "weight"),
    Slot("bn1", "running_mean", "statistic"),
    Slot("bn1", "running_var", "statistic"),
]


class Gauge:
    """A model of three tensors, changed by the tests."""

    def __init__(self, slots=SLOTS, *, dear=False):
        self.slots, self.dear = slots, dear
        self.tensors = [np.ones(2, np.float32) for _ in slots]
        self.reads = 0

    def read(self):
        self.reads += 1
        with np.errstate(all="ignore"):
            return [float(np.square(t).sum()) for t in self.tensors]

    def suspects(self, readings):
        return ~np.isfinite(np.array(readings))

    def kind(self, slot):
        values = self.tensors[slot]
        return "NaN" if np.isnan(values).any() else "Inf" if np.isinf(values).any() else ""


def poison(gauge, slot, value=np.nan):
    gauge.tensors[slot] = np.array([1.0, value], np.float32)


class TestWatch:
    def test_rare_look_tells_the_exact_step(self):
        gauge = Gauge()
        watch = Watch(gauge)
        for step in range(101, 111):
            if step == 104:
                poison(gauge, 2, np.inf)
            if step == 107:
                poison(gauge, 0)
            watch.measure(step)
        assert watch.look() == Bad(
            step=104,
            tensor="BatchNorm 'bn1' running_var",
            kind="statistic",
            value="Inf",
            others=0,
            weights_finite=True,
        )
        assert watch.look() is None  # nothing since

    def test_first_in_the_models_order_is_named_and_the_others_counted(self):
        gauge = Gauge()
        watch = Watch(gauge)
        for slot in (2, 1, 0):
            poison(gauge, slot)
        watch.measure(7)
        bad = watch.look()
        assert (bad.tensor, bad.kind, bad.others) == ("layer 'conv1' weight", "weight", 2)
        assert not bad.weights_finite

    def test_measure_that_overflows_is_no_loss(self):
        gauge = Gauge()
        gauge.tensors[0] = np.array([3e38, 1e38], np.float32)
        watch = Watch(gauge)
        watch.measure(1)
        assert gauge.suspects([gauge.read()]).any()
        assert watch.look() is None

    def test_model_without_tensors_is_fine(self):
        watch = Watch(Gauge([]))
        watch.measure(1)
        assert watch.look() is None


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (
            Bad(step=1234, tensor="BatchNorm 'a' running_var", kind="statistic", value="Inf",
                weights_finite=True),
            "step 1,234: BatchNorm 'a' running_var became Inf; weights are finite",
        ),
        (
            Bad(step=5, tensor="layer 'a' weight", kind="weight", value="NaN", others=2),
            "step 5: layer 'a' weight became NaN (and 2 more tensors)",
        ),
        (
            Bad(step=0, tensor="layer 'a' weight", kind="weight", value="NaN", from_start=True),
            "step 0: layer 'a' weight was NaN when training began",
        ),
    ],
)  # fmt: skip
def test_first_bad_step_is_one_line(bad, text):
    assert bad.told() == text


def test_tensor_of_the_model_itself_has_no_layer():
    assert Slot("", "scale", "weight").shown == "scale"


@pytest.fixture
def gauge():
    return Gauge()


def guard(tmp_path, gauge, step=0, every=1, **terms):
    made = Guard(Terms(**terms), every)
    made.begin(tmp_path, step, lambda: gauge)
    return made


def saved(tmp_path, tree=None, name="m.pt"):
    tree = patients.state() if tree is None else tree
    return guarded_save(lambda p: patients.save_torch(patients.Path(p), tree), tmp_path / name)


POISONED = {**patients.state(), "fc.weight": np.full((4, 16), np.nan, np.float32)}


class TestGuard:
    def test_first_bad_step_is_said_once_with_the_last_good_checkpoint(
        self, tmp_path, gauge, caplog
    ):
        one = guard(tmp_path, gauge)
        one.settled(saved(tmp_path), 1000)
        for step in range(1001, 1010):
            if step == 1004:
                poison(gauge, 1)
            one.check(step)
        (record,) = caplog.records
        assert record.message == (
            "step 1,004: BatchNorm 'bn1' running_mean became NaN; weights are finite; "
            f"last good: {tmp_path / 'm.pt'} (step 1,000)"
        )
        told = json.loads((tmp_path / "last_good.json").read_text())
        assert (told["step"], told["first_bad"]["step"]) == (1000, 1004)

    @pytest.mark.parametrize(
        ("place", "relative", "told"),
        [("here/runs", True, "runs/m.pt"), ("here/runs", False, ""), ("", True, "")],
        ids=["relative", "absolute", "elsewhere"],
    )
    def test_last_good_is_told_as_the_user_writes_paths(
        self, tmp_path, gauge, caplog, monkeypatch, place, relative, told
    ):
        here = tmp_path / "here"
        (here / "runs").mkdir(parents=True)
        monkeypatch.chdir(here)
        one = guard(folder := tmp_path / place, gauge)
        one.relative = relative
        one.settled(saved(folder), 1000)
        poison(gauge, 1)
        one.check(1001)
        expected = told or folder / "m.pt"
        assert caplog.messages[-1].endswith(f"; last good: {expected} (step 1,000)")

    def test_nothing_is_measured_once_it_is_bad(self, tmp_path, gauge):
        one = guard(tmp_path, gauge)
        poison(gauge, 0)
        one.check(1)
        reads = gauge.reads
        one.check(2)
        assert gauge.reads == reads

    @pytest.mark.parametrize("every", [1, 3])
    def test_looks_are_as_rare_as_asked(self, tmp_path, gauge, caplog, every):
        one = guard(tmp_path, gauge, every=every)
        for step in range(1, 7):
            if step == 4:
                poison(gauge, 0)
            one.check(step)
            found = one.first_bad is not None
            assert found == (step >= (4 if every == 1 else 6))
        assert one.first_bad.step == 4
        assert "no good checkpoint yet" in caplog.text

    def test_save_is_preceded_by_a_look(self, tmp_path, gauge):
        one = guard(tmp_path, gauge, every=50)
        poison(gauge, 0)
        one.check(1)
        assert one.first_bad is None
        one.look_now(1)
        assert one.first_bad.step == 1

    def test_what_is_dear_to_read_is_read_when_it_is_time_to_look(self, tmp_path):
        gauge = Gauge(dear=True)
        one = guard(tmp_path, gauge, every=5)
        assert gauge.reads == 1  # as training begins
        for step in range(1, 10):
            one.check(step)
        assert gauge.reads == 2
        poison(gauge, 0)
        one.look_now(9)
        assert (gauge.reads, one.first_bad.step) == (3, 9)

    def test_zero_watches_nothing(self, tmp_path, gauge):
        poison(gauge, 0)
        one = guard(tmp_path, gauge, every=0)
        one.check(1)
        one.look_now(1)
        assert (gauge.reads, one.first_bad) == (0, None)

    @pytest.mark.parametrize("every", [-1, 1.5, True, "50"])
    def test_interval_is_a_number_of_steps(self, every):
        with pytest.raises(UsageError, match="expected watch_every to be a number of steps or 0"):
            Guard(Terms(), every)

    def test_model_that_is_bad_from_the_start_is_said_to_be(self, tmp_path, gauge, caplog):
        poison(gauge, 0)
        one = guard(tmp_path, gauge, step=1000)
        assert one.first_bad.from_start
        assert "step 1,000: layer 'conv1' weight was NaN when training began" in caplog.text

    def test_model_that_was_put_right_is_watched_again(self, tmp_path, gauge, caplog):
        one = guard(tmp_path, gauge)
        poison(gauge, 0)
        one.check(1)
        one.look_now(2)
        assert one.first_bad is not None
        gauge.tensors[0] = np.ones(2, np.float32)
        one.look_now(3)
        assert one.first_bad is None
        poison(gauge, 1)
        one.check(4)
        assert one.first_bad.step == 4

    @pytest.mark.parametrize("on_unfit", ["warn", "stop", "raise"])
    def test_training_goes_on_or_stops_as_asked(self, tmp_path, gauge, on_unfit):
        one = guard(tmp_path, gauge, on_unfit=on_unfit)
        one.check(1)
        assert not one.stops
        poison(gauge, 0)
        if on_unfit == "raise":
            with pytest.raises(UnfitCheckpointError, match="step 2: layer 'conv1' weight"):
                one.check(2)
        else:
            one.check(2)
        assert one.stops == (on_unfit == "stop")

    @pytest.mark.parametrize("on_unfit", ["warn", "stop", "raise"])
    def test_refused_save_goes_on_or_stops_as_asked(self, tmp_path, gauge, on_unfit, caplog):
        one = guard(tmp_path, gauge, on_unfit=on_unfit)
        one.settled(saved(tmp_path, name="good.pt"), 5)
        refused = saved(tmp_path, POISONED)
        caplog.clear()
        if on_unfit == "raise":
            with pytest.raises(UnfitCheckpointError):
                one.settled(refused, 6)
        else:
            one.settled(refused, 6)
            assert caplog.messages[-1].startswith(f"step 6: {tmp_path / 'm.pt'} is unfit")
            assert caplog.messages[-1].endswith(f"last good: {tmp_path / 'good.pt'} (step 5)")
        assert one.stops == (on_unfit == "stop")
        assert one.last_good == Good("good.pt", 5)

    def test_unchecked_save_stops_nothing(self, tmp_path, gauge):
        one = guard(tmp_path, gauge, on_unfit="stop")
        unchecked = Saved(path="m.pt", answer="unchecked", why="x", aside="", reports=())
        one.settled(unchecked, 5)
        assert not one.stops
        strict = guard(tmp_path, gauge, on_unfit="raise")
        report = saved(tmp_path).report
        unchecked = Saved(path="m.pt", answer="unchecked", why="x", aside="", reports=(report,))
        with pytest.raises(UncheckedCheckpointError):
            strict.settled(unchecked, 5)

    def test_fit_save_after_a_refused_one_lets_training_go_on(self, tmp_path, gauge):
        one = guard(tmp_path, gauge, on_unfit="stop")
        one.settled(saved(tmp_path, POISONED), 5)
        one.settled(saved(tmp_path), 6)
        assert not one.stops

    def test_resumed_run_knows_the_last_good_one_and_a_new_run_does_not(self, tmp_path, gauge):
        (tmp_path / "m.pt").write_bytes(b"x")
        write_pointer(tmp_path, Good("m.pt", 1000))
        assert guard(tmp_path, gauge, step=1000).last_good == Good("m.pt", 1000)
        assert guard(tmp_path, gauge, step=999).last_good is None
        write_pointer(tmp_path, Good("m.pt", None))  # saved by who does not count steps
        assert guard(tmp_path, gauge, step=1).last_good == Good("m.pt", None)
        assert guard(tmp_path, gauge, step=0).last_good is None

    @pytest.mark.parametrize("step", [4, 8])
    def test_newer_checkpoint_of_another_guard_in_the_folder_stays_the_last_good_one(
        self, tmp_path, gauge, caplog, step
    ):
        """One for the best and one for the newest, and the first to save is the last to speak."""
        best, newest = guard(tmp_path, gauge), guard(tmp_path, gauge)
        best.settled(saved(tmp_path, name="best.pt"), 4)
        newest.settled(saved(tmp_path, name="last.pt"), step)
        poison(gauge, 0)
        for one in (newest, best):
            one.check(9)
        assert read_pointer(tmp_path) == Good("last.pt", step)
        assert all(f"last.pt (step {step})" in message for message in caplog.messages)
        best.settled(saved(tmp_path, name="best.pt"), 3)  # newer, whatever its step
        assert read_pointer(tmp_path) == Good("best.pt", 3)
        (tmp_path / "best.pt").unlink()
        newest.settled(saved(tmp_path, POISONED), 10)
        assert caplog.messages[-1].endswith(f"last.pt (step {step})")

    def test_checkpoint_that_was_saved_later_without_a_step_stays_the_last_good_one(
        self, tmp_path, gauge, caplog
    ):
        one = guard(tmp_path, gauge)
        one.settled(saved(tmp_path, name="a.pt"), 100)
        later = saved(tmp_path, name="b.pt")
        write_pointer(tmp_path, Good("b.pt", None))  # as guarded_save does
        poison(gauge, 0)
        one.check(101)
        assert read_pointer(tmp_path) == Good("b.pt", None)
        assert caplog.messages[-1].endswith(f"last good: {later.path}")

    def test_last_good_one_that_is_gone_is_not_named(self, tmp_path, gauge, caplog):
        write_pointer(tmp_path, Good("m.pt", 5))
        assert guard(tmp_path, gauge, step=5).last_good is None
        one = guard(tmp_path, gauge, step=5)
        one.settled(saved(tmp_path), 6)
        (tmp_path / "m.pt").unlink()
        poison(gauge, 0)
        one.check(7)
        assert caplog.messages[-1].endswith("; the last good one, m.pt, is gone")

    def test_pointer_that_is_broken_or_cannot_be_written_ends_no_training(
        self, tmp_path, gauge, caplog
    ):
        (tmp_path / "last_good.json").mkdir()
        one = guard(tmp_path, gauge)
        one.settled(saved(tmp_path), 5)
        assert one.last_good == Good("m.pt", 5)
        read, saver, settled = caplog.messages
        assert "last_good.json: cannot be read" in read
        assert saver == settled
        assert "last_good.json may not name m.pt, the newest that is fit: " in settled

    def test_checkpoint_elsewhere_is_not_what_this_folder_points_to(self, tmp_path, gauge):
        (tmp_path / "a").mkdir()
        one = guard(tmp_path / "a", gauge)
        one.settled(saved(tmp_path), 5)
        assert one.last_good is None
        unused = Guard(Terms(), 1)
        unused.settled(saved(tmp_path), 5)
        assert unused.last_good is None

    @pytest.mark.parametrize("when", ["make", "read", "look"])
    def test_model_that_cannot_be_measured_trains_on(self, tmp_path, gauge, caplog, when):
        def crash(*_):
            raise RuntimeError("no kernel for this type")

        if when == "make":
            one = Guard(Terms(on_unfit="raise"), 1)
            one.begin(tmp_path, 0, crash)
        else:
            setattr(gauge, {"read": "read", "look": "suspects"}[when], crash)
            one = guard(tmp_path, gauge, on_unfit="raise")
        for step in range(3):
            one.check(step)
        one.look_now(3)
        assert len(caplog.records) == 1
        assert "the live model is not watched any more" in caplog.text
        assert "no kernel for this type" in caplog.text

    def test_what_another_process_finds_is_known_here_and_said_by_one(
        self, tmp_path, gauge, caplog
    ):
        one = guard(tmp_path, gauge, on_unfit="stop")
        one.agree = lambda _: True
        one.check(7)
        assert one.stops
        assert "step 7: a tensor in another process became NaN or Inf" in caplog.text
        caplog.clear()
        two = guard(tmp_path, gauge)
        two.speaks, two.agree = False, lambda _: True
        two.check(7)
        assert two.first_bad.step == 7
        assert caplog.text == ""

    def test_processes_ask_each_other_at_the_same_steps_whatever_they_found(self, tmp_path):
        asked = {}
        for name in ("sound", "broken", "bad"):
            gauge = Gauge()
            one = Guard(Terms(), 2)
            asked[name] = steps = []
            one.agree = lambda _, s=steps: s.append(len(s)) or True
            if name == "bad":
                poison(gauge, 0)
            if name == "broken":
                gauge.read = None
            one.begin(tmp_path, 0, lambda g=gauge: g)
            for step in range(1, 6):
                one.check(step)
            one.look_now(6)
        assert asked["sound"] == asked["broken"] == asked["bad"] != []

    def test_state_survives_a_checkpoint(self, tmp_path, gauge):
        one = guard(tmp_path, gauge)
        poison(gauge, 2, np.inf)
        one.check(9)
        state = json.loads(json.dumps(one.state()))
        two = Guard(Terms(), 1)
        two.restore(state)
        assert two.first_bad == one.first_bad
        two.begin(tmp_path, 20, lambda: gauge)  # still bad: the first bad step is the old one
        assert two.first_bad.step == 9
        gauge.tensors[2] = np.ones(2, np.float32)
        two.begin(tmp_path, 30, lambda: gauge)
        assert two.first_bad is None

    @pytest.mark.parametrize("state", [{}, {"first_bad": None}, {"first_bad": {"x": 1}}])
    def test_state_that_says_nothing_is_nothing(self, state):
        one = Guard(Terms(), 1)
        one.restore(state)
        assert one.first_bad is None


def test_stand_in_is_the_real_thing_but_for_what_is_replaced():
    class Real:
        name = "real"

        def save(self):
            return "real"

    made = Standin(Real(), save=lambda: "guarded")
    assert (made.name, made.save()) == ("real", "guarded")
