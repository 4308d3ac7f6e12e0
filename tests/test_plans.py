"""Plans as files: to the bit and back; whatever was edited by hand is refused with what and where."""

import base64
import contextlib
import itertools
import json
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.dtypes import DTYPES
from ckptdoctor.edits import (
    CLASSES,
    Edit,
    NumberEdit,
    Refusal,
    Removal,
    RepairPlan,
    Restamp,
    Trim,
)
from ckptdoctor.errors import InternalError, ReadError, UsageError
from ckptdoctor.outcome import Before
from ckptdoctor.plan_reading import plan_from_json
from ckptdoctor.plans import (
    MAX_PLAN_BYTES,
    SMALL_EDIT,
    check_made_for,
    dtype_name,
    encoded,
    number_fields,
    plan_pieces,
    plan_to_json,
    read_plan,
    runs_of,
)

SHA = "0123456789abcdef" * 4
COMMON = {"remedy": "bn-reset", "kind": "destructive", "cures": ("BN001",), "title": "variance 1"}


def edit(indices=(0, 1, 5), values=(1, 2, 3), dtype=np.float32, tensor="bn.running_var"):
    where = None if indices is None else np.array(indices, np.int64)
    return Edit(tensor=tensor, indices=where, values=np.array(values, dtype), **COMMON)


def plan_of(*changes, **fields):
    return RepairPlan(changes=changes, **fields)


def to_json(plan, **fields):
    return plan_to_json(plan, "m.pt", "torch-zip", **fields)


def again(plan):
    return plan_from_json(to_json(plan), "plan.json")


def same_changes(one, other):
    """Whether two changes are equal, values by their bits."""
    if not isinstance(one, Edit):
        return repr(one) == repr(other)  # NaN is not equal to itself
    mine, theirs = one.after(), other.after()
    return (
        (one.tensor, one.remedy, one.kind, one.cures, one.title)
        == (other.tensor, other.remedy, other.kind, other.cures, other.title)
        and (one.indices is None) == (other.indices is None)
        and (one.indices is None or one.indices.tolist() == other.indices.tolist())
        and (mine.dtype, mine.tobytes()) == (theirs.dtype, theirs.tobytes())
    )


# --- there and back -------------------------------------------------------------------------------

TEXTS = st.text(max_size=12)
CODES = st.lists(st.sampled_from(["BN001", "CK001", "x"]), max_size=3).map(tuple)
SAYS = {"remedy": TEXTS, "kind": st.sampled_from(CLASSES), "cures": CODES, "title": TEXTS}
NUMBERS = st.integers() | st.floats()
STORED = sorted({row.stored for row in DTYPES.values()} | {"f2,f2"})


@st.composite
def edits(draw, tensor):
    stored = draw(st.sampled_from(STORED))
    dtype = next(row.numpy for row in DTYPES.values() if row.stored == stored)
    indices = draw(st.none() | st.lists(st.integers(0, 40), unique=True, max_size=12).map(sorted))
    size = draw(st.integers(0, 9)) if indices is None else len(indices)
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if stored == "bool":
        raw = bytes(byte & 1 for byte in raw)
    where = None if indices is None else np.array(indices, np.int64)
    says = {name: draw(values) for name, values in SAYS.items()}
    return Edit(tensor=tensor, indices=where, values=np.frombuffer(raw, dtype), **says)


@st.composite
def plans(draw):
    changes = [draw(edits(f"{n}{draw(TEXTS)}")) for n in range(draw(st.integers(0, 3)))]
    changes += draw(
        st.lists(
            st.builds(NumberEdit, name=TEXTS, before=NUMBERS, value=NUMBERS, **SAYS)
            | st.builds(Removal, names=st.lists(TEXTS, min_size=1).map(tuple), **SAYS)
            | st.builds(Trim, size=st.integers(0, 2**63 - 1), **SAYS)
            | st.builds(Restamp, where=TEXTS, **SAYS),
            max_size=3,
            unique_by=lambda change: getattr(change, "name", None) or id(change),
        )
    )
    refusals = st.builds(Refusal, target=TEXTS, reason=TEXTS, remedy=TEXTS, codes=CODES, hint=TEXTS)
    names = [change.name for change in changes if isinstance(change, NumberEdit)]
    if len(names) != len(set(names)):
        changes = [change for change in changes if not isinstance(change, NumberEdit)]
    return RepairPlan(
        changes=tuple(changes),
        refusals=tuple(draw(st.lists(refusals, max_size=2))),
        warnings=tuple(draw(st.lists(TEXTS, max_size=2))),
        explicit=draw(st.booleans()),
        made_for=draw(st.sampled_from([{}, {"size": 0, "sha256": SHA}])),
    )


class TestRoundTrip:
    @settings(max_examples=100, deadline=None)
    @given(plan=plans())
    def test_plan_comes_back_as_it_was(self, plan):
        back = again(plan)
        assert len(back.changes) == len(plan.changes)
        assert all(map(same_changes, plan.changes, back.changes))
        assert (back.refusals, back.warnings) == (plan.refusals, plan.warnings)
        assert (back.explicit, dict(back.made_for)) == (plan.explicit, dict(plan.made_for))

    @settings(max_examples=100, deadline=None)
    @given(plan=plans())
    def test_writing_it_again_gives_the_same_text(self, plan):
        assert to_json(again(plan)) == to_json(plan)

    @settings(max_examples=60, deadline=None)
    @given(indices=st.lists(st.integers(0, 2**62), unique=True).map(sorted))
    def test_runs_are_the_indices(self, indices):
        runs = runs_of(np.array(indices, np.int64))
        assert [i for start, count in runs for i in range(start, start + count)] == indices
        assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(runs))

    @pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i8", ">f2", "<c8"])
    def test_values_are_little_endian_whatever_their_order(self, dtype):
        change = edit(None, [1, 2], dtype)
        raw = base64.b64decode(json.loads(to_json(plan_of(change)))["changes"][0]["values"])
        assert raw == np.array([1, 2], "<" + dtype[1:]).tobytes()

    def test_machine_of_the_other_order_writes_and_reads_the_same(self, monkeypatch):
        text = to_json(plan_of(edit()))
        monkeypatch.setattr("sys.byteorder", "big")
        swapped = edit(values=np.array([1, 2, 3], np.float32).byteswap())
        assert to_json(plan_of(swapped)) == text
        read = plan_from_json(text, "p").changes[0].after()
        assert read.tobytes() == swapped.after().tobytes()

    @pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0xFFC12345, 0x80000000])
    def test_bits_of_a_nan_survive(self, bits):
        values = np.array([bits], np.uint32).view(np.float32)
        back = again(plan_of(edit(None, values))).changes[0]
        assert back.after().view(np.uint32).tolist() == [bits]

    def test_values_that_are_drawn_are_drawn_once(self):
        drawn = []

        def draw():
            drawn.append(1)
            return np.full((2, 2), 7, np.float16)

        change = Edit(tensor="w", indices=None, values=draw, **COMMON)
        assert again(plan_of(change)).changes[0].after().tolist() == [7, 7, 7, 7]
        assert drawn == [1]

    def test_half_characters_in_names_survive(self):
        assert again(plan_of(edit(tensor="a\udcff.b"))).changes[0].tensor == "a\udcff.b"

    @pytest.mark.parametrize(
        "value",
        [10**5000, -(10**400), 2**63, 2**63 - 1, True, np.float32(0.5), np.int16(-3), 5e-324],
        ids=["endless", "negative", "large", "int64", "flag", "float32", "int16", "tiny"],
    )
    def test_numbers_of_any_size_survive(self, value):
        back = again(plan_of(NumberEdit(name="lr", before=value, value=value, **COMMON)))
        assert back.changes[0].before == back.changes[0].value == value

    def test_sign_of_zero_survives(self):
        back = again(plan_of(NumberEdit(name="lr", before=0.0, value=-0.0, **COMMON))).changes[0]
        assert (str(back.before), str(back.value)) == ("0.0", "-0.0")

    def test_integer_stays_an_integer(self):
        change = NumberEdit(name="lr", before=1, value=1.0, **COMMON)
        back = again(plan_of(change)).changes[0]
        assert (type(back.before), type(back.value)) == (int, float)

    @pytest.mark.parametrize(
        ("value", "told"),
        [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (np.float64("nan"), "nan"),
         (2**63, "0x8000000000000000"), (2**63 - 1, 2**63 - 1), (1 - 2**63, 1 - 2**63), (True, 1)],
        ids=str,
    )  # fmt: skip
    def test_number_is_written_as_json_holds_it(self, value, told):
        assert number_fields(value) == told
        assert type(number_fields(value)) is type(told)

    def test_pieces_hold_one_change_each(self):
        pieces = list(plan_pieces(plan_of(edit(), edit(tensor="b")), "m.pt", "npz"))
        assert [piece.count('"type": "elements"') for piece in pieces] == [0, 1, 1, 0]

    def test_document_says_what_it_is_and_for_which_file(self):
        plan = plan_of(made_for={"size": 5, "sha256": SHA}, explicit=True)
        document = json.loads(to_json(plan))
        assert document["tool"]["name"] == "ckptdoctor"
        del document["tool"]
        assert document == {
            "schema": 1, "kind": "repair-plan", "file": "m.pt", "format": "torch-zip",
            "made_for": {"size": 5, "sha256": SHA}, "explicit": True, "changes": [],
            "refusals": [], "warnings": [],
        }  # fmt: skip

    def test_small_edits_show_what_stands_there(self):
        old = {0: np.zeros(3, np.float32)}
        shows = Before(count=3, total=9, was="3 NaN", becomes="1..3", aliases=("t",))
        text = to_json(plan_of(edit(), edit(tensor="b")), old=old, details={0: shows})
        shown, bare = json.loads(text)["changes"]
        assert base64.b64decode(shown["before"]) == bytes(12)
        assert shown["shows"] == {
            "count": 3, "total": 9, "was": "3 NaN", "becomes": "1..3", "aliases": ["t"],
        }  # fmt: skip
        assert not {"before", "shows"} & set(bare)
        assert plan_from_json(text, "p").changes[0].indices.tolist() == [0, 1, 5]

    def test_large_edits_do_not(self):
        for size, shown in ((SMALL_EDIT // 4, True), (SMALL_EDIT // 4 + 1, False)):
            values = np.zeros(size, np.float32)
            text = to_json(plan_of(edit(None, values)), old={0: values})
            assert ("before" in json.loads(text)["changes"][0]) == shown
        assert SMALL_EDIT == 4096

    def test_type_that_no_tensor_has_is_a_fault_of_the_remedy(self):
        with pytest.raises(InternalError, match="unknown type"):
            to_json(plan_of(edit(None, ["x"], "U1")))

    def test_types_are_named_as_the_table_names_them(self):
        kinds = [ml_dtypes.bfloat16, "f2,f2", "bool", ml_dtypes.float8_e5m2, ">f8"]
        assert [dtype_name(np.dtype(kind)) for kind in kinds] == [
            "bfloat16", "complex32", "bool", "float8_e5m2", "float64",
        ]  # fmt: skip
        with pytest.raises(InternalError):
            dtype_name(np.dtype("f4,f4"))

    def test_values_are_flat_whatever_their_shape(self):
        square = np.arange(4, dtype=np.int32).reshape(2, 2).T
        assert base64.b64decode(encoded(square)) == np.int32([0, 2, 1, 3]).tobytes()


# --- what is refused ------------------------------------------------------------------------------


def document():
    number = NumberEdit(name="lr", before=np.nan, value=0.5, **COMMON)
    removal = Removal(names=("optimizer",), **COMMON)
    trim, restamp = Trim(size=9, **COMMON), Restamp(where="m.pt:d/0", **COMMON)
    plan = RepairPlan(
        changes=(edit(), number, removal, trim, restamp),
        refusals=(Refusal(target="w", reason="lost", codes=("NF001",)),),
        warnings=("it costs",),
        made_for={"size": 5, "sha256": SHA},
    )
    shows = Before(count=3, total=9, was="3 NaN", becomes="1", aliases=())
    return json.loads(to_json(plan, details={0: shows}, old={0: np.zeros(3, np.float32)}))


def refused(text, where="plan.json"):
    with pytest.raises(UsageError) as caught:
        plan_from_json(text, where)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def changed(path, value):
    """Document with one value replaced; ``path`` as messages name it."""
    found = told = document()
    *above, last = [int(p) if p.isdecimal() else p for p in re.findall(r"\w+", path)]
    for part in above:
        found = found[part]
    found[last] = value
    return json.dumps(told)


class Gone:
    """Value that is no value."""


BAD_VALUES = [
    ("schema", "1", "expected a whole number, found '1'"),
    ("schema", True, "expected a whole number, found True"),
    ("schema", 0, "expected schema 1, found 0"),
    ("kind", "repair-receipt", "expected a repair plan, found no 'repair-plan'"),
    ("tool", [], "expected an object, found a list of 0"),
    ("file", None, "expected a text, found None"),
    ("explicit", 1, "expected true or false, found 1"),
    ("changes", {}, "expected a list, found an object"),
    ("warnings", ["a", 1], "expected a list of texts, found a list of 2"),
    ("warnings", "a", "expected a list of texts, found 'a'"),
    ("made_for.size", -1, "expected a whole number from 0 on, found -1"),
    ("made_for.size", 2**63, "found a larger number"),
    ("made_for.size", 5.0, "found 5.0"),
    ("made_for.sha256", SHA[1:], "expected 64 hexadecimal digits"),
    ("made_for.sha256", SHA.upper(), "expected 64 hexadecimal digits"),
    ("refusals[0]", 5, "expected an object, found 5"),
    ("refusals[0].codes", [[]], "expected a list of texts"),
    ("changes[0]", "x", "expected an object, found 'x'"),
    ("changes[0].type", "elemants", "expected one of elements, number, removal, trim, checksum"),
    ("changes[0].type", ["elements"], "found a list of 1"),
    ("changes[0].class", "harmless", "expected one of lossless, statistical, destructive"),
    ("changes[0].cures", "BN001", "expected a list of texts"),
    ("changes[0].tensor", 5, "expected a text, found 5"),
    ("changes[0].dtype", "float23", "expected a type of elements, found 'float23'"),
    ("changes[0].dtype", "quint4x2", "expected a type of elements"),
    ("changes[0].dtype", "qint8", "expected a type of elements"),
    ("changes[0].dtype", "float64", "expected 24 bytes (3 float64), found 12"),
    ("changes[0].count", 4, "expected 16 bytes (4 float32), found 12"),
    ("changes[0].count", 10**30, "found a larger number"),
    ("changes[0].values", "AAAA", "expected 12 bytes (3 float32), found 3"),
    ("changes[0].values", "AAA", "expected base64"),
    ("changes[0].values", "A*AA", "expected base64"),
    ("changes[0].values", "é" * 16, "expected base64"),
    ("changes[0].before", "AAAA", "expected 12 bytes"),
    ("changes[0].shows", {"was": "x"}, "the key 'count' is missing"),
    ("changes[0].shows.total", -1, "expected a whole number from 0 on"),
    ("changes[0].indices", "all", "expected a list or null, found 'all'"),
    ("changes[0].indices", [], "expected 3 indices, found 0"),
    ("changes[0].indices", [[0, 4]], "expected 3 indices, found 4"),
    ("changes[0].indices", [[0, 10**15]], "expected 3 indices, found 1,000,000,000,000,000"),
    ("changes[0].indices", [[0, 1, 2]], "expected a pair of whole numbers, found a list of 3"),
    ("changes[0].indices", [[0, True]], "expected a pair of whole numbers"),
    ("changes[0].indices", [[0, 3.0]], "expected a pair of whole numbers"),
    ("changes[0].indices", [3], "expected a pair of whole numbers, found 3"),
    ("changes[0].indices", [[-1, 3]], "expected a start of 0 or more, for indices ascend, found -1"),
    ("changes[0].indices", [[5, 2], [6, 1]], "expected a start of 7 or more"),
    ("changes[0].indices", [[5, 2], [0, 1]], "expected a start of 7 or more"),
    ("changes[0].indices", [[0, 3], [9, 0]], "expected a count from 1 to the largest index, found 0"),
    ("changes[0].indices", [[0, 4], [9, -1]], "expected a count from 1"),
    ("changes[0].indices", [[2**63 - 3, 3]], "expected a count from 1 to the largest index, found 3"),
    ("changes[1].value", "0.5", 'expected a number, "nan", "inf" or "-inf", found \'0.5\''),
    ("changes[1].value", "0xg", "expected a number"),
    ("changes[1].value", None, "expected a number"),
    ("changes[1].value", True, "expected a number"),
    ("changes[1].before", "NaN", "expected a number"),
    ("changes[2].names", [], "expected at least one name, found none"),
    ("changes[2].names", [1], "expected a list of texts"),
    ("changes[3].size", -5, "expected a whole number from 0 on"),
    ("changes[4].where", {}, "expected a text, found an object"),
]  # fmt: skip

PATHS = [
    "schema", "tool", "file", "format", "made_for", "explicit", "changes", "refusals", "warnings",
    "made_for.size", "made_for.sha256", "refusals[0].target", "refusals[0].hint",
    "changes[0].remedy", "changes[0].class", "changes[0].cures", "changes[0].title",
    "changes[0].tensor", "changes[0].indices", "changes[0].dtype", "changes[0].count",
    "changes[0].values", "changes[1].name", "changes[1].before", "changes[1].value",
    "changes[2].names", "changes[3].size", "changes[4].where",
]  # fmt: skip


class TestStrictness:
    @pytest.mark.parametrize(("path", "value", "told"), BAD_VALUES)
    def test_wrong_value_is_refused_by_place(self, path, value, told):
        message = refused(changed(path, value))
        assert told in message
        parents = {"kind": "plan.json: ", "changes[0].shows": "plan.json:changes[0].shows"}
        expected = parents.get(path, f"plan.json:{path}")
        if "bytes (" in told:  # the values are what does not fit
            expected = "plan.json:changes[0]."
        assert message.startswith(expected)

    @pytest.mark.parametrize("path", PATHS)
    def test_missing_key_is_refused(self, path):
        above, dot, last = path.rpartition(".")
        told = document()
        found = told
        for part in re.findall(r"\w+", above):
            found = found[int(part) if part.isdecimal() else part]
        del found[last]
        where = f"plan.json:{above}" if dot else "plan.json"
        assert refused(json.dumps(told)) == f"{where}: the key {last!r} is missing"

    @pytest.mark.parametrize("path", ["x", "made_for.x", "refusals[0].x", "changes[0].shows.x",
                                      *(f"changes[{n}].x" for n in range(5))])  # fmt: skip
    def test_unknown_key_is_refused(self, path):
        assert "unknown key 'x'; known are " in refused(changed(path, 5))

    @pytest.mark.parametrize("path", ["changes[1].shows", "changes[2].before", "changes[3].values"])
    def test_key_of_another_kind_of_change_is_refused(self, path):
        assert "unknown key" in refused(changed(path, "x"))

    def test_newer_plan_says_what_to_do(self):
        message = refused(changed("schema", 2))
        assert message.startswith(
            "plan.json: expected a plan of schema 1, found 2; update ckptdoct"
        )

    def test_boolean_bytes_must_be_boolean(self):
        text = to_json(plan_of(edit(None, [True, False], bool)))
        assert plan_from_json(text, "p").changes[0].after().tolist() == [True, False]
        for raw, good in (
            (b"\1\0", True),
            (b"\2\0", False),
            (b"\0\xff", False),
            (b"\1\2\0", False),
        ):
            told = json.loads(text)
            told["changes"][0] |= {"values": base64.b64encode(raw).decode(), "count": len(raw)}
            if good:
                plan_from_json(json.dumps(told), "p")
            else:
                assert "expected bytes of 0 or 1 for bool" in refused(json.dumps(told))

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "found no JSON"),
            ("{", "found no JSON: Expecting"),
            ("[]", "found no 'repair-plan'"),
            ("null", "found no 'repair-plan'"),
            ("{}", "found no 'repair-plan'"),
            ('{"reports": []}', "found no 'repair-plan'"),
            ('{"kind": "repair-plan", "kind": "repair-plan"}', "the key 'kind' twice in one object"),
            ('{"a": NaN}', "a bare NaN, which is no JSON"),
            ('{"a": -Infinity}', "a bare -Infinity"),
            ("[" * 200_000, "nested too deeply"),
            ("9" * 5000, "Exceeds the limit"),
            ("\ufeff{}", "found no JSON"),
        ],
        ids=["nothing", "half", "list", "null", "empty", "inspect", "twice", "nan", "infinity",
             "deep", "digits", "bom"],
    )  # fmt: skip
    def test_what_is_no_plan_is_refused(self, text, told):
        assert told in refused(text)

    def test_damaged_json_is_located(self):
        assert refused('{"a": 1,\n "b" 2}').startswith("plan.json+14: ")
        assert "in line 2" in refused('{"a": 1,\n "b" 2}')

    def test_number_beyond_the_floats_is_refused(self):
        text = changed("changes[1].value", "HERE").replace('"HERE"', "1e999")
        assert 'expected a number, "nan"' in refused(text)

    def test_long_values_are_cut_in_messages(self):
        assert len(refused(changed("changes[0].class", "x" * 10_000))) < 200
        assert len(refused(changed("y" * 10_000, 1))) < 300

    @pytest.mark.parametrize(
        ("first", "second", "fine"),
        [
            ((0, 1), (2, 3), True),
            ((0, 1), (1, 2), False),
            ((5,), (5,), False),
            (None, (0,), False),
            ((0,), None, False),
            (None, None, False),
        ],
        ids=["apart", "overlap", "same", "all-one", "one-all", "all-all"],
    )
    def test_element_is_changed_once(self, first, second, fine):
        values = [np.zeros(4 if where is None else len(where)) for where in (first, second)]
        plan = plan_of(edit(first, values[0]), edit(second, values[1]))
        other = plan_of(edit(first, values[0]), edit(second, values[1], tensor="other"))
        assert len(again(other).changes) == 2
        if fine:
            assert len(again(plan).changes) == 2
        else:
            message = refused(to_json(plan))
            assert message.startswith(
                "plan.json:changes[1]: the tensor 'bn.running_var' is changed"
            )

    def test_third_change_is_compared_with_the_first(self):
        plan = plan_of(*(edit((at,), (1,)) for at in (0, 1, 0)))
        assert refused(to_json(plan)).startswith("plan.json:changes[2]: ")

    def test_number_is_changed_once(self):
        numbers = [NumberEdit(name=n, before=1, value=2, **COMMON) for n in ("lr", "eps", "lr")]
        assert "the number 'lr' is changed twice" in refused(to_json(plan_of(*numbers)))
        assert len(again(plan_of(*numbers[:2])).changes) == 2
        # a tensor and a number may share a name
        assert len(again(plan_of(numbers[0], edit(tensor="lr"))).changes) == 2

    def test_runs_that_touch_are_read(self):
        told = json.loads(changed("changes[0].indices", [[0, 1], [1, 2]]))
        assert plan_from_json(json.dumps(told), "p").changes[0].indices.tolist() == [0, 1, 2]

    def test_largest_size_is_read(self):
        plan = plan_of(made_for={"size": 2**63 - 1, "sha256": SHA})
        read = plan_from_json(plan_to_json(plan, "m.pt", "torch-zip"), "plan.json")
        assert read.made_for["size"] == 2**63 - 1

    def test_largest_index_is_read(self):
        text = changed("changes[0].indices", [[2**63 - 4, 3]])
        assert plan_from_json(text, "p").changes[0].indices.tolist()[-1] == 2**63 - 2

    def test_indices_are_of_64_bits(self):
        assert again(plan_of(edit())).changes[0].indices.dtype == np.int64
        assert again(plan_of(edit((), ()))).changes[0].indices.dtype == np.int64

    @settings(max_examples=150, deadline=None)
    @given(
        path=st.sampled_from([*PATHS, "changes[0]", "changes[0].shows", "changes[0].indices[0]"]),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
            max_leaves=4,
        ),
    )
    def test_any_edit_by_hand_is_a_plan_or_a_usage_error(self, path, value):
        with contextlib.suppress(UsageError):
            plan_from_json(changed(path, value), "plan.json")

    @settings(max_examples=100, deadline=None)
    @given(at=st.integers(0, 2000), byte=st.integers(0, 127))
    def test_any_flipped_character_is_a_plan_or_a_usage_error(self, at, byte):
        text = json.dumps(document())
        at %= len(text)
        with contextlib.suppress(UsageError):
            plan_from_json(text[:at] + chr(byte) + text[at + 1 :], "plan.json")


# --- files and identities -------------------------------------------------------------------------


class TestIdentity:
    PLAN = plan_of(made_for={"size": 5, "sha256": SHA})

    def test_plan_fits_the_file_it_was_made_for(self):
        check_made_for(self.PLAN, 5, SHA)

    @pytest.mark.parametrize(("size", "sha256"), [(6, SHA), (5, "f" * 64)], ids=["size", "content"])
    def test_plan_for_another_file_names_both(self, size, sha256):
        with pytest.raises(UsageError) as caught:
            check_made_for(self.PLAN, size, sha256, "plan.json")
        assert str(caught.value) == (
            f"plan.json: the plan was made for a file of 5 bytes with SHA-256 {SHA}, found {size} "
            f"bytes with SHA-256 {sha256}; make a new plan for this file with --write-plan"
        )

    def test_plan_for_no_file_fits_none(self):
        with pytest.raises(UsageError, match="does not say which file"):
            check_made_for(plan_of(), 5, SHA)


class TestReading:
    def test_plan_is_read_from_its_file(self, tmp_path):
        file = tmp_path / "plan.json"
        file.write_text(to_json(plan_of(edit())), encoding="utf-8")
        assert read_plan(str(file)).changes[0].tensor == "bn.running_var"

    def test_messages_name_the_file(self, tmp_path):
        file = tmp_path / "plan.json"
        file.write_text("{}")
        with pytest.raises(UsageError, match=re.escape(str(file))):
            read_plan(str(file))

    @pytest.mark.parametrize("name", ["", "missing.json", ".", "a\0b", "x" * 5000],
                             ids=["empty", "missing", "folder", "nul", "long"])  # fmt: skip
    def test_what_is_no_file_is_refused(self, tmp_path, name):
        with pytest.raises((UsageError, ReadError)):
            read_plan(str(tmp_path / name) if name else "")

    def test_bytes_that_are_no_text_are_located(self, tmp_path):
        file = tmp_path / "plan.json"
        file.write_bytes(b"{}  \xff")
        with pytest.raises(UsageError, match=r"\+4: expected .* in UTF-8, found the byte 0xff"):
            read_plan(str(file))

    def test_endless_file_is_refused_unread(self, tmp_path):
        file = tmp_path / "plan.json"
        with file.open("wb") as stream:
            stream.truncate(MAX_PLAN_BYTES + 1)
        with pytest.raises(UsageError, match="at most 2,147,483,648 bytes, found 2,147,483,649"):
            read_plan(str(file))

    def test_largest_file_that_is_allowed_is_read(self, tmp_path, monkeypatch):
        file = tmp_path / "plan.json"
        text = plan_to_json(plan_of(), "m.pt", "torch-zip")
        file.write_text(text)
        monkeypatch.setattr("ckptdoctor.plans.MAX_PLAN_BYTES", len(text))
        assert read_plan(str(file)).changes == plan_of().changes

    def test_file_that_cannot_be_read_is_no_usage_error(self, tmp_path, monkeypatch):
        file = tmp_path / "plan.json"
        file.write_text("{}")

        def fail(_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("pathlib.Path.read_bytes", fail)
        with pytest.raises(ReadError, match="Input/output error"):
            read_plan(str(file))
