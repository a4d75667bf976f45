"""Members of an object of which one is too deep for the parser."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.deep_json import TOO_DEEP, members_of

DEEP = ("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, '[{"]": "}"},' * 2000 + "1" + "]" * 2000)
VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from(DEEP), st.sampled_from((None, 1)))
def test_all_but_the_deep_member_is_there(row, deep, indent):
    text = json.dumps(row | {"deep": "HERE"}, indent=indent).replace('"HERE"', deep)
    assert members_of(text, json.JSONDecoder()) == row | {"deep": TOO_DEEP}


@pytest.mark.parametrize(
    "text", ["[1]", '{"a": 1', '{"a": 1} x', '{"a" 1}', "{a: 1}", '{"a": 1,, "b": 2}', '{"a": }']
)
def test_what_is_no_whole_object_is_none(text):
    assert members_of(text, json.JSONDecoder()) is None


@pytest.mark.parametrize("deep", DEEP)
def test_what_is_not_closed_is_none(deep):
    assert members_of('{"a": ' + deep[:-1], json.JSONDecoder()) is None
