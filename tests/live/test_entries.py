"""Which arrays are inputs, and whether they are given by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from live.numpy_subject import NumpySubject, classifier, samples

from ckptdoctor.errors import ModelError, UsageError
from ckptdoctor.live.batches import gathered, holds_arrays, numeric
from ckptdoctor.live.data import data_for
from ckptdoctor.live.entries import by_name, entries_of
from ckptdoctor.live.inputs import Parameters
from ckptdoctor.live.subject import Statistics
from ckptdoctor.living import recalibrate
from ckptdoctor.probing.probe import probe

LANGUAGE = Parameters((), ("input_ids", "past", "attention_mask", "labels"))
BY_KEYWORD = Parameters(("image", "meta"), (), ("image", "meta", "scale"))
PAIR = Parameters(("image", "meta"), ("image", "meta", "mask"))


class Module(NumpySubject):
    """A PyTorch module as far as its inputs go: `classifier` behind a forward of any signature."""

    framework = "torch"

    def __init__(self, forward) -> None:
        fitted = classifier()
        super().__init__(root=fitted.root)
        self.module = SimpleNamespace(forward=forward)
        self.by_name: tuple[str, ...] = ()
        self.given: dict | tuple = ()

    def run(self, batch, observer=None, *, only=None, rounding=""):
        self.given = dict(zip(self.by_name, batch, strict=False)) or tuple(batch)
        x = self.given["image"] if self.by_name else batch[0]
        return super().run([x], observer, only=only, rounding=rounding)


def pair(image, meta, mask=None): ...


def by_keyword(*, image, meta): ...


def masked(image, meta=None, mask=None): ...


def one(image): ...


X, META = samples(64), np.ones((64, 2), np.float32)


@pytest.mark.parametrize(
    ("keys", "parameters", "chosen", "named"),
    [
        (("labels", "attention_mask", "input_ids"), LANGUAGE, ["input_ids", "attention_mask"], 1),
        (("input_ids", "labels"), LANGUAGE, ["input_ids"], 0),
        (("meta", "image", "y"), PAIR, ["image", "meta"], 0),
        (("mask", "meta", "image"), PAIR, ["image", "meta", "mask"], 0),
        (("meta", "image"), BY_KEYWORD, ["image", "meta"], 1),
        (("x", "y"), PAIR, ["x"], 0),
        (("target", "x"), Parameters(("x", "target"), ("x", "target")), ["x", "target"], 0),
    ],
)
def test_inputs_are_what_the_parameters_of_the_model_are_called(keys, parameters, chosen, named):
    found = entries_of(keys, (), parameters, "")
    assert list(found) == chosen
    assert by_name(found, parameters) == (tuple(chosen) if named else ())


def test_what_no_name_explains_is_asked_for():
    with pytest.raises(UsageError, match="'a', 'b'") as caught:
        entries_of(["a", "b"], (), PAIR, "")
    assert "parameters of the model's forward" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        entries_of(["a", "b"], (), PAIR, "two.npz")
    assert "two.npz:NAME,NAME" in caught.value.hint


@pytest.mark.parametrize("form", ["tuple", "mapping", "loader", "loader of mappings", "list"])
@pytest.mark.parametrize("forward", [pair, by_keyword])
def test_two_inputs_come_in_many_forms(form, forward):
    halves = [slice(0, 32), slice(32, 64)]
    given = {
        "tuple": (X, META),
        "mapping": {"meta": META, "image": X, "labels": np.zeros(64)},
        "loader": iter([(X[half], META[half], np.zeros(32)) for half in halves]),
        "loader of mappings": iter([{"meta": META[half], "image": X[half]} for half in halves]),
        "list": [(X[half], META[half]) for half in halves],
    }[form]
    subject = Module(forward)
    data = data_for(subject, given)
    assert [array.shape for array in data.arrays] == [(64, 6), (64, 2)]
    assert subject.by_name == (("image", "meta") if forward is by_keyword else ())


def test_arrays_named_behind_a_file_are_given_by_name_where_positions_would_mix_them_up(tmp_path):
    np.savez(tmp_path / "two.npz", mask=META, image=X)
    subject = Module(masked)
    data_for(subject, f"{tmp_path / 'two.npz'}:image,mask")
    assert subject.by_name == ("image", "mask")
    data_for(subject, X)
    assert subject.by_name == ()


def test_more_arrays_in_a_list_than_the_model_takes_are_batches():
    assert len(data_for(Module(one), [X[:32], X[32:]])) == 64
    assert len(data_for(Module(one), [X])) == 64


def test_a_list_for_a_model_that_states_its_inputs_is_held_against_their_number():
    one_input = NumpySubject(shapes=[((None, 6), "float32")])
    assert len(data_for(one_input, [X[:32], X[32:]])) == 64
    two_inputs = NumpySubject(shapes=[((None, 6), "float32"), ((None, 2), "float32")])
    assert len(data_for(two_inputs, [X, META]).arrays) == 2


def test_a_list_of_as_many_arrays_as_the_model_needs_holds_its_inputs():
    assert [a.shape for a in data_for(Module(pair), [X, META]).arrays] == [(64, 6), (64, 2)]
    assert len(data_for(Module(one), (X,)).arrays) == 1
    with pytest.raises(UsageError, match="batches of 2 inputs"):
        data_for(Module(pair), [X, X, X])


def test_a_tuple_holds_inputs_whatever_their_number():
    assert len(data_for(Module(one), (X, META)).arrays) == 2


@pytest.mark.parametrize("verb", [probe, recalibrate])
def test_both_verbs_take_a_list_for_the_same(verb):
    verb(Module(one), [X[:32], X[32:]])
    subject = Module(pair)
    verb(subject, [X, META])
    assert len(subject.given) == 2


def test_a_list_that_may_hold_inputs_or_batches_is_not_guessed_at():
    def any_of_them(ids=None, mask=None): ...

    with pytest.raises(UsageError, match="a list of 2 arrays may hold inputs or batches") as caught:
        data_for(Module(any_of_them), [X, X])
    assert "tuple" in caught.value.hint
    assert len(data_for(Module(any_of_them), (X, X)).arrays) == 2
    assert len(data_for(Module(any_of_them), iter([X, X]))) == 128
    assert len(data_for(Module(any_of_them), [X, X, X])) == 192


# A mapping of all inputs.


def mapped(batch: dict[str, np.ndarray], scale=1.0): ...


def mapped_in_text(batch: Mapping[str, np.ndarray]): ...


def named_like_one(batch): ...


def two_of_them(batch: dict, extra): ...


class Together(Module):
    within = ""


@pytest.mark.parametrize("forward", [mapped, mapped_in_text])
@pytest.mark.parametrize("form", ["mapping", "loader", "file"])
def test_a_parameter_that_is_a_mapping_is_given_one(form, forward, tmp_path):
    labels = np.zeros(64)
    np.savez(tmp_path / "x.npz", image=X, meta=META, label=labels)
    file = ["a.png"] * 32
    halves = [slice(0, 32), slice(32, 64)]
    given = {
        "mapping": {"image": X, "meta": META, "label": labels},
        "loader": iter(
            [{"file": file, "image": X[h], "meta": META[h], "label": labels[h]} for h in halves]
        ),
        "file": str(tmp_path / "x.npz"),
    }[form]
    subject = Together(forward)
    data = data_for(subject, given)
    assert (subject.within, subject.by_name) == ("batch", ("image", "meta", "label"))
    assert [array.shape for array in data.arrays] == [(64, 6), (64, 2), (64,)]
    assert data_for(subject, data).within == "batch"
    data_for(subject, X)
    assert (subject.within, subject.by_name) == ("", ())


def test_arrays_chosen_of_a_file_are_what_is_in_the_mapping(tmp_path):
    np.savez(tmp_path / "x.npz", image=X, meta=META, label=np.zeros(64))
    subject = Together(mapped)
    data_for(subject, f"{tmp_path / 'x.npz'}:meta,image")
    assert (subject.within, subject.by_name) == ("batch", ("meta", "image"))


def test_a_mapping_that_has_the_parameter_is_of_parameters():
    subject = Together(mapped)
    assert len(data_for(subject, {"batch": X, "label": np.zeros(64)}).arrays) == 1
    assert (subject.within, subject.by_name) == ("", ())


@pytest.mark.parametrize("forward", [named_like_one, two_of_them, one])
def test_other_parameters_are_given_the_array_itself(forward):
    subject = Together(forward)
    assert len(data_for(subject, {"x": X, "y": np.zeros(64)}).arrays) == 1
    assert subject.within == ""


def test_entries_that_are_no_numbers_are_no_inputs():
    given = {"path": ["a"] * 64, "image": X, "note": None, "size": 3}
    assert len(data_for(Module(one), given)) == 64
    assert numeric({"path": ["a"]}) == ["path"]
    assert numeric({"x": [[1, 2]], "ragged": [[1], [2, 3]], 3: np.ones(2), "n": 4}) == ["x", "3"]


@pytest.mark.oracle
def test_a_module_that_takes_a_mapping_is_probed_and_recalibrated():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8)

        def forward(self, batch: dict[str, torch.Tensor]):
            return self.bn(self.fc(batch["image"])) * batch["meta"][:, :1]

    net = Net()
    for _ in range(50):
        net({"image": torch.from_numpy(X), "meta": torch.from_numpy(META)})
    given = {"image": X, "meta": META, "label": np.zeros(64, np.int64)}
    assert probe(net, given, precisions=("float16",)).clean
    net.bn.running_var[2] = float("nan")
    made = recalibrate(net, [{k: v[at : at + 16] for k, v in given.items()} for at in (0, 16, 32)])
    assert (made.reach, made.samples) == ("broken", 48)


def test_a_data_set_needs_a_loader():
    class Pairs:
        def __getitem__(self, index):
            return X[index], 0

    for verb in (probe, recalibrate):
        with pytest.raises(UsageError, match="found Pairs") as caught:
            verb(classifier(), Pairs())
        assert "loader" in caught.value.hint


@pytest.mark.parametrize("data", [None, 3])
def test_what_is_no_data_is_refused_for_recalibration_too(data):
    with pytest.raises(UsageError, match="expected data to be"):
        recalibrate(classifier(), data)


@pytest.mark.parametrize("forward", [pair, by_keyword])
def test_a_module_of_two_inputs_is_recalibrated(forward):
    subject = Module(forward)
    sound = subject.statistics("bn1")
    subject.set_statistics("bn1", Statistics(sound.mean * np.nan, sound.var * np.nan))
    loader = [(X[at : at + 16], META[at : at + 16], np.zeros(16)) for at in range(0, 64, 16)]
    assert recalibrate(subject, iter(loader)).reach == "broken"
    np.testing.assert_allclose(subject.statistics("bn1").var, sound.var, rtol=0.6)


IMAGES = np.arange(16 * 3 * 8 * 8, dtype=np.float32).reshape(16, 3, 8, 8)


def detection(number):
    """A batch as loaders for detection give it: images in a tuple, what is on them in another."""
    boxes = {"boxes": np.zeros((1, 4), np.float32)}
    return tuple(IMAGES[:number]), (boxes,) * number


class TestNested:
    @pytest.mark.parametrize("number", [16, 3, 1])
    @pytest.mark.parametrize("form", [iter, list])
    def test_images_in_a_tuple_are_samples(self, form, number):
        data = data_for(Module(one), form([detection(number), detection(number)]))
        assert [array.shape for array in data.arrays] == [(2 * number, 3, 8, 8)]
        np.testing.assert_array_equal(data.arrays[0][:number], IMAGES[:number])

    @pytest.mark.parametrize("labels", [np.zeros(3), [1, 2, 3], [np.zeros(())] * 3])
    def test_images_beside_any_labels_are_samples(self, labels):
        assert gathered([(list(IMAGES[:3]), labels)], 1)[0].shape == (3, 3, 8, 8)

    @pytest.mark.parametrize("label", [5, np.zeros(()), np.zeros(1), {"boxes": np.zeros((1, 4))}])
    def test_one_image_beside_its_label_is_one_sample(self, label):
        assert gathered([([IMAGES[0]], [label])], 1)[0].shape == (1, 3, 8, 8)

    @pytest.mark.parametrize("labels", [np.zeros(16), [np.zeros(16)], [np.zeros(16), np.ones(2)]])
    def test_one_input_in_a_tuple_is_that_input(self, labels):
        assert gathered([((IMAGES,), labels)], 1)[0].shape == (16, 3, 8, 8)

    @pytest.mark.parametrize("form", [iter, list])
    def test_inputs_in_a_list_beside_labels_in_a_list(self, form):
        batches = [[[X[h], META[h]], [np.zeros(32)]] for h in (slice(0, 32), slice(32, 64))]
        data = data_for(Module(pair), form(batches))
        assert [array.shape for array in data.arrays] == [(64, 6), (64, 2)]

    def test_inputs_that_the_model_can_do_without_are_no_samples(self):
        assert gathered([((X, META), np.zeros(64))], 1)[0].shape == X.shape

    def test_a_list_that_holds_itself_has_no_arrays(self):
        held: list = []
        held.append(held)
        assert not holds_arrays(held)
        with pytest.raises(UsageError, match="expected"):
            data_for(Module(one), held)


def scaled(image, scale=1.0): ...


ONE = np.float32(1)


class TestScalars:
    @pytest.mark.parametrize("form", ["mapping", "loader", "file"])
    @pytest.mark.parametrize("forward", [scaled, mapped_in_text])
    def test_one_number_that_the_model_can_do_without_is_left_out(self, form, forward, tmp_path):
        np.savez(tmp_path / "x.npz", image=X, scale=ONE)
        given = {
            "mapping": {"image": X, "scale": ONE},
            "loader": iter([{"image": X[:32], "scale": ONE}, {"image": X[32:], "scale": ONE}]),
            "file": str(tmp_path / "x.npz"),
        }[form]
        data = data_for(Together(forward), given)
        assert [array.shape for array in data.arrays] == [X.shape]

    @pytest.mark.parametrize("forward", [scaled, mapped])
    def test_one_number_that_is_asked_for_is_told(self, forward, tmp_path):
        np.savez(tmp_path / "x.npz", image=X, scale=ONE)
        with pytest.raises(UsageError, match=r"found an array of shape \(\)"):
            data_for(Together(forward), f"{tmp_path / 'x.npz'}:image,scale")

    def test_one_number_of_a_file_that_the_model_needs_is_told(self, tmp_path):
        np.savez(tmp_path / "x.npz", image=X, meta=ONE)
        with pytest.raises(UsageError, match=r"found an array of shape \(\)"):
            data_for(Module(pair), str(tmp_path / "x.npz"))

    def test_where_no_name_says_it_the_first_array_is_the_input(self):
        data = data_for(Module(one), iter([{"scale": ONE, "a": X, "b": META}]))
        assert [array.shape for array in data.arrays] == [X.shape]

    @pytest.mark.oracle
    @pytest.mark.parametrize("form", [dict, lambda batch: iter([batch, batch])])
    def test_tensor_of_one_number_is_left_out(self, form):
        torch = pytest.importorskip("torch")
        batch = {"image": torch.from_numpy(X), "scale": torch.tensor(1.0)}
        assert numeric(batch) == ["image"]
        (found,) = data_for(Module(scaled), form(batch)).arrays
        assert found.shape[1:] == (6,)


class TestLoaders:
    def test_a_later_batch_without_an_entry_is_told(self):
        batches = [{"image": X, "mask": META, "meta": META}, {"image": X, "meta": META}]
        with pytest.raises(UsageError, match="a batch has no entry 'mask', which the first one"):
            data_for(Module(pair), iter(batches))
        assert len(data_for(Module(pair), iter(batches[::-1])).arrays) == 2

    @pytest.mark.parametrize("form", [dict, lambda batch: iter([batch])])
    def test_keys_need_not_be_text(self, form):
        assert data_for(Module(one), form({0: X})).arrays[0].shape == X.shape

    @pytest.mark.parametrize("batch", [{}, (), []], ids=["mapping", "tuple", "list"])
    @pytest.mark.parametrize("verb", [probe, recalibrate])
    def test_batch_without_inputs_is_told(self, verb, batch):
        with pytest.raises(UsageError, match="expected batches of 1 inputs, found one of 0"):
            verb(classifier(), iter([batch]))

    @pytest.mark.parametrize("verb", [probe, recalibrate])
    @pytest.mark.parametrize("after", [0, 1])
    def test_loader_that_fails_is_told_as_the_users_code(self, verb, after):
        def loader():
            for _ in range(after):
                yield samples(16)
            raise OSError("images are gone")

        with pytest.raises(
            ModelError, match=r"the loader of the samples failed: .*images are gone"
        ):
            verb(classifier(), loader())

    def test_samples_beyond_float32_are_infinite_to_the_model(self):
        x = samples(32).astype(np.float64)
        x[3] = 1e300
        told = [sign.message for sign in probe(classifier(), x).signs]
        assert any("1 of 32 samples hold NaN or Inf" in message for message in told)
