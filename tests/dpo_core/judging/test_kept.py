"""What a judge said is on the disk when it was said; what a kill cut off is passed over."""

from dpo_core.judging.kept import KeptWords


def test_what_was_put_is_found_by_the_next_and_a_torn_line_is_not(tmp_path):
    with KeptWords(tmp_path / "words") as kept:
        kept.put({"a": 1, "b": {"text": "é\n"}})
        assert kept["b"] == {"text": "é\n"}
        with KeptWords(tmp_path / "words") as beside:  # another run, at the same time
            beside.put({"c": None})
            assert "a" in beside
    first = min((tmp_path / "words").iterdir(), key=lambda path: "a" not in path.read_text())
    first.write_text(first.read_text() + '["d", {"te')
    with KeptWords(tmp_path / "words") as kept:
        assert {key for key in "abcd" if key in kept} == {"a", "b", "c"}
        assert kept["c"] is None
    assert len(list((tmp_path / "words").iterdir())) == 2  # who puts nothing leaves nothing


def test_there_is_nothing_where_nobody_was(tmp_path):
    assert "a" not in KeptWords(tmp_path / "none")
