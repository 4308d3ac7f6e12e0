"""Edges of a probe: where its thresholds lie, what it counts, and what it leaves out."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from live.numpy_subject import (
    BatchNorm,
    Dense,
    Function,
    Layer,
    NumpySubject,
    Sequential,
    classifier,
    fit,
    samples,
)
from patients import save_torch

from ckptdoctor.cli import run
from ckptdoctor.findings import Severity, container_finding
from ckptdoctor.live.batch_statistics import BatchStatistics
from ckptdoctor.live.data import read_data
from ckptdoctor.live.loaded import Loaded
from ckptdoctor.live.subject import Call, NormLayer, Statistics
from ckptdoctor.probing.bisect import Culprit, Search, breaking, search_inference, search_training
from ckptdoctor.probing.feed import Feed
from ckptdoctor.probing.judge import drift_in_words, signs
from ckptdoctor.probing.next_steps import next_steps
from ckptdoctor.probing.norms import agreement, drift_of
from ckptdoctor.probing.origin import listed
from ckptdoctor.probing.precision import in_precision
from ckptdoctor.probing.probe import probe
from ckptdoctor.probing.results import ProbeReport, Samples, Sign, TrainMode
from ckptdoctor.probing.samples import look_at
from ckptdoctor.probing.trace import Trace
from ckptdoctor.probing.training import closes, disagrees, treated
from ckptdoctor.probing.values import Span, span_of, varies
from ckptdoctor.probing.weights import File, file_report

X = samples(64)
NORM = NormLayer(name="bn", channels=4, axis=1, epsilon=0.0, unbiased=True, mean="m", var="v")
ONES = Statistics(np.zeros(4), np.ones(4))


def sign(report, kind):
    (found,) = [s for s in report.signs if s.kind == kind]
    return found


def kinds(report):
    return [s.kind for s in report.signs]


def drift(mean=0.0, var=1.0, data=ONES):
    """Statistics whose first channel is of this mean and variance, and whose others fit."""
    held = Statistics(ONES.mean.copy(), ONES.var.copy())
    held.mean[0], held.var[0] = mean, var
    return drift_of(NORM, held, data, 1000)


def data_of(subject, x, size=16):
    return Feed(subject, read_data(x, subject.inputs()), size)


# BatchNorms.


@pytest.mark.parametrize(
    ("changed", "far", "stale"),
    [
        ({"var": 99.0}, False, True),
        ({"var": 101.0}, True, True),
        ({"var": 1 / 101}, True, True),
        ({"var": 1 / 99}, False, True),
        ({"mean": 9.9}, False, True),
        ({"mean": -10.1}, True, True),
        ({"var": 4.9}, False, False),
        ({"var": 5.1}, False, True),
        ({"var": 1 / 4.9}, False, False),
        ({"var": 1 / 5.1}, False, True),
        ({"mean": 0.99}, False, False),
        ({"mean": 1.01}, False, True),
    ],
)
def test_statistics_are_far_and_stale_where_the_page_says(changed, far, stale):
    assert (drift(**changed).far, drift(**changed).stale) == (far, stale)


def test_a_channel_that_is_dead_in_the_data_is_no_measure_of_the_others():
    dead = Statistics(np.zeros(4), np.array([0.0, 1.0, 1.0, 1.0]))
    found = drift_of(NORM, Statistics(np.zeros(4), np.full(4, 1.1)), dead, 1000)
    assert (found.alive, found.ratio, found.score) == (3, pytest.approx(1.1), pytest.approx(1.1))


def test_a_channel_counts_from_a_thousandth_of_the_usual_variance_on():
    for part, alive in ((0.9e-3, 3), (1.1e-3, 4)):
        data = Statistics(np.zeros(4), np.array([part, 1.0, 1.0, 1.0]))
        assert drift_of(NORM, ONES, data, 1000).alive == alive


def test_a_mean_that_is_far_off_weighs_as_much_as_its_factor_of_variances():
    assert drift(mean=20.0).score == pytest.approx(200.0)
    assert drift(var=150.0, mean=20.0).score == pytest.approx(200.0)
    assert drift(var=1 / 300).score == pytest.approx(300.0)
    both = Statistics(np.array([20.0, 0, 0, 0]), np.array([1.0, 150.0, 1, 1]))
    assert [c.index for c in drift_of(NORM, both, ONES, 1000).worst] == [0, 1]


def test_a_variance_of_zero_without_epsilon_is_negative_enough():
    assert (drift(var=0.0).negative, drift(var=0.0).broken) == (1, True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"var": 150.0}, "running variance 1 to 150, the data's 1; up to 150 times larger"),
        (
            {"var": 1 / 200},
            "running variance 0.005 to 1, the data's 1; up to 200 times smaller",
        ),
        (
            {"mean": 12.0},
            "running variance 1, the data's 1; up to 1 times larger; mean 12 standard deviations off",
        ),
        ({"mean": 0.9, "var": 5.5}, "running variance 1 to 5.5, the data's 1; up to 5.5 times larger"),
        ({"var": np.nan}, "running statistics are NaN or Inf in 1 of 4 channels"),
        ({"var": -1.0}, "running variance is negative in 1 of 4 channels"),
    ],
)  # fmt: skip
def test_a_drift_is_told_in_words(changed, words):
    assert drift_in_words(drift(**changed)) == words


def test_statistics_that_are_not_finite_anywhere_are_told_without_numbers():
    none = Statistics(np.full(4, np.nan), np.full(4, np.nan))
    found = drift_of(NORM, ONES, none, 0)
    assert (found.far, found.stale, found.score, drift_in_words(found)) == (False, False, 1.0, "")


def test_random_data_put_only_what_is_far_off_to_the_test():
    drifts = (drift(var=6.0), drift(var=150.0), drift())
    assert treated(drifts, random=False) == ("bn", "bn")
    assert treated(drifts, random=True) == ("bn",)


# Two ways of running a model.


def scores(right, number=10, scale=1.0):
    """Outputs of which so many agree with those of `scores(number)`."""
    made = np.tile([0.0, scale], (number, 1))
    made[right:] = [scale, 0.0]
    return made


def test_half_of_the_gap_is_what_other_statistics_must_close():
    gap = agreement([(scores(4), scores(10))])
    assert closes(agreement([(scores(7), scores(10))]), gap)
    assert not closes(agreement([(scores(6), scores(10))]), gap)
    assert not closes(None, gap)


@pytest.mark.parametrize(("before", "after", "closed"), [(1.0, 0.5, True), (1.0, 0.6, False),
                                                         (9.0, 1.0, True), (9.0, 1.1, False)])  # fmt: skip
def test_half_of_the_difference_counts_where_outputs_are_no_scores(before, after, closed):
    theirs = np.ones((4, 1))
    gap = agreement([(theirs + before, theirs)])
    assert closes(agreement([(theirs + after, theirs)]), gap) is closed


def test_a_difference_of_half_the_outputs_size_is_none_yet():
    for value, answer in ((1.0, False), (0.99, True)):
        gap = agreement([(np.full((4, 1), value), np.full((4, 1), 2.0))])
        assert disagrees(TrainMode(agreement=gap)) is answer


def test_an_agreement_of_several_batches_is_that_of_all_samples():
    theirs = scores(10)
    found = agreement([(scores(4)[:5], theirs[:5]), (scores(4)[5:], theirs[5:])])
    whole = agreement([(scores(4), theirs)])
    assert (found.samples, found.same, found.share) == (10, 4, 0.4)
    assert found.difference == pytest.approx(whole.difference)
    assert (found.finite, found.reference) == (10, 10)


def test_what_differs_from_nothing_differs_without_end():
    assert agreement([(np.ones((2, 1)), np.zeros((2, 1)))]).difference == np.inf
    assert agreement([(np.zeros((2, 1)), np.zeros((2, 1)))]).difference == 0.0
    assert agreement([]).share is None


def accumulating(shift: float = 0.6, layers: int = 12) -> NumpySubject:
    """A deep model, each of whose running means is a little off."""
    parts = []
    for at in range(layers):
        parts += [Dense(f"fc{at}", 6, 6, at), BatchNorm(f"bn{at}", 6)]
    subject = NumpySubject(*parts, Dense("head", 6, 4, 99))
    fit(subject, samples(256))
    for name in subject.norms:
        held = subject.statistics(name)
        subject.set_statistics(name, Statistics(held.mean + shift * held.var**0.5, held.var))
    return subject


def test_every_second_batch_is_judged_by_statistics_of_the_others():
    subject, x = accumulating(), samples(48)
    report = probe(subject, x, batch_size=8, precisions=())
    pairs = []
    for learnt in (0, 1):
        halves = [np.concatenate(np.split(x, 6)[start::2]) for start in (learnt, 1 - learnt)]
        own = {name: subject.statistics(name) for name in subject.norms}
        with BatchStatistics(subject, subject.norms) as pooled:
            for batch in np.split(halves[0], 3):
                subject.run((batch,), pooled)
        for name in subject.norms:
            subject.set_statistics(name, pooled.pooled(name)[1])
        ours = [subject.run((batch,))[0] for batch in np.split(halves[1], 3)]
        for name, held in own.items():
            subject.set_statistics(name, held)
        with BatchStatistics(subject, subject.norms) as observer:
            theirs = [subject.run((batch,), observer)[0] for batch in np.split(halves[1], 3)]
        pairs += list(zip(ours, theirs, strict=True))
    expected = agreement(pairs)
    assert (report.train.pooled.samples, report.train.pooled.same) == (48, expected.same)
    assert report.train.pooled.difference == pytest.approx(expected.difference, rel=1e-6)


def test_a_half_without_finite_statistics_leaves_the_layer_its_own():
    x = samples(48)
    x[::16, 0] = 50.0  # one sample of every second batch of eight
    subject = accumulating()
    layers = subject.root.children
    spoil = Function("spoil", "Spoil", lambda x: np.where(x[:, :1] > 40, np.nan, x))
    report = probe(NumpySubject(spoil, *layers), x, batch_size=8, precisions=())
    assert report.train.agreement.reference == 24
    assert report.train.pooled.finite == 45


def test_a_healthy_model_is_not_run_in_training_mode_again():
    subject = classifier()
    before = subject.runs
    probe(subject, X, precisions=())
    assert subject.runs - before <= 3 * 2  # inference, training, and the search for what spoils


def test_the_size_of_a_batch_is_told_as_it_was_run():
    assert probe(classifier(), samples(33), precisions=()).train.batch == 17
    one = classifier()
    one.shapes = [((8, 6), "float32")]
    assert probe(one, samples(12), precisions=()).train.batch == 8


def test_rows_that_only_fill_a_batch_are_left_out_of_its_outputs():
    class Two(NumpySubject):
        def run(self, batch, *more, **options):
            (out,) = super().run(batch, *more, **options)
            return out, np.ones(5, np.float32), out.sum()

    subject = Two(Function("double", "Double", lambda x: x * 2), shapes=[((8, 6), "float32")])
    rows, others, number = data_of(subject, X).run([1, 2, 3])
    np.testing.assert_array_equal(rows, X[1:4] * 2)
    assert (others.shape, number.shape) == ((5,), ())
    lost = classifier()
    lost.shapes = [((8, 6), "float32")]
    lost.layers["head"].tensors["bias"][0] = np.nan
    assert probe(lost, samples(12), precisions=()).bad == 12


def disagreeing(**more):
    """A report of a model whose two modes answer 4 of 10 samples alike."""
    gap = agreement([(scores(4), scores(10))])
    given = {"source": "x", "kind": "file", "total": 10, "used": 10}
    data = Samples(**given | more.pop("data", {}), shapes=(), dtypes=(), span=Span())
    return ProbeReport(model="m", samples=data, train=TrainMode(agreement=gap, **more))


def test_a_disagreement_is_an_error_where_it_is_explained_and_a_note_where_nothing_does():
    good, bad = (agreement([(scores(right), scores(10))]) for right in (9, 4))
    cases = [
        (disagreeing(), Severity.NOTE, "4 of 10 samples: small batches may do that"),
        (
            disagreeing(pooled=bad),
            Severity.NOTE,
            "nor do statistics pooled over these samples: small batches may do that",
        ),
        (
            disagreeing(treated=("bn",), healed=bad),
            Severity.WARNING,
            "with the statistics of the batch in 1 BatchNorm only: 4 of 10; that does not explain it",
        ),
        (
            disagreeing(treated=("bn", "bn2"), healed=good),
            Severity.ERROR,
            "with the statistics of the batch in 2 BatchNorms only: 9 of 10",
        ),
        (
            disagreeing(treated=("bn",), healed=bad, pooled=good),
            Severity.ERROR,
            "BatchNorms: 9 of 10: the running statistics do not fit the data",
        ),
        (
            disagreeing(treated=("bn",), healed=good, data={"kind": "random"}),
            Severity.WARNING,
            "with the statistics of the batch in 1 BatchNorm only: 9 of 10",
        ),
    ]
    for report, severity, words in cases:
        (found,) = signs(report)
        assert (found.kind, found.severity) == ("train-eval-disagreement", severity)
        assert found.message.endswith(words)
        assert found.measured["explained"] is (report.train.healed is good or "9 of" in words)
    assert signs(disagreeing(data={"kind": "random"})) == ()


def test_training_mode_that_fails_for_some_samples_says_for_how_many():
    theirs = scores(10)
    theirs[3:5] = np.nan
    train = TrainMode(agreement=agreement([(scores(10), theirs)]))
    (found,) = signs(ProbeReport(model="m", train=train))
    assert found.message == "in training mode the output is not finite for 2 of 10 samples"


# Searches.


def found_by(**more):
    search = Search(**{"mode": "inference", "samples": 9, **more})
    return signs(ProbeReport(model="m", searches=(search,)))


def test_samples_that_break_a_model_are_told_in_one_sentence():
    def culprit(index):
        return Culprit(index=index, low=-1.0, high=2.0, usual=1.0)

    (found,) = found_by(culprits=(culprit(3),))
    assert found.message == "inference: 1 of 9 samples breaks the model (3: -1 to 2)"
    (found,) = found_by(culprits=(culprit(3), culprit(4)), groups=((1, 2), (5, 6)))
    assert found.message == (
        "inference: 2 of 9 samples break the model (3: -1 to 2, 4: -1 to 2); "
        "samples 1, 2 break it together only; samples 5, 6 break it together only"
    )
    assert found.measured == {"mode": "inference", "samples": [3, 4]}
    assert found_by() == ()


@pytest.mark.parametrize(
    ("more", "severity"),
    [
        ({"groups": ((1, 2),)}, Severity.ERROR),
        ({"groups": ((1, 2),), "mode": "training in float16"}, Severity.WARNING),
        ({"everyone": True}, Severity.WARNING),
    ],
)
def test_what_breaks_float32_is_an_error_unless_all_samples_do(more, severity):
    assert found_by(**more)[0].severity is severity


def test_one_sample_alone_is_a_culprit_and_two_are_everyone():
    subject = NumpySubject(Function("square", "Square", lambda x: x * x))
    one = search_inference(data_of(subject, np.full((1, 2), 1e30)), range(1))
    assert ([c.index for c in one.culprits], one.everyone) == ([0], False)
    two = search_inference(data_of(subject, np.full((2, 2), 1e30)), range(2))
    assert (two.culprits, two.everyone) == ((), True)


def test_a_sample_that_is_bad_in_company_only_is_searched_by_halves():
    # bad rows are the last of a batch of four or more: alone, none is
    late = Function("late", "Late", lambda x: np.where(np.arange(len(x))[:, None] > 2, np.nan, x))
    found = search_inference(data_of(NumpySubject(late), samples(8), 8), range(8))
    assert found.culprits == ()
    assert found.groups
    assert all(len(group) == 4 for group in found.groups)


def test_a_search_of_many_asks_for_few():
    asked = []

    def bad(group):
        asked.append(len(group))
        return 700 in group

    assert breaking(bad, np.arange(1024)) == ([700], [])
    assert len(asked) <= 20


def test_a_sample_is_measured_by_the_median_of_those_searched():
    x = np.ones((200, 2), np.float32)
    x[::2] = 3
    x[7] = 1e30
    square = NumpySubject(Function("square", "Square", lambda x: x * x))
    (found,) = search_inference(data_of(square, x), range(200)).culprits
    assert found.usual in (1.0, 2.0, 3.0)
    (found,) = search_inference(data_of(square, x), range(1, 9, 2)).culprits
    assert found.usual == 1.0


def test_training_is_searched_in_company_that_is_fine():
    sizes = []

    class Watched(NumpySubject):
        def run(self, batch, *more, **options):
            sizes.append(len(batch[0]))
            return super().run(batch, *more, **options)

    x = samples(32)
    x[20] = 1e25
    found = search_training(data_of(Watched(BatchNorm("bn", 6)), x), range(32))
    assert [c.index for c in found.culprits] == [20]
    assert min(sizes) > 8  # never alone, and never fewer than the company


def test_a_model_that_fails_in_two_batches_is_at_fault_itself():
    subject = NumpySubject(Function("bad", "Bad", lambda x: x * np.nan), BatchNorm("bn", 6))
    found = search_training(data_of(subject, samples(20), 10), range(20))
    assert (found.everyone, found.culprits, found.groups) == (True, (), ())


def test_two_samples_that_are_fine_together_are_company():
    x = samples(4)
    x[3] = 1e25
    found = search_training(data_of(NumpySubject(BatchNorm("bn", 6)), x, 4), range(4))
    assert [c.index for c in found.culprits] == [3]


def test_a_narrower_type_is_not_searched_where_float32_fails():
    x = samples(32)
    x[4] = 1e30
    square = NumpySubject(Function("square", "Square", lambda x: x * x))
    assert [s.mode for s in probe(square, x, bisect=True).searches] == ["inference"]


# Narrower types.


def in_type(subject, x, dtype="float16"):
    given = data_of(subject, x)
    reference = [given.run(batch) for batch in given.batches(range(len(x)))]
    return in_precision(given, range(len(x)), dtype, reference)


def test_a_layer_whose_values_fall_to_minus_inf_is_named():
    subject = NumpySubject(
        Function("keep", "Keep", lambda x: x), Function("low", "Low", lambda x: x - 1e5)
    )
    found = in_type(subject, samples(8))
    assert (found.first, found.index, found.bad) == ("low", 0, 8)


def test_the_call_of_a_shared_layer_that_leaves_the_range_is_told():
    shared = Function("shared", "Scale", lambda x: x * 1e3)

    class Thrice(Layer):
        def forward(self, run, *inputs):
            x = inputs[0]
            for _ in range(3):
                x = run.call(shared, x)
            return x

    found = in_type(NumpySubject(root=Thrice("", shared)), np.ones((4, 2)))
    assert (found.first, found.index) == ("shared", 1)


def test_the_layer_inside_a_block_is_named_not_the_block():
    large = Function("large", "Scale", lambda x: x * 1e6)
    subject = NumpySubject(Sequential("outer", Sequential("inner", large)))
    assert in_type(subject, samples(4)).first == "large"


def test_a_block_whose_own_code_falls_to_minus_inf_is_named():
    class Own(Layer):
        def forward(self, run, *inputs):
            return run.call(self.children[0], inputs[0]) - np.inf

    own = Own("own", Function("keep", "Keep", lambda x: x))
    assert in_type(NumpySubject(own), samples(8)).first == "own"


def test_every_type_is_run_on_32_samples_from_all_over_the_data():
    report = probe(classifier(), samples(64))
    assert [p.samples for p in report.precisions] == [32, 32, 32]
    assert probe(classifier(), samples(33)).precisions[1].samples == 17
    assert probe(classifier(), samples(20)).precisions[1].samples == 20
    x = samples(64)
    x[63] = 1e4  # overflows float16 behind the first layer
    subject = NumpySubject(Function("scale", "Scale", lambda x: x * 10))
    assert probe(subject, x).precisions[1].bad == 1


def test_what_float32_does_anyway_is_not_blamed_on_a_type():
    subject = NumpySubject(
        Dense("fc", 6, 4), Function("log", "Log", lambda x: np.log(np.minimum(x, -1)))
    )
    report = probe(subject, X)
    assert report.precisions[0].bad == report.precisions[1].bad == 32
    assert not any(kind.startswith("overflows") for kind in kinds(report))


def test_what_spoils_float32_is_told_once():
    x = samples(32)
    x[3] = 1e25
    report = probe(NumpySubject(BatchNorm("bn", 6), Dense("fc", 6, 2)), x)
    found = sign(report, "spoils-float32")
    assert (found.severity, found.layer) == (Severity.WARNING, "bn")
    assert found.message == "training on these samples would spoil its running statistics"
    assert "spoils-bfloat16" not in kinds(report)


# What is said of outputs and layers.


@pytest.mark.parametrize(
    ("bad", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "-Inf")]
)  # fmt: skip
def test_the_output_is_called_by_what_it_is(bad, word):
    spoil = Function("spoil", "Spoil", lambda x: np.where(x > 0, bad, x))
    report = probe(NumpySubject(spoil), X, precisions=())
    assert sign(report, "nonfinite-output").message.startswith(f"the model's output is {word} for")
    inside = NumpySubject(spoil, Function("mend", "Mend", lambda x: np.nan_to_num(x, posinf=0)))
    found = sign(probe(inside, X, precisions=()), "nonfinite-inside")
    assert found.message.startswith(f"gives {word} in ")
    assert found.severity is (Severity.NOTE if word == "-Inf" else Severity.WARNING)


def test_further_saturated_layers_are_told_with_the_first():
    subject = NumpySubject(
        Dense("fc", 6, 4),
        Function("a", "Tanh", np.sign),
        Function("b", "Tanh", np.sign),
        Function("c", "Tanh", np.sign),
    )
    found = sign(probe(subject, X, precisions=()), "saturated")
    assert found.message == "is saturated: 100.0% of its outputs are at a limit; so are b, c"
    assert found.measured["layers"] == ["a", "b", "c"]


@pytest.mark.parametrize("cls", ["Sigmoid", "Tanh", "Softsign", "Hardtanh", "Softmax2d", "ReLU6"])
def test_functions_are_saturated_at_their_ends_and_nowhere_between(cls):
    limits = {"Tanh": (-1, 1), "Softsign": (-1, 1), "Hardtanh": (-1, 1), "ReLU6": (0, 6)}
    for value in (-1.0, 0.0, 1.0, 6.0, 1.25, 7.5, -1.25):
        subject = NumpySubject(
            Function("f", cls, lambda x, v=value: np.full_like(x, v)),
        )
        (row,) = [r for r in probe(subject, X, precisions=()).rows if r.layer == "f"]
        assert row.stuck is (value in limits.get(cls, (0, 1)))


@pytest.mark.parametrize(("gap", "stuck"), [(0.9e-6, True), (1.1e-6, False)])
def test_a_millionth_from_its_end_a_function_is_at_it(gap, stuck):
    subject = NumpySubject(Function("f", "Sigmoid", lambda x: np.full_like(x, gap)))
    assert probe(subject, X, precisions=()).rows[-1].stuck is stuck


def test_five_names_are_listed_and_the_rest_counted():
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c, d, e and 1 more"


def test_a_probe_that_ran_nothing_counts_nothing():
    report = ProbeReport(model="m")
    assert (report.bad, report.norms_of, report.constant, report.signs) == (0, 0, False, ())
    assert probe(NumpySubject(Dense("fc", 6, 3)), X, precisions=()).norms_of == 0


def test_samples_can_be_run_one_by_one():
    report = probe(classifier(), samples(3), batch_size=1, samples=0, precisions=())
    assert report.rows[0].shape == (1, 4)
    assert report.samples.used == 3


def test_the_same_for_every_sample_is_said_over_all_batches_not_within_one():
    # within a batch of one nothing can be told, over all of them it can
    subject = NumpySubject(Dense("fc", 6, 4), Function("same", "Same", lambda x: x * 0 + 3))
    assert probe(subject, X, batch_size=1, precisions=()).constant
    assert not probe(subject, X[:1], precisions=()).constant


def test_one_of_two_outputs_that_differs_is_enough():
    class Two(NumpySubject):
        def run(self, batch, *more, **options):
            (out,) = super().run(batch, *more, **options)
            return out * 0, out

    assert not probe(Two(Dense("fc", 6, 4)), X, precisions=()).constant


# Rows.


def test_a_shared_layer_has_its_bad_call_named_inside_the_block_that_made_it_bad():
    trace = Trace()
    outer = Call(layer="outer", class_name="Outer", index=0, depth=0, leaf=False)
    inner = Call(layer="inner", class_name="Inner", index=0, depth=1, leaf=True)
    trace.start(2)
    x, bad = np.ones((2, 2)), np.full((2, 2), np.nan)
    trace.before(outer, (x,))
    for at in (0, 1):
        call = Call(layer="inner", class_name="Inner", index=at, depth=1, leaf=True)
        trace.before(call, ((x, bad)[at],))
        trace.after(call, ((x, bad)[at],))
    trace.after(outer, (bad,))
    rows = {(row.layer, row.index): row for row in trace.rows()}
    assert [key for key, row in rows.items() if row.began] == [("outer", 0)]
    assert rows["outer", 0].between == ("inner", "inner")
    assert not rows[inner.layer, 0].began


def test_the_first_place_in_a_block_stays_the_one_that_is_told():
    names = []

    class Own(Layer):
        def forward(self, run, *inputs):
            first = run.call(self.children[0], inputs[0])
            second = run.call(self.children[1], first - np.inf)
            return run.call(self.children[2], second * np.nan)

    def identity(name):
        names.append(name)
        return Function(name, "Identity", lambda x: x)

    report = probe(NumpySubject(Own("own", *map(identity, "abc"))), X, precisions=())
    (row,) = [r for r in report.rows if r.layer == "own"]
    assert (row.began, row.between) == (True, ("a", "b"))


# Values.


@pytest.mark.parametrize(
    ("values", "samples_of_it", "answer"),
    [
        ([[1.0], [1.0 + 2e-5]], 2, True),
        ([[1.0], [1.0 + 5e-6]], 2, False),
        ([[1.0], [1.0], [2.0]], 3, True),
        ([[1.0], [np.inf]], 2, None),
        ([[0.0], [0.0]], 2, False),
        ([1.0, 1.0], 2, False),
    ],
)
def test_samples_differ_by_more_than_rounding(values, samples_of_it, answer):
    assert varies(np.array(values), samples_of_it) is answer


def test_the_largest_value_is_that_of_either_sign():
    assert span_of([np.array([-3.0, 2.0])]).largest == 3.0
    assert span_of([np.array([-3.0, 4.0])]).largest == 4.0
    nothing = span_of([np.array([np.nan])])
    assert (nothing.largest, nothing.mean_abs, nothing.finite) == (0.0, None, 0)
    assert span_of([np.zeros((2, 0)), np.array([0.0, -1.0])]).zeros == 1


# The data.


def test_a_limit_of_samples_that_is_none_takes_all():
    x = samples(100)
    assert len(look_at(read_data(x), 0)[1]) == 100
    assert len(look_at(read_data(x), 70)[1]) == 70
    assert len(look_at(read_data(x), 200)[1]) == 100


@pytest.mark.parametrize(("value", "far"), [(99.0, []), (101.0, [1]), (-101.0, [1])])
def test_samples_are_far_off_from_a_hundred_times_the_usual_on(value, far):
    x = np.ones((9, 2), np.float32)
    x[1, 0] = value
    assert [sample.index for sample in look_at(read_data(x), 0)[0].outliers] == far


def test_samples_alike_are_told_whatever_their_number():
    assert not look_at(read_data(np.ones((1, 2))), 0)[0].alike
    assert look_at(read_data(np.ones((2, 2))), 0)[0].alike
    x = np.ones((70, 2))
    x[69, 1] = 2
    assert not look_at(read_data(x), 0)[0].alike
    assert look_at(read_data(x), 69)[0].alike
    x[1], x[69] = 2, 1
    assert not look_at(read_data(x), 0)[0].alike


def test_a_sample_of_nan_alone_has_no_range():
    x = np.ones((3, 2))
    x[1] = np.nan
    x[2, 0] = np.inf
    told, used = look_at(read_data(x), 0)
    assert used.tolist() == [0]
    (empty, half) = told.nonfinite
    assert np.isnan([empty.low, empty.high]).all()
    assert (half.low, half.high, half.nonfinite) == (1.0, 1.0, 1)


# The file.


class Renamed(NumpySubject):
    """Takes what a file has under ``net.``; other tensors have no place in it."""

    def load(self, table):
        pairs = {}
        for name in table:
            layer, _, part = name.removeprefix("net.").rpartition(".")
            if name.startswith("net.") and layer in self.layers:
                self.layers[layer].tensors[part] = table.read(name).copy()
                pairs[f"{layer}.{part}"] = name
        return Loaded(pairs=pairs)


def renamed(tmp_path, **more):
    """Report of a model whose file has NaN in ``net.bn2.running_var`` and has more tensors."""
    subject = classifier()
    subject.set_statistics("bn2", Statistics(np.zeros(16), np.full(16, np.nan)))
    table = subject.table()
    tensors = {f"net.{name}": table.read(name).copy() for name in table}
    path = save_torch(tmp_path / "w.pt", tensors | more)
    return probe(Renamed(*classifier().root.children), X, weights_file=path, precisions=())


def test_what_the_file_says_is_told_by_its_names_and_by_the_models(tmp_path):
    report = renamed(tmp_path)
    assert [(f.code, f.tensor) for f in report.first.said] == [("BN001", "net.bn2.running_var")]
    assert report.layers["net.bn2.running_var"] == "bn2"
    assert report.tensors["net.bn2.running_var"] == "bn2.running_var"
    assert report.file == f"{tmp_path}/w.pt"


def test_a_tensor_is_of_the_layer_that_it_was_loaded_into(tmp_path):
    class Swapping(NumpySubject):
        def load(self, table):
            swap = {"bn1": "bn2", "bn2": "bn1"}
            pairs = {}
            for name in table:
                layer, _, part = name.rpartition(".")
                layer = swap.get(layer, layer)
                self.layers[layer].tensors[part] = table.read(name).copy()
                pairs[f"{layer}.{part}"] = name
            return Loaded(pairs=pairs)

    table = classifier().table()
    tensors = {name: table.read(name).copy() for name in table}
    tensors["bn1.running_var"][:] = np.nan
    path = save_torch(tmp_path / "w.pt", tensors)
    subject = Swapping(*classifier().root.children)
    report = probe(subject, X, weights_file=path, precisions=())
    assert report.first.row.layer == "bn2"
    assert [finding.tensor for finding in report.first.said] == ["bn1.running_var"]
    assert report.tensors["bn1.running_var"] == "bn2.running_var"


def test_what_the_file_says_of_other_tensors_is_of_no_layer(tmp_path):
    report = renamed(tmp_path, spare=np.full((4, 4), np.nan, np.float32))
    assert "spare" in {finding.tensor for finding in report.said}
    assert set(report.layers) == {"net.bn2.running_var"}
    assert [finding.tensor for finding in report.first.said] == ["net.bn2.running_var"]


def test_the_weights_that_are_put_into_a_model_are_those_that_would_be_served(tmp_path):
    table = classifier().table()
    tensors = {name: table.read(name).copy() for name in table}
    plain = save_torch(tmp_path / "plain.pt", {"model": tensors})
    both = save_torch(tmp_path / "both.pt", {"model": tensors, "model_ema": tensors})
    assert (file_report(str(plain)).which, file_report(str(both)).which) == ("model", "ema")
    assert File(path="net.pt2").which == "model"


def test_notes_on_weights_are_no_news_to_a_probe():
    subject = classifier()
    subject.layers["bn1"].tensors["gamma"][:3] = 0  # BN005, a note
    assert probe(subject, X, precisions=()).said == ()
    subject.layers["bn1"].tensors["running_var"][0] = np.nan
    assert [f.code for f in probe(subject, X, precisions=()).said] == ["BN001"]


# What comes next.


def broken(used=16, kind="file", file="w.pt"):
    data = Samples(
        source="x.npy", kind=kind, total=used, used=used, shapes=(), dtypes=(), span=Span()
    )
    return ProbeReport(
        model="net.py:build", file=file, samples=data, norms=(drift(var=np.nan),)
    )  # fmt: skip


def test_recomputing_is_proposed_from_16_samples_on():
    assert next_steps(broken(16))[0][0] == (
        "ckptdoctor repair w.pt --recalibrate net.py:build --data x.npy"
    )
    ((command, why),) = next_steps(broken(15))
    assert command == "ckptdoctor inspect w.pt"
    assert why.endswith("recomputing statistics takes 16 samples or more, these are 15")
    assert next_steps(broken(kind="memory"))[0][0] == "ckptdoctor inspect w.pt"
    assert next_steps(broken(file="")) == ()


@pytest.mark.parametrize("kind", ["stale-statistics", "train-eval-disagreement"])
def test_statistics_that_are_off_together_are_recomputed_where_that_is_an_error(kind):
    for severity, steps in ((Severity.ERROR, 1), (Severity.WARNING, 0), (Severity.NOTE, 0)):
        told = Sign(kind=kind, severity=severity, message="")
        report = replace(broken(), norms=(drift(),), signs=(told,))
        assert len(next_steps(report)) == steps


def test_errors_of_the_file_lead_to_the_inspection_though_the_model_does_well():
    for severity, steps in ((Severity.ERROR, 1), (Severity.WARNING, 0)):
        said = (container_finding("CK001", severity, "it is damaged"),)
        report = replace(broken(), norms=(drift(),), said=said)
        assert len(next_steps(report)) == steps


def test_a_file_that_begins_with_a_dash_is_no_option_of_the_next_command():
    assert next_steps(broken(file="-w.pt"))[0][0].startswith("ckptdoctor repair ./-w.pt ")


# The command.


@pytest.mark.parametrize(
    ("more", "terminal", "drawn"),
    [([], True, True), (["--quiet"], True, False), ([], False, False)],
    ids=["terminal", "quiet", "no terminal"],
)
def test_progress_is_drawn_on_a_terminal_that_is_not_told_to_be_quiet(
    tmp_path, monkeypatch, more, terminal, drawn
):
    (tmp_path / "net_to_probe.py").write_text(
        "from live.numpy_subject import classifier\ndef build():\n    return classifier()\n"
    )
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("ckptdoctor.commands.probe.is_terminal", lambda _stream: terminal)
    monkeypatch.setattr("ckptdoctor.terminal._QUIET_SECONDS", 0)
    run(["probe", f"{tmp_path}/net_to_probe.py:build", "--data", "random:6", *more])
    assert ("  0% " in stderr.getvalue().replace("\r", " ")) is drawn
