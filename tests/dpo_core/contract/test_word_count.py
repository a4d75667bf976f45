"""Words in scripts that write blanks between them and in those that do not, counted by hand."""

import pytest

from dpo_core.contract.word_count import words_of


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n", 0),
        ("To brighten your room - well - a light.", 9),  # as blanks have it, dashes included
        ("안녕하세요 세계", 2),  # Korean writes blanks
        ("你好，世界。", 4),
        ("你好\u3000世界", 4),
        ("用Python写代码", 5),
        ("東京タワーへ行く", 8),
        ("ｶﾀｶﾅ", 4),
        ("𠮷野家", 3),
        ("สวัสดี", 4),  # ส ว ส ด: what stands above is no character of its own
        ("မြန်မာ", 3),
        ("ភាសា", 2),
        ("Ответ: 42.", 2),
    ],
)
def test_counted_by_hand(text: str, count: int) -> None:
    assert len(words_of(text)) == count


def test_where_blanks_stand_between_words_nothing_else_is_looked_at() -> None:
    text = "Yeast makes gas;\tso the dough (which is wet) rises -- slowly.\n\n* naïve café, 3.5 % 😀"
    assert words_of(text) == text.split()
