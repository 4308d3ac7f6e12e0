"""One number of a JSON text is replaced, and no other character."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdoctor.containers.json_number import with_number
from ckptdoctor.errors import (
    FormatError,
    UsageError,
)
from ckptdoctor.keras.config import read_scalars


@pytest.mark.parametrize(
    ("text", "path", "value", "expected"),
    [
        ('{"a":{"b": 1e-3 }}', "a/b", 0.25, '{"a":{"b": 0.25 }}'),
        ('{"a":1}', "a", 2.0, '{"a":2}'),
        ('{"a":1}', "a", 2.5, '{"a":2.5}'),
        ('{"a":1.0}', "a", 2, '{"a":2.0}'),
        ('{"a":-1}', "a", -3, '{"a":-3}'),
        ('{"a":NaN}', "a", 3, '{"a":3.0}'),
        ('{"a":-Infinity,"b":1}', "a", 3, '{"a":3.0,"b":1}'),
        ('{"a":1,"a":2}', "a", 3, '{"a":1,"a":3}'),
        ('{"a":{"b":1},"a":{"b":2}}', "a/b", 3, '{"a":{"b":1},"a":{"b":3}}'),
        ('{"b":{"a":1},"a":5}', "a", 3, '{"b":{"a":1},"a":3}'),
        ('{"c":[{"a":1}, {}, [2]],"a":5}', "a", 3, '{"c":[{"a":1}, {}, [2]],"a":3}'),
        (r'{"\u0061\"":{"}":5}}', 'a"/}', 3, r'{"\u0061\"":{"}":3}}'),
        ('{"a":"a","x":"{","b":{"a":7},"c":7}', "c", 3, '{"a":"a","x":"{","b":{"a":7},"c":3}'),
        (f'{{"{"k" * 90}":7}}', "k" * 80, 3, f'{{"{"k" * 90}":3}}'),
        ('{"a/b":7}', "a/b", 3, '{"a/b":3}'),
        ('{"":{"a":7}}', "/a", 3, '{"":{"a":3}}'),
    ],
)
def test_only_the_number_changes(text: str, path: str, value: float, expected: str) -> None:
    assert with_number(text, path, value) == expected


@pytest.mark.parametrize(
    ("text", "path", "value", "error"),
    [
        ('{"a":1}', "b", 1, UsageError), ('{"a":true}', "a", 1, UsageError),
        ('{"a":null}', "a", 1, UsageError), ('{"a":"1"}', "a", 1, UsageError),
        ('{"a":[1]}', "a", 1, UsageError), ('{"a":{"b":1}}', "a", 1, UsageError),
        ('[{"a":1}]', "a", 1, UsageError), ('[{"a":1}]', "/a", 1, UsageError),
        ('{"a":{"b":1},"a":2}', "a/b", 1, UsageError),
        ('{"a":1,"a":"x"}', "a", 1, UsageError),
        ('{"a":1', "a", 1, FormatError), ("[" * 100000, "a", 1, FormatError),
        ('{"a":1}', "a", float("nan"), UsageError), ('{"a":1}', "a", 10**400, UsageError),
    ],
    ids=lambda each: str(each)[:20],
)  # fmt: skip
def test_what_is_no_number_is_not_replaced(
    text: str, path: str, value: float, error: type[Exception]
) -> None:
    with pytest.raises(error):
        with_number(text, path, value)


KEYS = st.text(st.sampled_from('ab"\\/{é'), max_size=3)
TREES = st.recursive(
    st.one_of(st.integers(-9, 9), st.floats(), st.booleans(), st.none(), KEYS),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(KEYS, below, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(tree=st.dictionaries(KEYS, TREES, max_size=3), indent=st.sampled_from([None, 1]))
def test_the_table_reads_the_number_that_was_set(tree: Any, indent: int | None) -> None:
    text = json.dumps({"optimizer": tree}, indent=indent)
    scalars = read_scalars(json.loads(text), "p")
    for name in scalars:
        new = with_number(text, name.partition("/")[2], 77.25)
        again = read_scalars(json.loads(new), "p")
        assert again.pop(name) == 77.25
        assert repr(again) == repr({k: v for k, v in scalars.items() if k != name})
