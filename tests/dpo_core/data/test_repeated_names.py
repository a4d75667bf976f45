"""Objects that give one name several values: the row is dropped where that counts, and read where it does not."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.contract.drops import RowDropped
from dpo_core.contract.errors import DataError
from dpo_core.data import json_rows, readers
from dpo_core.data.columnar_rows import rows_of
from dpo_core.data.formats import READ_COLUMNS, to_pair
from dpo_core.data.repeated_names import SEVERAL_VALUES, RepeatedName, value_of

PLAIN = '{"prompt": "p", "chosen": "a", "rejected": "b"}'


def outcomes(path: Path) -> list[str]:
    """Of each row of a file: the chosen answer's text, or why it is dropped."""
    found = []
    for row in readers.read_rows(path):
        try:
            found.append(to_pair(json.loads(json.dumps(row.value)))[1].chosen[-1]["content"])
        except RowDropped as dropped:
            found.append(dropped.reason)
    return found


REPEATED = {
    "an answer": '{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}',
    "the first of three": '{"chosen": "x", "prompt": "p", "chosen": "a", "rejected": "b", "chosen": "a"}',
    "a prompt": '{"prompt": "p", "chosen": "a", "rejected": "b", "prompt": "q"}',
    "a null beside a text": '{"prompt": "p", "chosen": null, "rejected": "b", "chosen": "a"}',
    "a system prompt": '{"system": "be brief", "prompt": "p", "chosen": "a", "rejected": "b", "system": ""}',
    "an escape": '{"prompt": "p", "chosen": "a", "rejected": "b", "ch\\u006fsen": "c"}',
    "in a message": '{"prompt": "p", "chosen": [{"role": "assistant", "content": "x", "content": "a"}],'
    ' "rejected": [{"role": "assistant", "content": "b"}]}',
    "in arguments of a call": '{"prompt": "p", "chosen": [{"role": "assistant", "content": "a", "tool_calls": '
    '[{"name": "f", "arguments": {"city": "Oslo", "city": "Rome"}}]}], "rejected": '
    '[{"role": "assistant", "content": "b"}]}',
    "in tools": '{"prompt": "p", "chosen": "a", "rejected": "b", "tools": [{"name": "f", "name": "g"}]}',
    "beside thousands of digits": '{"prompt": "p", "chosen": "a", "rejected": "b", "id": %s, "chosen": "c"}'
    % ("9" * 5000),
    "beside a deep column": '{"prompt": "p", "chosen": "a", "rejected": "b", "x": %s, "chosen": "c"}'
    % ("[" * 3000 + "]" * 3000),
}
HARMLESS = {
    "the same value again": '{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "a"}',
    "a column that nobody reads": '{"prompt": "p", "chosen": "a", "rejected": "b", "id": 1, "id": 2}',
    "in a column that nobody reads": '{"prompt": "p", "chosen": "a", "rejected": "b", "meta": [{"id": 1, "id": 2}]}',
}
FORMS = {
    "rows.jsonl": "{}\n{}\n{}\n",
    "rows.json": "[{},\n{},\n{}]",
    "wrapped.json": '{{"data": [{}, {}, {}]}}',
    "named.json": '{{"version": 1, "version": 2, "data": [{}, {}, {}]}}',
    "pretty.json": '{{"version": 1,\n"data": [{},\n{},\n{}]}}',
}


@pytest.mark.parametrize("size", [7, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_with_a_repeated_name_is_dropped_where_the_name_counts(tmp_path, monkeypatch, form, size):
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", size)
    file = tmp_path / form
    for rows, outcome in ((REPEATED, "repeated_name"), (HARMLESS, "a")):
        for name, row in rows.items():
            file.write_text(FORMS[form].format(PLAIN, row, PLAIN))
            assert outcomes(file) == ["a", outcome, "a"], name


def test_a_file_of_two_lists_of_one_name_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(f'{{"data": [{PLAIN}], "data": [{PLAIN.replace("p", "q")}]}}')
    with pytest.raises(DataError, match="several lists of rows, data and data"):
        outcomes(tmp_path / "a.json")


AS_TEXT = {
    "chosen": '[{"role": "assistant", "content": "x", "content": "a"}]',
    "prompt": '[{"role": "user", "content": "x", "content": "a"}]',
    "system": '{"role": "system", "content": "x", "content": "a"}',
    "tools": '[{"name": "f", "name": "g"}]',
    "constraints": '[{"name": "max_words", "limit": 5, "limit": 9}]',
    "chat_template_kwargs": '{"enable_thinking": true, "enable_thinking": false}',
}


@pytest.mark.parametrize("column", AS_TEXT)
def test_so_is_one_whose_column_holds_such_json_as_text(column):
    with pytest.raises(RowDropped) as dropped:
        to_pair({**json.loads(PLAIN), column: AS_TEXT[column]})
    assert dropped.value.reason == "repeated_name"


def test_a_call_as_text_is_dropped_and_its_arguments_as_text_stay_what_they_are():
    def pair(**called):
        answer = {
            "role": "assistant",
            "content": "a",
            "tool_calls": [{"name": "f", "arguments": "{}"}],
            **called,
        }
        return to_pair(
            {"prompt": "p", "chosen": [answer], "rejected": [{"role": "assistant", "content": "b"}]}
        )[1]

    arguments = '{"city": "Oslo", "city": "Rome"}'
    kept = pair(tool_calls=[{"name": "f", "arguments": arguments}])
    assert kept.chosen[-1]["tool_calls"][0]["function"]["arguments"] == arguments
    for text in ('[{"name": "f", "name": "g"}]', ['{"name": "f", "name": "g"}']):
        with pytest.raises(RowDropped, match="repeated_name"):
            pair(tool_calls=text)


@pytest.mark.parametrize(
    "answer", ['{"a": 1, "a": 2}', '[{"a": 1, "a": 2}] and so on', '{"a": 1, "a": [' + "[" * 3000]
)
def test_an_answer_that_is_json_by_itself_is_text(answer):
    assert to_pair({**json.loads(PLAIN), "chosen": answer})[1].chosen[-1]["content"] == answer


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_of_one_name_are_told_apart_from_one_column(tmp_path, ending):
    names = ["prompt", "chosen", "rejected", "chosen", "id", "id"]
    columns = [["p", "p"], ["a", "a"], ["b", "b"], ["c", "a"], [1, 2], [3, 4]]
    table = pa.table(list(map(pa.array, columns)), names=names)
    file = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table)
    read = [row.value for row in readers.read_rows(file, READ_COLUMNS)]
    assert [row["chosen"] for row in read] == [SEVERAL_VALUES, "a"]


def test_fields_of_one_name_in_a_message_cannot_be_told():
    message = pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["a"])], ["content", "content"])
    (row,) = rows_of(pa.record_batch({"chosen": message, "rejected": ["b"]}))
    assert row == {"chosen": SEVERAL_VALUES, "rejected": "b"}


class Pairs(list):
    """Members of an object, names maybe repeated."""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.text("ab", max_size=1),
    lambda inner: (
        st.lists(inner, max_size=2) | st.lists(st.tuples(st.sampled_from("ab"), inner), max_size=3).map(Pairs)
    ),
    max_leaves=6,
)


def _text(value) -> str:
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(name)}: {_text(item)}" for name, item in value) + "}"
    return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, list) else json.dumps(value)


def _is_clear(value) -> bool:
    if isinstance(value, Pairs):
        said = {}
        return all(
            said.setdefault(name, _text(item)) == _text(item) and _is_clear(item) for name, item in value
        )
    return all(map(_is_clear, value)) if isinstance(value, list) else True


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), JSON), max_size=4).map(Pairs))
def test_each_column_is_read_as_it_stands_or_marked(row):
    text = _text(row)
    expected = json.loads(text)
    found = next(iter(json_rows.json_rows(Path("a.jsonl"), io.StringIO(text + "\n")))).value
    assert found.keys() == expected.keys()
    for name in expected:
        said = [item for other, item in row if other == name]
        if all(map(_is_clear, said)) and len(set(map(_text, said))) == 1:
            assert found[name] == expected[name]
        elif not all(map(_is_clear, said)) or len({repr(json.loads(_text(item))) for item in said}) > 1:
            assert found[name] == SEVERAL_VALUES
    if SEVERAL_VALUES in found.values():
        with pytest.raises(RepeatedName):
            value_of(text)
