"""Keys cut out of pickles: the rest is the same object, and where nothing is shared the same bytes."""

import collections
import io
import pickle
import pickletools
import random
import struct

import pytest
import torch_bytes as tb
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptdoctor.containers.pickle import Call, Persistent, unpickle
from ckptdoctor.errors import (
    CkptDoctorError,
    FormatError,
    InternalError,
    UnsupportedError,
    UsageError,
)
from ckptdoctor.write import pickle_removal
from ckptdoctor.write.pickle_removal import outermost_keys, without_keys
from ckptdoctor.write.pickle_same import same_without

PICKLERS = (pickle.Pickler, pickle._Pickler)
LOADERS = (pickle.loads, pickle._loads)  # the second is strict about frames


class Thing:
    """An object with attributes."""


def dumped(value, protocol=2, pickler=pickle.Pickler):
    pickler(file := io.BytesIO(), protocol).dump(value)
    return file.getvalue()


# Random trees.


def grown(rnd, pool, depth):
    """A random value; a quarter of them are one that was made before, the same object."""
    kind = rnd.random()
    if pool and kind < 0.25:
        return rnd.choice(pool)
    if not depth or kind < 0.5:
        texts = f"s{rnd.randrange(9)}", b"bytes", "x" * rnd.randrange(300)
        plain = (1, 2.5, True, None, 2**70, Thing(), collections.OrderedDict, float("nan"))
        made = rnd.choice([*texts, *plain])
    else:
        parts = [grown(rnd, pool, depth - 1) for _ in range(rnd.randrange(4))]
        named = {f"k{i}": part for i, part in enumerate(parts)}
        made = rnd.choice([list(parts), tuple(parts), named, collections.OrderedDict(named)])
        if rnd.random() < 0.1:
            made = Thing()
            made.__dict__.update(named)
        elif rnd.random() < 0.1:
            made = {f"s{rnd.randrange(9)}" for _ in parts}
        elif rnd.random() < 0.1:
            made = [*parts]
            made.append(made)
    if rnd.random() < 0.6:
        pool.append(made)
    return made


def assert_same_object(mine, other):
    """Equal, and what is one object there is one object here."""
    there, back, todo = {}, {}, [(mine, other)]
    while todo:
        a, b = todo.pop()
        assert type(a) is type(b)
        if isinstance(a, (list, dict, Thing, set)):
            met = id(a) in there
            assert there.setdefault(id(a), id(b)) == id(b)
            assert back.setdefault(id(b), id(a)) == id(a)
            if met:
                continue
        if isinstance(a, (list, tuple)):
            assert len(a) == len(b)
            todo += zip(a, b, strict=True)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            todo += zip(a.values(), b.values(), strict=True)
        elif isinstance(a, Thing):
            todo.append((vars(a), vars(b)))
        else:
            assert a == b or repr(a) == repr(b)


@given(st.integers(0, 2**32), st.integers(0, 5), st.sampled_from(PICKLERS))
@example(2064, 4, pickle._Pickler)
@settings(max_examples=150, deadline=None)
def test_the_rest_is_the_same_object_whatever_was_shared(seed, protocol, pickler):
    rnd, pool = random.Random(seed), []
    tree = {f"t{i}": grown(rnd, pool, 3) for i in range(rnd.randrange(1, 7))}
    if rnd.random() < 0.3:
        tree = collections.OrderedDict(tree)
    if rnd.random() < 0.2:
        tree["t0"] = [tree]
    keys = rnd.sample(list(tree), rnd.randrange(1, min(len(tree), 3) + 1))
    data = dumped(tree, protocol, pickler)
    cut = without_keys(data, keys).data
    for load in LOADERS:
        expected = load(data)
        for key in keys:
            del expected[key]
        assert_same_object(expected, load(cut))


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_pickles_give_a_named_error_or_a_pickle(seed, data):
    rnd = random.Random(seed)
    good = bytearray(dumped({"a": grown(rnd, [], 3), "optimizer": "x", "b": "x"}, rnd.randrange(6)))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        cut = without_keys(bytes(good), ["optimizer"])
    except CkptDoctorError:
        return
    assert "optimizer" not in outermost_keys(cut.data)


# What stays, byte for byte.


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("count", [1, 2, 3, 1000, 1001, 1002], ids="{} keys".format)
def test_keys_go_from_batches_of_any_size(protocol, pickler, count):
    tree = {f"key{i}": i for i in range(count)}
    for gone in ({"key0"}, {f"key{count - 1}"}, set(tree)):
        cut = without_keys(dumped(tree, protocol, pickler), sorted(gone)).data
        assert pickle._loads(cut) == {k: v for k, v in tree.items() if k not in gone}


def test_where_nothing_is_shared_the_other_bytes_are_the_same():
    tree = {"model": [1, 2], "optimizer": {"lr": 0.5}, "epoch": 3}
    data = dumped(tree)
    start, stop = data.index(b"X\x09\0\0\0optimizer"), data.index(b"X\x05\0\0\0epoch")
    assert without_keys(data, ["optimizer"]).data == data[:start] + data[stop:]


def test_what_follows_the_pickle_still_follows():
    data = dumped({"a": 1, "b": 2})
    assert without_keys(data + b"tail", ["a"]).data == without_keys(data, ["a"]).data + b"tail"


def test_a_batch_that_loses_all_its_keys_goes_with_its_mark():
    assert without_keys(b"}(X\1\0\0\0aK\1u(X\1\0\0\0bK\2u.", ["a"]).data == b"}(X\1\0\0\0bK\2u."


def test_a_dictionary_made_of_a_mark_keeps_it():
    assert without_keys(b"(X\1\0\0\0aK\1d.", ["a"]).data == b"(d."


def test_a_key_that_stands_twice_goes_twice():
    assert without_keys(b"}(X\1\0\0\0aK\1X\1\0\0\0aK\2X\1\0\0\0bK\3u.", ["a"]).data == (
        b"}(X\1\0\0\0bK\3u."
    )


@pytest.mark.parametrize("protocol", range(2, 6))
def test_strings_names_and_tuples_move_to_where_they_are_next_needed(protocol):
    betas = (0.9, 0.999)
    group = {"lr": 0.1, "betas": betas, "kind": collections.OrderedDict}
    tree = {"optimizer": group, "config": {"lr": 0.2, "betas": betas}, "all": [group["kind"], "lr"]}
    found = pickle.loads(without_keys(dumped(tree, protocol), ["optimizer"]).data)
    assert found == {
        "config": {"lr": 0.2, "betas": betas},
        "all": [collections.OrderedDict, "lr"],
    }


def test_what_moves_is_spelled_once():
    word = "a word that is needed three times"
    data = dumped({"optimizer": word, "b": [word, word]})
    cut = without_keys(data, ["optimizer"]).data
    assert cut.count(word.encode()) == 1
    assert pickle.loads(cut) == {"b": [word, word]}


def test_an_object_inside_one_that_moves_later_is_not_spelled_twice():
    inner, word = [1], "word"
    tree = {"optimizer": {"i": [word, inner]}, "a": inner, "b": word}
    tree["c"] = tree["optimizer"]["i"]
    found = pickle.loads(without_keys(dumped(tree), ["optimizer"]).data)
    assert found["c"] == [word, [1]]
    assert found["c"][1] is found["a"]


# Protocol 4 counts its memo and frames its bytes.


def test_memo_indices_of_protocol_4_count_anew():
    word = "w" * 20
    cut = without_keys(
        dumped({"optimizer": [[], "x"], "b": word, "c": word}, 4), ["optimizer"]
    ).data
    # dictionary 0, "b" 1, the word 2, "c" 3
    assert cut.endswith(b"\x8c\x01b\x94\x8c\x14" + word.encode() + b"\x94\x8c\x01c\x94h\x02u.")


@pytest.mark.parametrize(
    ("others", "spelled"),
    [(250, b"h\xfe"), (251, b"h\xff"), (252, b"j\0\1\0\0"), (300, b"j\x30\1\0\0")],
)
def test_an_index_that_outgrows_a_byte_is_spelled_with_four(others, spelled):
    word = "shared"
    tree = {"optimizer": [word], "many": [f"n{i}" for i in range(others)], "a": word, "b": word}
    cut = without_keys(dumped(tree, 4), ["optimizer"]).data
    assert cut.endswith(spelled + b"u.")  # dictionary, "many", list, others, "a", word
    for load in LOADERS:
        assert load(cut) == {"many": tree["many"], "a": word, "b": word}


def test_a_four_byte_index_stays_four_bytes():
    words = [f"n{i}" for i in range(300)]
    tree = {"optimizer": "gone", "many": words, "again": words[290:]}
    cut = without_keys(dumped(tree, 4), ["optimizer"]).data
    # dictionary 0, "many" 1, the list 2, the words from 3 on
    assert b"j" + struct.pack("<I", 293) in cut
    assert pickle.loads(cut)["again"] == words[290:]


@pytest.mark.parametrize("large", [10, 70_000, 200_000])
@pytest.mark.parametrize("key", ["first", "optimizer", "last"])
def test_frames_are_as_long_as_what_is_left_in_them(large, key):
    parts = {"first": [b"a" * 40_000, "t" * large], "optimizer": [b"b" * large, *range(30_000)]}
    tree = {**parts, "last": [list(range(40_000)), b"c" * large, "end"]}
    expected = {k: v for k, v in tree.items() if k != key}
    for load in LOADERS:
        assert load(without_keys(dumped(tree, 4), [key]).data) == expected


def test_frames_before_the_cut_are_as_they_were():
    tree = {"a": b"a" * 70_000, "b": ["t" * 70_000, *range(30_000)], "optimizer": 7}
    data = dumped(tree, 4)
    cut = without_keys(data, ["optimizer"]).data
    frames, left = (
        [arg for opcode, arg, _ in pickletools.genops(made) if opcode.name == "FRAME"]
        for made in (data, cut)
    )
    assert len(frames) > 2
    assert left == [*frames[:-1], frames[-1] - (len(data) - len(cut))]


def test_an_emptied_frame_is_left_whole():
    tree = {"a": list(range(20_000)), "optimizer": list(range(40_000)), "b": 1}
    cut = without_keys(dumped(tree, 4, pickle._Pickler), ["optimizer"]).data
    for load in LOADERS:
        assert load(cut) == {"a": tree["a"], "b": 1}


# Torch.


def checkpoint(**more):
    weight = tb.tensor(tb.storage("0"), (2, 3))
    moment = tb.tensor(tb.storage("1"), (2, 3))
    shared = tb.tensor(tb.storage("0"), (3,), (1,))
    state = {0: {"exp_avg": moment, "w": shared}}
    return tb.pickled({"model": {"w": weight}, "optimizer": {"state": state}, "epoch": 3, **more})


def test_storages_that_nothing_refers_to_any_more_are_named():
    cut = without_keys(checkpoint(), ["optimizer"])
    assert cut.released == ("1",)
    kept = [reference.pid[2] for reference in unpickle(cut.data, "x").persistents]
    assert kept == ["0"]
    assert without_keys(checkpoint(), ["epoch"]).released == ()
    assert without_keys(checkpoint(), ["model", "optimizer"]).released == ("0", "1")


def test_several_keys_go_at_once():
    data = checkpoint(optimizer_states=[], lr_schedulers=[])
    cut = without_keys(data, ["lr_schedulers", "optimizer", "optimizer_states"])
    assert outermost_keys(cut.data) == ("model", "epoch")


def test_an_ordered_dict_keeps_its_attributes():
    tree = collections.OrderedDict(optimizer=1, b=2)
    tree._metadata = {"version": 1}
    found = pickle.loads(without_keys(dumped(tree), ["optimizer"]).data)
    assert (found, found._metadata) == (collections.OrderedDict(b=2), {"version": 1})


def test_persistent_ids_that_are_no_storages_are_not_named():
    pids = (7, ("storage",), ("module", 1, "2"), ("storage", 1, 2.5), ("storage", 1, "k"))
    body = b"".join(tb.item(pid) + b"Q" for pid in pids)
    data = b"\x80\x02}(X\1\0\0\0a](" + body + b"eX\1\0\0\0bK\1u."
    assert without_keys(data, ["a"]).released == ("k",)


# Refusals.


def test_a_cut_that_fails_its_own_check_is_not_handed_out(monkeypatch):
    monkeypatch.setattr(pickle_removal, "same_without", lambda *_: False)
    with pytest.raises(InternalError, match="nothing is written"):
        without_keys(checkpoint(), ["optimizer"])


def test_a_key_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UsageError, match=r"no key 'optimiser' in .*; it has 'model', 'optimizer'"):
        without_keys(checkpoint(), ["optimiser"])


@pytest.mark.parametrize("value", [[1], None, Thing()], ids=["list", "nothing", "object"])
def test_what_is_no_dictionary_has_no_keys(value):
    assert outermost_keys(dumped(value)) == ()
    with pytest.raises(UsageError, match="it has none"):
        without_keys(dumped(value), ["optimizer"])


A, B, C = b"X\1\0\0\0a", b"X\1\0\0\0b", b"X\1\0\0\0c"
UNSAFE = {
    "a list outside grows by it": (
        b"}q\0(" + C + b"]q\1" + A + b"h\1K\1a" + B + b"K\2u.",
        "it changes objects that stand outside",
    ),
    "an index that is put twice": (
        b"}(" + A + b"q\1K\1" + B + b"q\1K\2u.",
        "memo is written in an unusual way",
    ),
    "both ways to fill the memo": (
        b"}(" + A + b"q\1K\1" + B + b"\x94K\2u.",
        "memo is written in an unusual way",
    ),
    "a copy of the stack's top": (
        b"}(" + A + b"](NK\0002eq\1" + B + b"h\1u.",
        "spelled in an unusual way",
    ),
    "a tuple that holds itself": (
        b"}(" + A + b"]q\1h\1\x85q\2a" + B + b"h\2u.",
        "holds itself",
    ),
    "pairs set from further up": (
        b"}q\0" + A + b"(h\0" + C + b"K\5s1K\1s.",
        "not written as torch does",
    ),
    "pairs set one place up": (b"N}" + A + b"K\1s.", "not written as torch does"),
}


@pytest.mark.parametrize(("data", "reason"), UNSAFE.values(), ids=UNSAFE)
def test_what_cannot_be_cut_safely_is_refused(data, reason):
    with pytest.raises(UnsupportedError, match=reason):
        without_keys(data, ["a"])


def test_pairs_that_the_constructor_gets_are_not_there():
    data = b"ccollections\nOrderedDict\n](](" + A + b"K\1ee\x85R" + B + b"K\2s."
    with pytest.raises(UsageError, match="it has 'b'"):
        without_keys(data, ["a"])


def test_what_is_no_pickle_is_refused():
    with pytest.raises(FormatError):
        without_keys(b"no pickle", ["a"])


# The comparison that vouches for the rest.

DIFFERENT = {
    "another number": ({"a": 1}, {"a": 2}),
    "another kind of number": ({"a": 1}, {"a": 1.0}),
    "another sign of zero": ({"a": 0.0}, {"a": -0.0}),
    "a shorter list": ({"a": [1, 2]}, {"a": [1]}),
    "another key": ({"a": 1}, {"b": 1}),
    "another order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "another name": ({"a": collections.OrderedDict}, {"a": collections.Counter}),
    "another set": ({"a": {1}}, {"a": {2}}),
    "another attribute": (vars(Thing()), {"x": 1}),
}


@pytest.mark.parametrize(("mine", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_differences_are_seen(mine, other):
    one, two = (unpickle(dumped(value, 4), "x").value for value in (mine, other))
    assert not same_without(one, two, ())
    assert same_without(one, one, ())


def test_what_a_call_is_given_is_told_from_what_it_holds():
    made = [Call(1, 2, **{part: [3, 4]}) for part in ("state", "elements")]
    made.append(Call(1, 2, pairs=[(3, 4)]))
    for i, one in enumerate(made):
        for j, two in enumerate(made):
            assert same_without(one, two, ()) == (i == j)


def test_one_list_twice_is_not_two_lists():
    held = [1]
    twice, two = (unpickle(dumped(v), "x").value for v in ([held, held], [[1], [1]]))
    assert not same_without(twice, two, ())
    assert not same_without(two, twice, ())


def test_references_to_the_outside_are_compared():
    assert not same_without(Persistent(("storage", "0")), Persistent(("storage", "1")), ())
    assert same_without(Persistent(("storage", "0")), Persistent(("storage", "0")), ())


def test_only_keys_of_the_outermost_dictionary_are_taken_for_absent():
    old, new = ({"a": 1, "b": {"a": 1}}, {"b": {}})
    one, two = (unpickle(dumped(value), "x").value for value in (old, new))
    assert not same_without(one, two, ["a"])


# The real thing.


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_loads_what_is_left(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    tree = {"optimizer_states": [optimizer.state_dict()], "state_dict": model.state_dict()}
    tree |= {"epoch": 3, "hyper_parameters": {"lr": 0.1, "weight_decay": 0.0}}
    path = tmp_path / "m.ckpt"
    torch.save(tree, path, pickle_protocol=protocol)
    reader = torch._C.PyTorchFileReader(str(path))
    cut = without_keys(reader.get_record("data.pkl"), ["optimizer_states"])
    kept = set(reader.get_all_records())
    writer = torch._C.PyTorchFileWriter(str(out := tmp_path / "out.ckpt"))
    released = {f"data/{key}" for key in cut.released}
    assert len(released) == 12  # step and two moments of four parameters
    for name in sorted(kept - released - {"data.pkl", "version", ".data/serialization_id"}):
        record = reader.get_record(name)
        writer.write_record(name, record, len(record))
    writer.write_record("data.pkl", cut.data, len(cut.data))
    writer.write_end_of_file()
    found = torch.load(out, weights_only=protocol == 2)
    assert list(found) == ["state_dict", "epoch", "hyper_parameters"]
    assert found["hyper_parameters"] == tree["hyper_parameters"]
    for name, value in model.state_dict().items():
        assert torch.equal(found["state_dict"][name], value)
