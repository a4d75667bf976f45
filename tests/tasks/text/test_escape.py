"""Each place reads back what was written, by a parser of its own: text stays text."""

import html
import re
import shlex
import subprocess

import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpo_core.contract.visible import one_line, visible
from tasks.text.escape import (
    html_text,
    markdown_block,
    markdown_code,
    markdown_link,
    markdown_rows,
    markdown_text,
    shell_word,
    yaml_text,
)
from tests.hostile_text import FEW, MARKDOWN, TEXTS, calm, harmless_markdown, inline_tokens, shown, words
from tests.tasks.report.test_page import Reader

WEB_ADDRESS = re.compile(r"(?i)\b(?:https?|ftp)://|\bwww\.")
PLAIN = {"text", "text_special", "softbreak", "html_inline"}


@FEW
@given(TEXTS)
def test_a_paragraph_of_markdown_is_the_text(text):
    written = markdown_text(text)
    harmless_markdown(written)
    assert not WEB_ADDRESS.search(written)
    assert [token.type for token in MARKDOWN.parse(written)] == (
        ["paragraph_open", "inline", "paragraph_close"] if written else []
    )
    parts = inline_tokens(written)
    assert {part.type for part in parts} <= PLAIN
    assert words(shown(parts)) == words(visible(text))


@FEW
@given(TEXTS)
def test_a_cell_of_a_table_is_one_cell(text):
    tokens = MARKDOWN.parse(markdown_rows(("a", "b"), [[markdown_text(text), "last"]]))
    cells = [token for token in tokens if token.type == "inline"]
    assert [token.type for token in tokens].count("td_open") == 2
    assert [cell.content for cell in cells[:2]] == ["a", "b"]
    assert cells[3].content == "last"
    assert {part.type for part in cells[2].children} <= PLAIN
    assert words(shown(cells[2].children)) == words(visible(text))


@FEW
@given(TEXTS)
def test_code_in_a_line_ends_where_it_should(text):
    parts = inline_tokens(f"before {markdown_code(text)} after")
    assert [part.type for part in parts] == ["text", "code_inline", "text"]
    assert parts[1].content.strip(" ") == one_line(text).strip(" ")


@FEW
@given(TEXTS)
def test_a_block_of_code_ends_where_it_should(text):
    before, block, after = (
        token
        for token in MARKDOWN.parse(f"before\n\n{markdown_block(text)}\n\nafter")
        if token.type in ("fence", "inline")
    )
    assert (before.content, after.content) == ("before", "after")
    assert block.content == visible(text) + "\n"
    assert not block.info


@FEW
@given(TEXTS, TEXTS)
def test_a_link_leads_where_it_should_whatever_it_is_called(name, end):
    written = markdown_link(name, f"http://127.0.0.1:4200/{end}")
    parts = inline_tokens(f"before {written} after")
    links = [part for part in parts if part.type == "link_open"]
    assert len(links) == 1
    assert links[0].attrGet("href").startswith("http://127.0.0.1:4200/")
    assert shown(parts).endswith(" after")
    harmless_markdown(markdown_rows(("a", "b"), [[written, "last"]]), ("http://127.0.0.1:4200/",))


@FEW
@given(TEXTS)
def test_only_the_web_is_linked_to(text):
    assume(not text.startswith(("http://", "https://")))
    assert markdown_link("name", text) == "name"


def test_ordinary_text_is_written_as_it_is():
    for text in (
        "rewards/accuracies",
        "held_out 0.7",
        "-",
        "+0.35",
        "file:///store/published/tiny-1a2b",
        "hf://org/dpo@abab",
    ):
        assert markdown_text(text) == text
    assert markdown_code("/store/export/1") == "`/store/export/1`"
    assert (
        markdown_link("report", "http://here/artifacts/key/mine-report")
        == "[report](http://here/artifacts/key/mine-report)"
    )
    assert yaml_text("org/sft: v2") == '"org/sft: v2"'
    assert shell_word("org/sft") == "org/sft"


@FEW
@given(TEXTS)
def test_html_is_the_text(text):
    page = Reader(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    assert page.tags == {"p"}
    assert page.attributes == [("p", "title", visible(text))]
    assert page.text == calm(visible(text))
    assert html.unescape(html_text(text)) == visible(text)


@FEW
@given(TEXTS)
def test_yaml_is_the_text_on_one_line(text):
    written = yaml_text(text)
    assert re.fullmatch('"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*"', written)
    assert yaml.safe_load(f"---\nbefore: 1\nname: {written}\nafter: 2\n") == {
        "before": 1,
        "name": visible(text),
        "after": 2,
    }


@FEW
@given(TEXTS)
def test_a_word_of_a_command_is_one_word(text):
    written = shell_word(text)
    calm(written)
    assert "\n" not in written
    if one_line(text) == text:
        assert shlex.split(f"run {written} last") == ["run", text, "last"]


@settings(FEW, max_examples=20)
@given(
    st.lists(TEXTS.filter(lambda text: not re.search("[\x00\ud800-\udfff]", text)), min_size=20, max_size=20)
)
def test_a_shell_reads_the_word_back(texts):
    command = f"printf '%s\\0' {' '.join(map(shell_word, texts))}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stdout.decode().split("\x00")[:-1] == texts
