"""What a mixture says of itself: the day that its template writes, and what is worth a second look."""

import datetime
import json
import re
from pathlib import Path

import pytest

from dpo_core.contract.data_jobs import MixJob, MixResult
from dpo_core.contract.refs import ResolvedSource
from dpo_core.data.pair_dataset import PairDataset
from tests.tiny_models import CHATML, make_tokenizer
from tests.tiny_stage import run_here

DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %H:%M') }}|{% endif %}" + CHATML


def mixed(
    folder: Path,
    rows: list[dict],
    template: str = CHATML,
    amount: str = "1.0",
    file: str = "rows.jsonl",
    **fields: object,
) -> MixResult:
    folder.mkdir(exist_ok=True)
    make_tokenizer(template).save_pretrained(folder / "tokenizer")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / file.partition("/")[0]
    source = ResolvedSource(label="rows", path=path, content=json.dumps(rows), amount=amount)
    job = MixJob(
        sources=(source,),
        tokenizer_path=folder / "tokenizer",
        tokenizer_fingerprint="t",
        num_workers=1,
        cache_dir=folder / "cache",
        **{"held_out": "0", "max_dropped_fraction": 1.0} | fields,
    )
    return run_here(job.at(folder / "mix"))


def row(number: int, chosen: str = "yes it is", rejected: str = "no") -> dict:
    return {"prompt": f"p {number}", "chosen": chosen, "rejected": rejected}


def test_all_renderings_of_a_job_write_its_day(tmp_path):
    """The two sides, the plain way and the library's (a field more), the held-out prompts."""
    rows = [
        row(0),
        row(1),
        {
            **row(2),
            "chosen": [{"role": "assistant", "content": "yes", "name": "x"}],
            "rejected": [{"role": "assistant", "content": "no", "name": "x"}],
        },
    ]
    result = mixed(tmp_path, rows, DATED, template_date="2024-02-29", held_out="1")
    tokenizer = make_tokenizer()
    for split, count in (("train", 2), ("held_out", 1)):
        pairs = PairDataset.open(result.data.path, split)
        texts = [
            tokenizer.decode(ids)
            for i in range(count)
            for ids in (pairs[i].chosen_ids, pairs[i].rejected_ids)
        ]
        texts += [tokenizer.decode(pairs.prompt(0).prompt_ids)] if split == "held_out" else []
        assert all(text.startswith("29 Feb 2024 00:00|") for text in texts), texts
    assert result.template_date == "2024-02-29"


def test_without_a_day_it_is_today_and_the_result_says_so(tmp_path):
    before = datetime.date.today().isoformat()
    result = mixed(tmp_path, [row(0)], DATED)
    assert result.template_date in (before, datetime.date.today().isoformat())


def test_a_template_without_a_date_has_none(tmp_path):
    assert mixed(tmp_path, [row(0)], template_date="2024-02-29").template_date is None


def test_the_day_is_part_of_the_fingerprint_where_there_is_one():
    fields = {"sources": (), "tokenizer_path": "/t", "tokenizer_fingerprint": "t", "cache_dir": "/c"}
    plain, *dated = (
        MixJob(**fields, template_date=day).fingerprint for day in (None, "2026-01-01", "2026-01-02")
    )
    assert len({plain, *dated}) == 3
    assert MixJob(**fields).fingerprint == plain


WITHOUT_END = CHATML.replace("<|im_end|>", "")
WORDS_AT_THE_END = CHATML.replace("<|im_end|>", " [DONE]")
LONG = "the sea and the sky " * 10
R1 = CHATML.replace("message['content'] }}", "message['content'].split('</think>')[-1] }}")
SIDES = ("chosen", "rejected")
USER, RESULT = {"role": "user", "content": "Hi?"}, {"role": "environment", "content": "rain"}
KNOWS_TOOL = CHATML.replace(
    "{{ message['role'] }}",
    "{% if message['role'] == 'tool' %}ipython{% else %}{{ message['role'] }}{% endif %}",
)
WRITES_TOOL = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message['role'] in ['user', 'assistant', 'tool'] %}{{ message['content'] }}{% endif %}",
)
ASKED = "What does the sea say to the sky?"


def whole(number: int, asked: str = ASKED) -> dict:
    """Both sides hold the prompt."""
    return {"prompt": asked, "chosen": f"{asked} Yes {number}.", "rejected": f"\n{asked} No."}


SAID = {
    "no end mark": ({"template": WITHOUT_END}, [row(0)], r"closes an answer with no special token, so"),
    "words for an end mark": (
        {"template": WORDS_AT_THE_END},
        [row(0)],
        r"no special token but with '\[DONE\]', so",
    ),
    "an amount of one row": (
        {"amount": "1"},
        [row(i) for i in range(100)],
        r"amount 1 takes 1 row of 100\. .*write 1\.0",
    ),
    "many cut": (
        {"max_length_tokens": 60},
        [row(0, "yes " + LONG, "no " + LONG), *(row(i) for i in range(1, 10))],
        r"rows: 10 % of the pairs are cut",
    ),
    "a part of the files": (
        {"file": "set/train-00001-of-00002.jsonl"},
        [row(0)],
        r"rows: of its shards train-00000-of-00002 is missing\.",
    ),
    "a prompt that is in neither side": (
        {},
        [row(0), *(row(i) | {s: [USER, {"role": "assistant", "content": s}] for s in SIDES} for i in (1, 2))],
        r"in 2 pairs \(rows 1, 2\) the column of the prompt, or one of turns before it .* says what does not stand",
    ),
    "answers that hold the prompt": (
        {},
        [*(row(i) for i in range(9)), whole(9)],
        r"rows: in 1 of 10 pairs \(rows 9\) both answers begin with the whole text of the turn before them",
    ),
    "results of a role that the template does not name": (
        {"template": KNOWS_TOOL},
        [row(0), *({**row(i), "prompt": [USER, RESULT]} for i in (1, 2))],
        r"2 pairs \(rows 1, 2\) have turns of a role that the chat template does not name \(environment",
    ),
    "results of a role that the template leaves out": (
        {"template": WRITES_TOOL},
        [row(0), {**row(1), "prompt": [USER, RESULT]}],
        r"leaves out a turn of the prompt, or a part of one, in 1 pairs",
    ),
    "thinking left out": (
        {"template": R1},
        [row(0), row(1, "<think>hm</think>yes", "no"), row(2, "yes", "<think>ah</think>no")],
        r"leaves out a part of the answers of 2 pairs \(rows 1, 2\)",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_is_worth_a_second_look_is_said_in_result_and_ledger(tmp_path, case):
    settings, rows, expected = SAID[case]
    result = mixed(tmp_path, rows, **settings)
    (said,) = result.warnings
    assert re.search(expected, said), said
    (ledger,) = json.loads((tmp_path / "mix" / "ledger.json").read_text())
    assert ledger["warnings"] == [said]


def test_ordinary_rows_give_no_warning(tmp_path):
    rows = [row(0, "yes " + LONG, "no " + LONG), *(row(i) for i in range(1, 12))]
    assert mixed(tmp_path, rows, max_length_tokens=60).warnings == ()
    assert mixed(tmp_path / "few", rows[1:4], amount="1").warnings == ()
    begun = [*(row(i) for i in range(10)), whole(10)]  # as where code is completed
    assert mixed(tmp_path / "begun", begun).per_source[0].prompt_repeated_rows == (10,)
    assert mixed(tmp_path / "begun", begun).warnings == ()
    assert mixed(tmp_path / "short", [whole(0, "Is it?")]).per_source[0].prompt_repeated == 0


def test_the_ledger_says_why_in_the_templates_own_words(tmp_path):
    template = (
        "{% if messages[0]['content'] == 'p 1' %}{{ raise_exception('Roles must alternate!') }}{% endif %}"
        + CHATML
    )
    result = mixed(tmp_path, [row(0), row(1), row(2)], template)
    (ledger,) = result.per_source
    assert ledger.dropped == {"template_error": 1}
    assert ledger.details == {"template_error": ("Roles must alternate!",)}
