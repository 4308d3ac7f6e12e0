"""The pickle machine: every protocol as data, every malformation by name, nothing ever runs."""

import collections
import contextlib
import datetime
import os
import pickle
import pickletools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers import pickle_machine as machine
from ckptdoctor.containers.pickle import (
    Call,
    Global,
    PDict,
    Persistent,
    PickleError,
    PSet,
    unpickle,
)
from ckptdoctor.errors import BombError, FormatError, TruncatedError, UnsupportedError

PROTOCOLS = range(6)


def plain(value):
    """Python value of what the machine built, for values that pickles spell without names."""
    if isinstance(value, PDict):
        return {plain(k): plain(v) for k, v in value.pairs}
    if isinstance(value, PSet):
        return {plain(v) for v in value.elements}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return value


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(value=values)
@settings(max_examples=60)
def test_plain_values_are_what_pickle_makes_of_them(protocol, value):
    assert plain(unpickle(pickle.dumps(value, protocol), "x").value) == value


@pytest.mark.parametrize("protocol", range(3, 6))
def test_bytes_and_sets_of_newer_protocols(protocol):
    value = [b"\0\xff" * 200, {1, 2}, bytearray(b"ab")] if protocol == 5 else [b"\0\xff"]
    found = unpickle(pickle.dumps(value, protocol), "x").value
    assert plain(found) == [bytes(v) if isinstance(v, bytearray) else v for v in value]


def test_every_opcode_of_the_standard_library_has_a_handler():
    missing = [o.name for o in pickletools.opcodes if machine.DISPATCH[ord(o.code)] is None]
    assert missing == []


def test_a_call_is_recorded_and_never_made(monkeypatch):
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("it ran"))
    found = unpickle(b"cos\nsystem\n(S'true'\ntR.", "x")
    assert isinstance(found.value, Call)
    assert found.value.args == ("true",)
    (name,) = found.globals
    assert (name.dotted, name.called, name.offset) == ("os.system", True, 0)


class Thing:
    def __init__(self):
        self.attribute = 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_keeps_its_class_and_state(protocol):
    found = unpickle(pickle.dumps(Thing(), protocol), "x")
    assert found.value.state[-1].get("attribute") == 5
    assert f"{__name__}.Thing" in [g.dotted for g in found.globals]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_with_a_class_keep_their_items(protocol):
    value = collections.OrderedDict(a=1, b=2)
    assert unpickle(pickle.dumps(value, protocol), "x").value.pairs == [("a", 1), ("b", 2)]
    value = collections.deque([3, 4])
    held = unpickle(pickle.dumps(value, protocol), "x").value
    assert held.elements == [3, 4] or held.args == ([3, 4],) or [3, 4] in held.args


def test_a_datetime_is_an_opaque_call():
    found = unpickle(pickle.dumps(datetime.datetime(2020, 1, 1), 2), "x")
    assert found.value.callee.dotted == "datetime.datetime"


def test_shared_objects_stay_one_object():
    inner = [1]
    first, second = unpickle(pickle.dumps([inner, inner], 2), "x").value
    assert first is second


def test_a_list_inside_itself_is_read():
    loop = []
    loop.append(loop)
    found = unpickle(pickle.dumps(loop, 2), "x").value
    assert found[0] is found


def test_persistent_ids_are_kept_and_counted():
    found = unpickle(b"(lp0\nPabc\na(S'storage'\nI1\ntQa.", "x")
    assert [p.pid for p in found.persistents] == ["abc", ("storage", 1)]
    assert all(isinstance(p, Persistent) for p in found.value)


def test_several_pickles_in_a_row_end_where_they_end():
    data = pickle.dumps(1) + pickle.dumps("two")
    assert unpickle(data[unpickle(data, "x").end :], "x").value == "two"


def test_a_dictionary_key_is_never_hashed():
    bomb = b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"K\x01u."
    ((key, value),) = unpickle(bomb, "x").value.pairs
    assert value == 1
    assert isinstance(key, tuple)


def test_names_that_the_pickle_computes_are_marked():
    found = unpickle(b"\x80\x04cbuiltins\nstr\n)R\x8c\x06system\x93.", "x")
    assert [g.computed for g in found.globals] == [False, True]


def test_an_extension_code_is_a_computed_name():
    (name,) = unpickle(b"\x80\x02\x82\xf0.", "x").globals
    assert name.computed


def test_the_memo_is_followed_where_it_was_overwritten():
    data = b"\x80\x04\x8c\x04mathq\x05\x8c\x02osq\x05h\x05\x8c\x06system\x93."
    assert [g.dotted for g in unpickle(data, "x").globals] == ["os.system"]


@pytest.mark.parametrize("discard", [b"0", b"1"], ids=["POP", "POP_MARK"])
def test_a_discarded_call_is_recorded(discard):
    data = b"(cos\nsystem\n(S'x'\ntR" + discard + (b"K\x01." if discard == b"1" else b"1K\x01.")
    assert [g.called for g in unpickle(data, "x").globals] == [True]


def test_calling_what_a_call_returned_is_recorded():
    assert unpickle(b"cbuiltins\nfoo\n)R)R.", "x").computed == (17,)


def test_the_largest_integer_of_a_call_is_kept():
    (name,) = unpickle(b"cbuiltins\nbytearray\n(L68719476736L\ntR.", "x").globals
    assert name.largest == 2**36


MALFORMED = {
    "empty": b"",
    "no STOP": b"K\x01",
    "STOP alone": b".",
    "unknown opcode": b"\xff.",
    "stack underflow": b"a.",
    "TUPLE without MARK": b"t.",
    "memo entry never set": b"h\x00.",
    "negative BINSTRING": b"T\xff\xff\xff\xffabc.",
    "negative LONG4": b"\x8b\xff\xff\xff\xff.",
    "BINUNICODE of 4 GiB": b"X\xff\xff\xff\xffabc.",
    "BINBYTES8 of 2^62": b"\x8e" + (2**62).to_bytes(8, "little") + b"abc.",
    "BYTEARRAY8 of 1 TiB": b"\x96" + (2**40).to_bytes(8, "little") + b".",
    "FRAME beyond the file": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"K\x01.",
    "UTF-8 that is none": b"X\x02\0\0\0\xff\xfe.",
    "INT of letters": b"Iabc\n.",
    "INT of 10,000 digits": b"I" + b"9" * 10_000 + b"\n.",
    "FLOAT of letters": b"Fabc\n.",
    "line without end": b"I123",
    "line of a megabyte": b"I" + b"1" * 1_000_000 + b"\n.",
    "STRING without quotes": b"Sabc\n.",
    "dictionary with an odd number of items": b"(K\x01d.",
    "SETITEMS on a list": b"](K\x01K\x02u.",
    "APPEND to a number": b"K\x01K\x02a.",
    "out-of-band buffer": b"\x97.",
    "OBJ without a class": b"(o.",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_pickle_is_a_format_error_with_its_place(data):
    with pytest.raises(FormatError, match=r"x\+\d+: "):
        unpickle(data, "x")


def test_protocol_6_is_unsupported():
    with pytest.raises(PickleError, match="protocol 0 to 5, found 6") as raised:
        unpickle(b"\x80\x06.", "x")
    assert isinstance(raised.value.reason, UnsupportedError)


def test_an_error_keeps_the_names_seen_before():
    with pytest.raises(PickleError) as raised:
        unpickle(b"cos\nsystem\nh\x09.", "x")
    assert [g.dotted for g in raised.value.seen.globals] == ["os.system"]


def test_a_beginning_of_a_pickle_says_that_it_ends_early():
    data = pickle.dumps(list(range(1000)))
    with pytest.raises(PickleError) as raised:
        unpickle(data[:100], "x", total=len(data))
    assert isinstance(raised.value.reason, TruncatedError)


def test_the_budget_on_opcodes_holds(monkeypatch):
    monkeypatch.setattr(machine, "MAX_OPCODES", 100)
    with pytest.raises(PickleError) as raised:
        unpickle(b"N0" * 100 + b"N.", "x")
    assert isinstance(raised.value.reason, BombError)


def test_offsets_count_from_the_base():
    with pytest.raises(FormatError, match=r"x\+1003: "):
        unpickle(b"NNN\xff", "x", base=1000)
    assert unpickle(b"cos\nsystem\n.", "x", base=50).globals[0].offset == 50


@given(data=st.binary(max_size=60))
@settings(max_examples=200)
def test_random_bytes_are_a_value_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        unpickle(data, "x")


@given(value=values, at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=200)
def test_a_damaged_pickle_is_a_value_or_a_format_error(value, at, byte):
    data = bytearray(pickle.dumps([value, Global, "text"], 2))
    data[at % len(data)] = byte
    with contextlib.suppress(FormatError):
        unpickle(bytes(data), "x")
