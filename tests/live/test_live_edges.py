"""Edges of opening models and reading samples: what is taken, what is said, and where it is cut."""

from __future__ import annotations

import re
import sys
import textwrap
import zipfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch_bytes as tb
from live.numpy_subject import BatchNorm, Function, NumpySubject, classifier, samples

from ckptdoctor.errors import ModelError, ReadError, UsageError
from ckptdoctor.live.batch_statistics import BatchStatistics, Moments
from ckptdoctor.live.batches import array_of, gathered
from ckptdoctor.live.calling import failure, is_model, is_subject, is_torch, user_code
from ckptdoctor.live.data import Data, data_for, read_data
from ckptdoctor.live.naming import parse_model
from ckptdoctor.live.opening import open_subject, subject_of
from ckptdoctor.live.random_data import random_samples
from ckptdoctor.live.subject import Statistics

FACTORY = "from live.numpy_subject import classifier\ndef build():\n    return classifier()\n"


@pytest.fixture
def script(tmp_path):
    def write(text: str, name: str = "net.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def torch_nn(monkeypatch):
    """Stand-in for ``torch.nn``, imported already: it has ``Module`` and nothing else."""
    module = ModuleType("torch.nn")
    module.Module = type("Module", (), {"__module__": "torch.nn"})
    monkeypatch.setitem(sys.modules, "torch.nn", module)
    return module


# Code that the user names.


def test_a_neighbour_of_a_script_comes_before_a_module_of_that_name_elsewhere(
    script, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "neighbour_of_this_test.py").write_text("raise ImportError('the wrong one')\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    script("from live.numpy_subject import classifier as make\n", "neighbour_of_this_test.py")
    path = script("from neighbour_of_this_test import make\ndef build(): return make()\n")
    assert open_subject(f"{path}:build").subject.framework == "numpy"
    sys.modules.pop("neighbour_of_this_test")


def test_a_script_that_takes_itself_off_the_path_does_no_harm(script):
    path = script(f"import sys\nsys.path.pop(0)\n{FACTORY}")
    before = list(sys.path)
    assert open_subject(f"{path}:build").subject.framework == "numpy"
    assert sys.path == before


def test_a_script_that_is_no_python_file_is_told_what_to_name(script):
    path = script(FACTORY, "net")
    with pytest.raises(UsageError, match="cannot be imported; name a Python file") as caught:
        open_subject(f"{path}:build")
    assert caught.value.where == path


def test_a_long_message_of_the_users_code_is_cut():
    with pytest.raises(ModelError) as caught, user_code("it failed"):
        raise ValueError("x" * 5000)
    assert caught.value.message == "it failed: ValueError: " + "x" * 300


def test_the_first_line_with_words_is_the_reason():
    with pytest.raises(ModelError, match=r"ValueError: one$"), user_code("it failed"):
        raise ValueError("\n  \n  one  \ntwo")


def test_an_error_that_cannot_be_told_is_told_by_its_name():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    with (
        pytest.raises(ModelError, match="it failed: Mute: without a message"),
        user_code("it failed"),
    ):
        raise Mute


@pytest.mark.parametrize(
    "text",
    [
        "def __getattr__(name):\n    raise OSError('no ' + name)\n",
        "class Lazy:\n    build = property(lambda self: open('/nowhere'))\nlazy = Lazy()\n",
    ],
    ids=["module", "property"],
)
def test_looking_a_factory_up_may_fail_as_any_code_of_the_users(script, text):
    path = script(text)
    factory = "lazy.build" if "lazy" in text else "build"
    with pytest.raises(ModelError, match=rf"{factory} failed: \w+Error: ") as caught:
        open_subject(f"{path}:{factory}")
    assert caught.value.where == f"{path}:2"


def test_a_failure_in_a_library_alone_is_placed_there():
    with pytest.raises(ModelError) as caught, user_code("it failed", "/nowhere/at/all"):
        raise ValueError
    assert caught.value.where.startswith(__file__)


def test_what_a_module_imports_in_vain_is_a_failure_of_its_code(script, tmp_path, monkeypatch):
    script("import nothing_like_this_either\n", "importer_of_this_test.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="No module named 'nothing_like_this_either'"):
        open_subject("importer_of_this_test:build")


def test_a_module_missing_in_a_package_that_is_there_is_named():
    with pytest.raises(UsageError, match=r"no module named 'json\.nothing_like_this'"):
        open_subject("json.nothing_like_this:build")


def test_only_functions_and_classes_of_a_script_itself_are_offered(script):
    path = script("""
        from json import loads
        from pathlib import Path
        NUMBER = 3
        def _hidden(): ...
        class Net: ...
    """)
    with pytest.raises(UsageError, match=r"has no 'zzz'; it has Net$"):
        open_subject(f"{path}:zzz")


def test_a_script_without_anything_to_offer_has_no_hint(script):
    with pytest.raises(UsageError) as caught:
        open_subject(f"{script('NUMBER = 3')}:zzz")
    assert caught.value.hint == ""


def test_six_factories_are_all_named(script):
    path = script("\n".join(f"def make{at}(): ..." for at in range(6)))
    with pytest.raises(UsageError, match=r"it has make0, .*, make5$"):
        open_subject(f"{path}:zzz")


def test_a_factory_that_does_not_say_its_arguments_is_called(script):
    with pytest.raises(UsageError, match="found dict"):  # dict has no signature
        open_subject(f"{script('build = dict')}:build")


def test_a_class_that_follows_the_protocol_is_called_not_taken(script):
    path = script("""
        from live.numpy_subject import Dense, NumpySubject
        class Made(NumpySubject):
            def __init__(self): super().__init__(Dense("fc", 3, 2))
    """)
    assert type(open_subject(f"{path}:Made").subject).__name__ == "Made"
    assert not is_subject(NumpySubject)
    assert is_model(classifier())


def test_a_line_of_the_users_is_named_only_where_it_is_the_users(tmp_path):
    def raised(file, kind):
        made = {"KIND": kind}
        exec(compile("def fail(): raise KIND('no')", str(file), "exec"), made)  # noqa: S102
        told = UsageError("the model does not take it", hint="look")
        with pytest.raises(kind) as caught:
            made["fail"]()
        told.__cause__ = caught.value
        return failure(told, str(tmp_path))

    here = raised(tmp_path / "net.py", KeyError)
    assert (type(here), here.where, here.hint) == (ModelError, f"{tmp_path}/net.py:1", "look")
    assert type(raised(tmp_path / "net.py", ValueError)) is UsageError
    assert raised(tmp_path / "net.py", NotImplementedError).where == f"{tmp_path}/net.py:1"
    assert raised("/elsewhere/net.py", KeyError).where == ""
    assert raised(tmp_path / "site-packages" / "net.py", KeyError).where == ""
    assert raised(tmp_path / "dist-packages" / "net.py", KeyError).where == ""


def test_a_neighbour_of_this_package_is_the_users(tmp_path):
    import ckptdoctor

    file = f"{ckptdoctor.__path__[0]}_models/net.py"
    made = {}
    exec(compile("def fail(): raise KeyError('no')", file, "exec"), made)  # noqa: S102
    with pytest.raises(ModelError) as caught, user_code("it failed", str(tmp_path)):
        made["fail"]()
    assert caught.value.where == f"{file}:1"


def test_a_place_that_is_known_already_stays():
    told = UsageError("no", where="x.npy")
    told.__cause__ = KeyError()
    assert failure(told, "") is told
    assert failure(UsageError("no"), "").where == ""


# What is a model.


def test_a_module_among_other_things_is_told(torch_nn):
    module = torch_nn.Module()
    assert is_torch(module)
    for held in ([1, module], (module,), {"epoch": 3, "net": module}):
        with pytest.raises(UsageError, match="there is a model in it"):
            subject_of(held, "it")
    with pytest.raises(UsageError) as caught:
        subject_of({"epoch": 3}, "it")
    assert caught.value.hint == ""


def test_a_keras_model_on_torch_is_a_keras_model(torch_nn, monkeypatch):
    keras = ModuleType("keras")
    keras.Model = type("Model", (torch_nn.Module,), {})
    monkeypatch.setitem(sys.modules, "keras", keras)
    assert not is_torch(keras.Model())
    assert is_torch(torch_nn.Module())


def test_a_framework_that_is_half_imported_makes_no_model(torch_nn):
    torch_nn.Module = None
    assert not is_model(object())


# MODEL.


def pickle_of(*classes):
    return tb.archive({f"m{at}": tb.call(*name) for at, name in enumerate(classes)}, {})


def test_a_pickle_of_layers_is_a_model_and_one_of_anything_else_is_not(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(pickle_of(("torch.nn.modules.linear", "Linear")))
    name = parse_model(str(path))
    assert (name.kind, name.code, name.file) == ("pickled", "", str(path))
    with pytest.raises(UsageError, match=r"is a pickled module.*--trust"):
        open_subject(str(path))
    path.write_bytes(pickle_of(("torch.nnnn", "Linear")))
    with pytest.raises(UsageError, match="holds weights"):
        parse_model(str(path))


@pytest.fixture
def pickled(tmp_path, monkeypatch, torch_nn):
    """Opens a file of which ``torch.load`` makes what is given; the module is the subject."""
    path = tmp_path / "net.pt"
    path.write_bytes(pickle_of(("torch.nn.modules.linear", "Linear")))
    loads = []

    def opened(held, *, trust=True):
        def load(file, **options):
            loads.append((file, options))
            if isinstance(held, Exception):
                raise held
            return held

        torch = ModuleType("torch")
        torch.load = load
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr("ckptdoctor.live.torch_subject.TorchSubject", lambda module: module)
        return open_subject(str(path), trust=trust)

    opened.loads, opened.module, opened.path = loads, torch_nn.Module, str(path)
    return opened


def test_the_module_of_a_pickle_is_taken_where_there_is_one_to_take(pickled):
    a, b = pickled.module(), pickled.module()
    assert pickled(a).subject is a
    assert pickled({"epoch": 3, "whatever": a}).subject is a
    assert pickled({"ema": b, "model": a}).subject is a
    assert pickled({"other": a, "net": b}).subject is b
    assert pickled(a).code == pickled(a).file == pickled.path
    with pytest.raises(UsageError, match="there is a model in it"):
        pickled({"one": a, "two": b})
    with pytest.raises(UsageError, match=r"found dict$"):
        pickled({"epoch": 3})


def test_a_pickle_is_not_touched_unless_it_is_trusted(pickled):
    with pytest.raises(UsageError, match=r"is a pickled module.*--trust"):
        pickled(pickled.module(), trust=False)
    assert pickled.loads == []
    pickled(pickled.module())
    assert pickled.loads == [(pickled.path, {"map_location": "cpu", "weights_only": False})]


def test_a_pickle_that_does_not_load_is_one_line(pickled):
    with pytest.raises(ModelError, match=r"net\.pt cannot be unpickled: AttributeError: no Net$"):
        pickled(AttributeError("no Net\nmore"))


def test_a_file_with_a_program_is_opened_as_what_it_is(tmp_path, monkeypatch):
    programs = "ckptdoctor.live.torch_programs"
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr(f"{programs}.scripted_subject", lambda _file: classifier())
    monkeypatch.setattr(f"{programs}.exported_subject", lambda _file: NumpySubject())
    tensors = {"w": tb.tensor(tb.storage("0"), (2, 3))}
    more = {"archive/constants.pkl": b"\x80\x02)."}
    (tmp_path / "net.pt").write_bytes(tb.archive(tensors, {"0": bytes(24)}, more=more))
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/models/model.json", "{}")
    script = open_subject(f"{tmp_path}/net.pt")
    assert (len(script.subject.norms), script.code) == (2, "")
    exported = open_subject(f"{tmp_path}/net.pt2", trust=True)
    assert (len(exported.subject.norms), exported.code) == (0, f"{tmp_path}/net.pt2")


def test_a_keras_model_is_run_once_before_it_takes_weights(monkeypatch):
    monkeypatch.setattr(
        "ckptdoctor.live.keras_weights.load_weights", lambda model, file: (model, file)
    )
    built = []
    subject = classifier()
    subject.framework, subject.model, subject.build = "keras", "the model", built.append
    opened = open_subject(subject, weights_file="w.h5", sample=lambda _subject: "a batch")
    assert (opened.loaded, built) == (("the model", "w.h5"), ["a batch"])
    assert open_subject(subject, weights_file="w.h5").file == "w.h5"
    assert built == ["a batch"]


def test_four_factories_are_named_when_none_is(script):
    path = script("\n".join(f"def make{at}(): ..." for at in range(6)))
    with pytest.raises(UsageError) as caught:
        parse_model(path)
    assert caught.value.hint.count(f"{path}:make") == 4


def test_arguments_by_position_only_count_too(script):
    path = script("def sized(wide, /): ...\ndef build(wide=1, /, deep=2): ...\n")
    with pytest.raises(UsageError, match=r"net\.py:build$"):
        parse_model(path)


def test_a_script_names_its_file_with_a_colon_in_the_folder(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "net.py").write_text("def build(): ...\n")
    assert parse_model(f"{folder}/net.py:build").place == f"{folder}/net.py"


@pytest.mark.parametrize("text", ["models", "net", "zoo.v1"])
def test_a_bare_word_is_a_module_without_its_factory(text):
    with pytest.raises(UsageError, match=rf"write {text}:NAME, NAME a function"):
        parse_model(text)


@pytest.mark.parametrize("text", ["gone.pth", "gone.safetensors", "gone.pt2", "gone.tar.gz.1"])
def test_a_bare_word_that_ends_like_a_file_is_a_file(text):
    with pytest.raises(UsageError, match="no such file"):
        parse_model(text)


# Samples: what is taken.


def test_small_integers_in_three_dimensions_are_images_and_in_two_are_not():
    assert read_data(np.zeros((2, 4, 4), np.uint8)).take([0])[0].dtype == np.float32
    assert read_data(np.zeros((2, 4), np.uint8)).take([0])[0].dtype == np.uint8
    assert read_data(np.zeros((2, 4, 4), np.int16)).take([0])[0].dtype == np.int16
    assert read_data(np.zeros((2, 4), np.uint8)).notes == ()
    (note,) = read_data(np.zeros((2, 4, 4), np.uint8)).notes
    assert note.startswith("uint8 images are given as they are, 0 to 255: ")


def test_integers_in_two_dimensions_stay_indices_for_a_module_that_states_real_numbers():
    subject = NumpySubject(shapes=[((None, 5), "float32")])
    subject.framework = "torch"
    assert data_for(subject, np.ones((2, 5), np.int64)).take([0])[0].dtype == np.int64
    assert data_for(subject, np.ones((2, 5, 1), np.int64)).take([0])[0].dtype == np.float32
    both = [np.ones((2, 5, 1), np.int64), np.ones((2, 5, 1), np.int64)]
    assert [a.dtype for a in data_for(subject, both).take([0])] == [np.int64, np.int64]


@pytest.mark.parametrize("indices", [[1, 2, 3], [3, 1, 2], [2, 2], [4], [], np.array([0, 4])])
def test_the_samples_asked_for_are_given(indices):
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert np.array_equal(read_data(x).take(indices)[0], x[np.asarray(indices, int)])


def test_half_precision_inputs_are_given_as_float32():
    data = read_data(np.ones((2, 3)), [((None, 3), "float16")])
    assert data.take([0])[0].dtype == np.float32
    assert read_data(np.ones((2, 3)), [((None, 3), "bfloat16")]).take([0])[0].dtype == np.float32


def test_batches_hold_no_more_than_asked_for():
    data = Data(arrays=(np.zeros((33, 1)),), source="x", kind="memory")
    assert [len(batch) for batch in data.batches(32)] == [17, 16]
    assert [len(batch) for batch in data.batches(33)] == [33]
    assert list(data.batches(8, [])) == []


def test_the_batch_is_that_of_the_first_input_that_has_one():
    inputs = [((None, 2), "float32"), ((), "float32"), ((3, 2), "float32")]
    data = read_data([np.zeros((7, 2))] * 3, inputs)
    assert data.batch == 3
    assert [array.shape for array in data.filled([6])] == [(3, 2)] * 3
    assert read_data(np.zeros((7, 2)), [((0, 2), "float32")]).batch == 0


def test_a_file_whose_name_holds_a_colon_is_read(tmp_path):
    np.save(tmp_path / "a:b.npy", np.ones((2, 2)))
    assert len(read_data(f"{tmp_path}/a:b.npy")) == 2


def test_a_file_called_random_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((2, 2)))
    (tmp_path / "x.npy").rename(tmp_path / "random")
    assert read_data("random").kind == "file"


def test_a_file_that_cannot_be_opened_is_an_error_of_ours(tmp_path, monkeypatch):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")

    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ReadError, match="cannot be read: Permission denied"):
        read_data(f"{tmp_path}/x.npy")


def test_a_long_reason_of_a_damaged_file_is_cut(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.ones(2))

    def fail(*_args, **_more):
        raise ValueError("x" * 5000 + "\nmore")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(ReadError) as caught:
        read_data(f"{tmp_path}/x.npy")
    assert caught.value.message == "cannot be read: " + "x" * 200


@pytest.mark.parametrize(
    ("number", "shown"), [(8, "'a7'$"), (9, r"'a7' \.\.\.$")], ids=["eight", "nine"]
)
def test_eight_arrays_of_an_archive_are_listed(tmp_path, number, shown):
    np.savez(tmp_path / "x.npz", **{f"a{at}": np.zeros((2, 2)) for at in range(number)})
    with pytest.raises(UsageError) as caught:
        read_data(f"{tmp_path}/x.npz")
    assert "'a0', " in caught.value.message
    assert re.search(shown, caught.value.message)
    assert f"say which are the input of the model: {tmp_path}/x.npz:NAME" in caught.value.hint
    with pytest.raises(UsageError, match=r"holds no array 'zz', but 'a0', .*'a7'$"):
        read_data(f"{tmp_path}/x.npz:zz")


def test_an_archive_that_leaves_a_choice_of_two_inputs_is_told_their_number(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)), c=np.zeros((2, 2)))
    with pytest.raises(UsageError, match="say which are the 2 inputs of the model"):
        read_data(f"{tmp_path}/x.npz", [((None, 2), "float32")] * 2)
    with pytest.raises(UsageError, match="say which are the input of the model"):
        read_data(f"{tmp_path}/x.npz", [((None, 2), "float32")])


def test_an_archive_of_labels_alone_holds_the_input():
    assert len(read_data({"y": np.zeros((3, 2))})) == 3


def test_usual_names_are_no_answer_where_a_model_has_two_inputs():
    two = [((None, 2), "float32")] * 2
    found = read_data({"x": np.zeros((3, 2)), "other": np.ones((3, 2))}, two)
    assert [array.sum() for array in found.arrays] == [0, 6]


def test_usual_names_are_the_answer_where_a_model_has_one_input():
    arrays = {"x": np.zeros((3, 2)), "other": np.ones((3, 2))}
    (array,) = read_data(arrays, [((None, 2), "float32")]).arrays
    assert array.sum() == 0


def test_tokens_are_told_by_their_ids_not_by_their_mask():
    ids, mask = np.ones((2, 5), np.int64), np.zeros((2, 5), np.int64)
    (array,) = read_data({"other": mask, "input_ids": ids}).arrays
    assert array.sum() == 10
    (array,) = read_data({"attention_mask": mask, "x": ids}).arrays
    assert array.sum() == 10


def test_a_model_of_four_inputs_is_not_given_three_kinds_of_tokens():
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    arrays = {name: np.full((2, 1), at) for at, name in enumerate(names)}
    found = read_data(arrays, [((None, 1), "int64")] * 4)
    assert [int(array[0, 0]) for array in found.arrays] == [0, 1, 2, 3]
    found = read_data(arrays, [((None, 1), "int64")] * 3)
    assert [int(array[0, 0]) for array in found.arrays] == [0, 1, 2]


@pytest.mark.parametrize(
    ("found", "wanted", "hint"),
    [
        ((5, 3, 4, 2), (None, 2, 3, 4), "the channels are last"),
        ((5, 2, 3), (None, 3, 2), "the channels are first"),
        ((5, 4, 2, 3), (None, 2, 3, 4), "the channels are first"),
        ((5, 2, 3), (None, 2, 4), None),
        ((3, 2), (None, 3, 2), "one sample needs a dimension"),
        ((5, 3), (None, 4), None),
        ((5,), (None, 4), None),
        ((5,), (None, 3, 2), None),
    ],
)
def test_a_shape_that_does_not_fit_is_met_with_what_would_help(found, wanted, hint):
    with pytest.raises(UsageError) as caught:
        read_data(np.zeros(found), [(wanted, "float32")])
    assert caught.value.hint.startswith(hint) if hint else caught.value.hint == ""


# Samples in memory.


class Tensor:
    """As PyTorch's of bfloat16: no array until it is made float32."""

    dtype, shape, ndim = "torch.bfloat16", (2, 3), 2

    def detach(self):
        return self

    def cpu(self):
        return self

    def float(self):
        return np.ones((2, 3), np.float32)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")


def test_tensors_of_bfloat16_become_float32():
    assert array_of(Tensor()).dtype == np.float32
    assert len(data_for(classifier(), [np.ones((2, 6))])) == 2


@pytest.mark.parametrize(
    ("given", "made"),
    [("float64", "float32"), ("float16", "float32"), ("float32", "float32"), ("int16", "int16")],
)
def test_real_numbers_in_memory_become_float32_and_integers_stay(given, made):
    assert array_of(np.ones((2, 2), given)).dtype == made


def test_an_object_that_says_nothing_is_told_by_its_error():
    class Silent:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError

    with pytest.raises(UsageError, match=r"found Silent: RuntimeError$"):
        array_of(Silent())


def test_a_long_reason_is_cut():
    class Loud:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("x" * 5000)

    with pytest.raises(UsageError) as caught:
        array_of(Loud())
    assert caught.value.message.endswith(": " + "x" * 200)


def test_batches_by_name_are_taken_in_their_order():
    batch = {"a": np.zeros((4, 2)), "b": np.ones((4, 2)), "y": np.full((4, 2), 9)}
    assert [array.sum() for array in gathered([batch, batch], 2)] == [0, 16]


def test_batches_of_too_few_inputs_are_told():
    with pytest.raises(UsageError, match="expected batches of 3 inputs, found one of 2"):
        gathered([(np.zeros(2), np.zeros(2))], 3)
    assert len(gathered([[np.zeros(2), np.zeros(2)]], 2)) == 2


def test_four_shapes_of_batches_that_do_not_go_together_are_listed():
    with pytest.raises(UsageError) as caught:
        gathered([np.zeros((2, wide)) for wide in range(1, 7)], 1)
    assert caught.value.message.endswith("different shapes: (1,), (2,), (3,), (4,)")


def test_a_loader_is_asked_for_batches_until_there_are_enough():
    asked = []

    def batches():
        for at in range(9):
            asked.append(at)
            yield np.zeros((4, 2))

    assert len(gathered(batches(), 1, limit=8)[0]) == 8
    assert asked == [0, 1]
    assert len(gathered(batches(), 1, limit=9)[0]) == 12


def test_a_model_that_says_nothing_is_given_the_first_of_a_batch():
    subject = NumpySubject(Function("f", "F", lambda x: x))
    subject.framework = "torch"
    subject.module = SimpleNamespace(forward=None)
    found = data_for(subject, iter([(samples(4), np.zeros(4))]))
    assert [array.shape for array in found.arrays] == [(4, 6)]


# Random samples.


def test_the_number_of_random_samples_fills_batches_of_a_model_that_takes_one_size():
    made = random_samples("random:5x", [((4, 3), "float32"), ((4, 2), "bool")])
    assert [(array.shape, array.dtype.name) for array in made] == [
        ((8, 3), "float32"),
        ((8, 2), "bool"),
    ]


def test_a_model_without_a_shape_takes_nothing_random():
    with pytest.raises(UsageError, match="makes 0 numbers"):
        random_samples("random", [((None, 0), "float32")])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("random:" + ",".join(["999999999"] * 31), r"makes over 1,000,000,000,000,000 numbers"),
        ("random:" + ",".join(["1"] * 32), "a sample has 31 dimensions at most"),
        ("random:" + ",".join(["999999999"] * 5000), "a sample has 31 dimensions at most"),
    ],
    ids=["too many numbers", "too many dimensions", "both"],
)
def test_shapes_without_end_are_refused_in_a_line(text, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        random_samples(text, ())
    assert len(str(caught.value)) < 400
    assert random_samples("random:1x" + ",".join(["1"] * 31), ())[0].ndim == 32


# Statistics of batches.


def test_moments_of_unequal_parts_are_weighed_by_their_numbers():
    a = Moments(1, np.array([0.0]), np.array([0.0]))
    b = Moments(3, np.array([4.0]), np.array([2.0]))
    number, mean, var = a.merged(b)
    assert (number, mean[0], var[0]) == (4, 3.0, 4.5)
    assert b.merged(a).var[0] == 4.5


def test_chosen_channels_take_the_batch_and_the_others_keep_their_own():
    subject = NumpySubject(BatchNorm("bn", 2))
    chosen = Statistics(np.array([True, False]), np.array([False, True]))
    seen = []

    class Watching(BatchStatistics):
        def after(self, call, outputs):
            if call.layer == "bn":
                seen.append(subject.statistics("bn"))

    x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    with Watching(subject, ["bn"], {"bn": chosen}) as observer:
        subject.run((x,), observer)
    (held,) = seen
    assert held.mean.tolist() == [2.0, 0.0]
    assert held.var.tolist() == [1.0, 100.0]


def test_values_that_are_not_finite_are_counted_over_all_batches():
    subject = NumpySubject(BatchNorm("bn", 1))
    with BatchStatistics(subject, ["bn", "bn"]) as observer:
        for bad in (1, 2):
            x = np.zeros((4, 1), np.float32)
            x[:bad] = np.nan
            subject.run((x,), observer)
    assert observer.names == ("bn",)
    assert observer.nonfinite == {"bn": 3}
    assert observer.pooled("bn")[0] == 0
