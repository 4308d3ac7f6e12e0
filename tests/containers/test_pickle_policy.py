"""What CK002 says about names: default deny, exact allow-list, every row with a reason."""

import pickle
import sys

import pytest

from ckptdoctor.containers.pickle import Global, unpickle
from ckptdoctor.containers.pickle_names import NOTED, SILENT
from ckptdoctor.containers.pickle_policy import (
    findings_about,
    judge,
    scan_pickles,
)
from ckptdoctor.findings import Severity
from ckptdoctor.formats.torch_values import _REBUILDERS


def used(dotted, **marks):
    module, _, name = dotted.rpartition(".")
    return Global(module, name, 0, **marks)


@pytest.mark.parametrize("dotted", sorted(SILENT))
def test_the_allow_list_is_silent_and_reasoned(dotted):
    called = dotted != "numpy.ndarray"  # named for each array, never called itself
    assert judge(used(dotted, called=called)) == (None, SILENT[dotted])
    assert SILENT[dotted]


@pytest.mark.parametrize("rebuilder", _REBUILDERS, ids=".".join)
def test_every_rebuilder_is_on_the_allow_list(rebuilder):
    assert ".".join(rebuilder) in SILENT


NOTES = [
    *("builtins.dict", "__builtin__.set", "collections.defaultdict", "pathlib.PosixPath"),
    *("argparse.Namespace", "datetime.datetime", "functools.partial", "typing.Any"),
    *("torch.nn.modules.conv.Conv2d", "torch.optim.adam.Adam", "mypackage.models.Net"),
    *("omegaconf.dictconfig.DictConfig", "__main__.Config", "numpy.float32"),
    *("torch.nn.functional.relu", "torch.FloatTensor", "torch.jit.ScriptModule"),
    *("mypackage.activations.swish", "numpy.random._pickle.__randomstate_ctor"),
    "torch.nn.backends.thnn._get_thnn_function_backend",
]


@pytest.mark.parametrize("dotted", NOTES)
def test_plain_data_and_classes_as_values_are_notes(dotted):
    assert judge(used(dotted))[0] is Severity.NOTE


ERRORS = [
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval"),
    *("__builtin__.eval", "builtins.getattr", "runpy.run_path", "test.support.script_helper.x"),
    *("this.s", "antigravity.fly", "commands.getoutput", "asyncore.loop", "distutils.core.setup"),
    *("torch.load", "torch.hub.load", "torch.utils.collect_env.run", "torch._dynamo.optimize"),
    *("numpy.load", "numpy.f2py.compile", "numpy.testing._private.utils.runstring"),
    *("importlib.import_module", "operator.attrgetter", "collections.namedtuple"),
    *("functools.reduce", "typing.get_type_hints", "pathlib.os", "datetime.sys"),
]


@pytest.mark.parametrize("dotted", ERRORS)
def test_functions_of_what_is_installed_are_errors_called_or_not(dotted):
    assert judge(used(dotted))[0] is Severity.ERROR


@pytest.mark.parametrize("module", sorted(sys.stdlib_module_names))
def test_no_module_of_the_standard_library_is_let_through(module):
    assert judge(Global(module, "something", 0))[0] is Severity.ERROR
    assert judge(Global(module, "Something", 0))[0] is Severity.ERROR


CALLED = [
    *("mypackage.utils.run", "torch.nn.functional.relu", "torch.FloatTensor"),
    *("torch.package.PackageImporter", "torch.storage.Something"),
]


@pytest.mark.parametrize("dotted", CALLED)
def test_calling_makes_an_error_of_a_note(dotted):
    assert judge(used(dotted))[0] is Severity.NOTE
    assert judge(used(dotted, called=True))[0] is Severity.ERROR


@pytest.mark.parametrize("dotted", ["mypackage.models.Net", "torch.nn.modules.linear.Linear"])
def test_calling_a_class_stays_a_note(dotted):
    assert judge(used(dotted, called=True, built=True))[0] is Severity.NOTE


ODD = {
    "dotted name": Global("pathlib", "Path.touch", 0),
    "dotted third-party name": Global("mypackage", "Net.method", 0),
    "Cyrillic module": Global("\u043es", "system", 0),
    "line break in a module": Global("os\nx", "System", 0),
    "computed name": Global("mypackage", "Net", 0, computed=True),
    "empty name": Global("mypackage", "", 0),
    "empty module": Global("", "Net", 0),
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD.keys())
def test_odd_names_are_errors(name):
    assert judge(name)[0] is Severity.ERROR


@pytest.mark.parametrize(
    ("largest", "wanted"), [(2**26, Severity.NOTE), (2**26 + 1, Severity.ERROR)]
)
def test_allocating_more_than_64_mib_is_an_error(largest, wanted):
    assert judge(used("builtins.bytearray", called=True, largest=largest))[0] is wanted


@pytest.mark.parametrize("dotted", ["torch.jit._pickle.build_intlist", "torch.Size"])
def test_numbers_that_are_only_kept_are_no_allocation(dotted):
    severity = judge(used(dotted, called=True, largest=8000 * 16000))[0]
    assert severity is None or severity is Severity.NOTE
    assert judge(used(dotted, called=True, largest=8000 * 16000)) == judge(
        used(dotted, called=True)
    )


def test_expanding_a_call_is_an_error():
    data = b"cbuiltins\nlist\n(cbuiltins\nrange\n(L999999999999L\ntRtR."
    names = {g.dotted: judge(g)[0] for g in unpickle(data, "x").globals}
    assert names == {"builtins.list": Severity.ERROR, "builtins.range": Severity.ERROR}


def test_notes_are_told_once_for_all():
    (finding,) = findings_about([used(f"package.models.Net{i}") for i in range(9)], [], "f")
    assert finding.severity is Severity.NOTE
    assert "and 5 more" in finding.message
    assert not finding.unsafe


def test_errors_say_where_and_are_unsafe():
    (finding,) = findings_about([Global("os", "system", 37, called=True)], [], "m.pt:a/data.pkl")
    assert (finding.code, finding.where, finding.unsafe) == ("CK002", "m.pt:a/data.pkl+37", True)
    assert finding.measured["globals"] == ["os.system"]


def test_many_errors_are_bounded():
    names = [Global("os", f"f{i}", i) for i in range(1000)]
    found = findings_about(names, [], "f")
    assert len(found) < 50
    assert found[-1].message == "980 more findings of this kind"


def test_code_behind_many_harmless_pickles_is_found():
    data = pickle.dumps(1) * 500 + b"cos\nsystem\n(S'x'\ntR."
    (finding,) = scan_pickles(data, "f", base=100)
    assert (finding.severity, finding.where) == (Severity.ERROR, f"f+{100 + len(data) - 20}")


def test_junk_before_a_pickle_does_not_hide_it():
    data = pickle.dumps(1, 2) + b"\xff\0junk" + b"\x80\x02cos\nsystem\n."
    assert [f.measured["globals"] for f in scan_pickles(data, "f")] == [["os.system"]]


def test_pickles_without_end_are_an_error():
    found = scan_pickles(b"N." * 10_001, "f")
    assert [(f.code, f.unsafe) for f in found] == [("CK005", True)]


def test_no_name_is_on_two_lists():
    assert not set(SILENT) & set(NOTED)
