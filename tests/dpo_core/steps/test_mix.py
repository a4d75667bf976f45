"""The step end to end on a tiny tokenizer: rows, order, ledger, held-out prompts, reproducibility, bad input."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.errors import CheckpointError, ConfigError, DataError, StoreError
from dpo_core.contract.progress import Progress
from dpo_core.contract.refs import ResolvedSource
from dpo_core.contract.store import fingerprint
from dpo_core.data import held_out_prompts, pool, render_limits
from dpo_core.data.mixing import select_rows, shuffle_order
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.steps import mix
from tests.tiny_models import CHATML, make_tokenizer

BLANK_BEHIND_HEADER = CHATML.replace("assistant\n{%", "assistant: {%").replace(
    "{{ message['role'] }}\n", "{{ message['role'] }}: "
)


def _row(i, **extra):
    return {
        "prompt": f"Question {i}?",
        "chosen": f"Good answer {i}.",
        "rejected": f"Bad answer {i}.",
        **extra,
    }


def _source(tmp_path, rows, name="set.jsonl", **settings):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ResolvedSource(label=name, path=path, content=path.read_text(), **settings)


def _job(tmp_path, *sources, out="out", **settings):
    tokenizer_path = tmp_path / "tokenizer"
    if not tokenizer_path.exists():
        make_tokenizer().save_pretrained(tokenizer_path)
    return MixJob(
        sources=sources,
        tokenizer_path=tokenizer_path,
        tokenizer_fingerprint="t",
        cache_dir=tmp_path / "cache",
        **{"held_out": "0", **settings},
    ).at(tmp_path / out)


def _run(job):
    events = []
    return mix.run(job, Progress("mix", interval_seconds=0, sink=events.append)), events


def _questions(dataset):
    tokenizer = make_tokenizer()
    texts = [tokenizer.decode(dataset[i].chosen_ids) for i in range(len(dataset))]
    return [int(text.split("Question ")[1].split("?")[0]) for text in texts]


def test_rows_stand_in_open_instructs_order(tmp_path):
    first = _source(tmp_path, [_row(i) for i in range(10)], "a.jsonl", amount="1.5")
    second = _source(tmp_path, [_row(100 + i) for i in range(8)], "b.jsonl", amount="3")
    result, events = _run(_job(tmp_path, first, second, seed=5))
    together = [*select_rows("1.5", 10).order().tolist(), *(100 + select_rows("3", 8).order()).tolist()]
    dataset = PairDataset.open(result.data.path, "train")
    assert _questions(dataset) == [together[i] for i in shuffle_order(18, 5)]
    assert [ledger.rows_in for ledger in result.per_source] == [15, 3]
    assert result.train_rows == len(dataset) == 18
    assert {event.phase for event in events} == {"reading", "tokenising", "writing"}
    assert all(event.done <= event.total for event in events)


def test_a_pair_is_stored_as_it_was_tokenised(tmp_path):
    result, _ = _run(_job(tmp_path, _source(tmp_path, [_row(1)])))
    dataset = PairDataset.open(result.data.path, "train")
    pair, tokenizer = dataset[0], make_tokenizer()
    header = "<|im_start|>user\nQuestion 1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.chosen_ids) == header + "Good answer 1.<|im_end|>\n"
    assert tokenizer.decode(pair.rejected_ids[pair.rejected_trained]) == "Bad answer 1.<|im_end|>\n"
    assert pair.chosen_ids.dtype == np.int32
    assert pair.chosen_trained.dtype == bool
    assert dataset.lengths.dtype == dataset.prefix_lengths.dtype == np.int32
    assert dataset.lengths.tolist() == [[len(pair.chosen_ids), len(pair.rejected_ids)]]
    prefix = int(dataset.prefix_lengths[0])
    assert pair.chosen_ids[:prefix].tolist() == pair.rejected_ids[:prefix].tolist()
    assert pair.chosen_ids[prefix] != pair.rejected_ids[prefix]
    assert result.lengths.total == dataset.lengths.sum()
    assert result.lengths.mean_prompt == prefix
    assert pair.row_key == dataset.row_keys[0].decode()


def test_the_ledger_accounts_for_every_row(tmp_path):
    rows = [_row(i) for i in range(6)] + [
        {"note": "x"},
        7,
        _row(8, chosen=""),
        _row(9, chosen="Same", rejected="Same"),
        _row(10, chosen="long " * 200),
    ]
    result, _ = _run(
        _job(
            tmp_path,
            _source(tmp_path, rows, amount="2.0"),
            max_length_tokens=64,
            held_out="2",
            max_dropped_fraction=0.9,
        )
    )
    ledger = result.per_source[0]
    assert ledger.dropped == {"not_a_preference_row": 4, "empty_answer": 2, "identical_pair": 2}
    assert ledger.offenders == {"not_a_preference_row": (6, 7), "empty_answer": (8,), "identical_pair": (9,)}
    assert ledger.rows_in == 22 == ledger.kept + sum(ledger.dropped.values())
    assert ledger.truncated == 2
    assert ledger.kept == result.train_rows + result.held_out_rows == 14
    assert ledger.format == {"prompt_text": 18, "unrecognised": 4}
    assert json.loads((tmp_path / "out" / "ledger.json").read_text())[0]["kept"] == 14


def test_a_mixture_that_passed_a_wider_bound_is_not_taken_under_a_narrower_one(tmp_path):
    """As that of `pairline show-rows`, which refuses nothing."""
    source = _source(tmp_path, [_row(1), {"note": 1}, {"note": 2}])
    looked, run = (_job(tmp_path, source, max_dropped_fraction=bound) for bound in (1.0, 0.5))
    assert looked.fingerprint != run.fingerprint == _job(tmp_path, source).fingerprint
    _run(looked)
    with pytest.raises(DataError, match=r"max_dropped_fraction = 0\.5"):
        _run(run.at(tmp_path / "run"))


def test_held_out_rows_have_prompts_that_training_never_sees(tmp_path):
    rows = [
        _row(i % 12, chosen=f"Variant {i}", constraints=[{"name": "max_words", "limit": i % 12 + 1}])
        for i in range(40)
    ]
    result, _ = _run(_job(tmp_path, _source(tmp_path, rows), held_out="0.25"))
    train, held_out = (PairDataset.open(result.data.path, split) for split in ("train", "held_out"))
    assert not set(_questions(train)) & set(_questions(held_out))
    assert len(set(_questions(held_out))) == 3
    assert result.held_out_checked == result.held_out_rows == len(held_out)
    assert len(set(_questions(held_out)[:3])) == 3
    question = _questions(held_out)[0]
    prompt = held_out.prompt(0)
    expected = f"<|im_start|>user\nQuestion {question}?<|im_end|>\n<|im_start|>assistant\n"
    assert make_tokenizer().decode(prompt.prompt_ids) == expected
    assert held_out[0].chosen_ids[: len(prompt.prompt_ids)].tolist() == prompt.prompt_ids.tolist()
    assert prompt.text == f"Question {question}?"
    assert prompt.constraints == ({"name": "max_words", "limit": question + 1},)
    with pytest.raises(ValueError, match="held-out split only"):
        train.prompt(0)


@pytest.mark.parametrize("template", [CHATML, BLANK_BEHIND_HEADER], ids=["header's end", "blank"])
def test_prompts_have_the_ids_that_the_prompt_has_by_itself(tmp_path, monkeypatch, template):
    """Whether a row's own ids tell them or not: "the" takes the header's blank, "1" does not."""
    monkeypatch.setattr(held_out_prompts, "ROWS_PER_BATCH", 4)
    tokenizer = make_tokenizer(template)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [_row(i, chosen="the sea" if i % 3 else f"{i}.") for i in range(30)]
    result, _ = _run(_job(tmp_path, _source(tmp_path, rows), held_out="20"))
    held_out = PairDataset.open(result.data.path, "held_out")
    differ = 0
    for row, number in enumerate(_questions(held_out)):
        asked, prompt = [{"role": "user", "content": f"Question {number}?"}], held_out.prompt(row)
        opened = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert (prompt.prompt_ids.tolist(), prompt.text) == (opened, f"Question {number}?")
        differ += held_out[row].chosen_ids[: len(opened)].tolist() != opened
    assert (0 < differ < 20) == (template == BLANK_BEHIND_HEADER)


def test_an_empty_held_out_split_opens(tmp_path):
    result, _ = _run(_job(tmp_path, _source(tmp_path, [_row(1)])))
    held_out = PairDataset.open(result.data.path, "held_out")
    assert len(held_out) == result.held_out_rows == 0
    assert held_out.row_keys.shape == (0,)
    assert held_out.lengths.shape == (0, 2)
    assert held_out.prefix_lengths.shape == (0,)
    with pytest.raises(IndexError):
        held_out[0]


def test_the_same_content_gives_the_same_fingerprint_wherever_it_lies(tmp_path):
    rows = [_row(i) for i in range(20)]
    here, _ = _run(_job(tmp_path, _source(tmp_path, rows, "a.jsonl"), held_out="2"))
    there, _ = _run(_job(tmp_path, _source(tmp_path, rows, "b.jsonl"), held_out="2", out="other"))
    other_seed, _ = _run(
        _job(tmp_path, _source(tmp_path, rows, "a.jsonl"), held_out="2", out="third", seed=9)
    )
    assert here.data.fingerprint == there.data.fingerprint != other_seed.data.fingerprint
    assert here.data.path != there.data.path


def test_the_fingerprint_is_that_of_the_whole_content(tmp_path):
    rows = [_row(i, constraints=[{"name": "contains", "word": f"é {i}"}]) for i in range(1100)]
    result, _ = _run(_job(tmp_path, _source(tmp_path, rows), held_out="3"))
    splits = [PairDataset.open(result.data.path, split) for split in ("train", "held_out")]
    prompts = [splits[1].prompt(i) for i in range(3)]
    assert result.data.fingerprint == fingerprint(
        {
            "rows": [[split[i].row_key for i in range(len(split))] for split in splits],
            "prompts": [prompt.prompt_ids.tolist() for prompt in prompts],
            "constraints": [prompt.constraints for prompt in prompts],
        }
    )


def test_constraints_are_part_of_the_fingerprint(tmp_path):
    results = [
        _run(
            _job(
                tmp_path,
                _source(tmp_path, [_row(i, constraints=[{"name": name}]) for i in range(4)], f"{name}.jsonl"),
                held_out="1",
                out=f"out-{name}",
            )
        )[0]
        for name in ("no_commas", "no_digits")
    ]
    assert results[0].data.fingerprint != results[1].data.fingerprint


def test_several_processes_write_what_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "MIN_ROWS_FOR_SEVERAL", 10)
    monkeypatch.setattr(mix, "ROWS_PER_BATCH", 8)  # so that held-out prompts are several batches, too
    rows = [_row(i) if i % 7 else {"note": i} for i in range(700)]
    pq.write_table(pa.Table.from_pylist([_row(i) for i in range(300)]), tmp_path / "set.parquet")
    sources = [
        _source(tmp_path, rows),
        ResolvedSource(label="parquet", path=tmp_path / "set.parquet", content="p"),
    ]
    one, _ = _run(_job(tmp_path, *sources, num_workers=1, held_out="30"))
    two, _ = _run(_job(tmp_path, *sources, num_workers=2, held_out="30", out="two"))
    assert one.data.fingerprint == two.data.fingerprint
    assert one.data.files == two.data.files
    assert one.per_source == two.per_source


def test_columns_are_mapped(tmp_path):
    rows = [{"q": f"Question {i}?", "winner": "Yes.", "loser": "No."} for i in range(3)]
    names = {"prompt": "q", "chosen": "winner", "rejected": "loser"}
    result, _ = _run(_job(tmp_path, _source(tmp_path, rows, columns=names)))
    assert result.per_source[0].kept == 3


def test_a_run_replaces_what_an_earlier_one_left(tmp_path):
    _run(_job(tmp_path, _source(tmp_path, [_row(1), _row(2)], "a.jsonl")))
    result, _ = _run(_job(tmp_path, _source(tmp_path, [_row(3)], "b.jsonl")))
    assert _questions(PairDataset.open(result.data.path, "train")) == [3]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["data", "ledger.json"]


BAD = {
    "all rows dropped": (
        [{"note": 1}, {"note": 2}],
        {},
        DataError,
        r"No row is left.*rows 0, 1.*columns are note",
    ),
    "too many dropped": ([_row(1), {"note": 2}, {"note": 2}], {}, DataError, "max_dropped_fraction = 0.5"),
    "nothing left to train": (
        [_row(1), _row(2)],
        {"held_out": "2"},
        DataError,
        "nothing would be left to train on",
    ),
    "nothing asked for": ([_row(1)], {"amount": "0"}, DataError, "ask for 0 rows"),
    "unknown column": ([_row(1)], {"columns": {"chosen": "best"}}, DataError, "no column `best`"),
    "unknown template": ([_row(1)], {"chat_template": "vicuna"}, ConfigError, "Known names"),
    "no tokenizer": ([_row(1)], {"tokenizer_path": Path("/nowhere")}, CheckpointError, "not a directory"),
    "too short": ([_row(1)], {"max_length_tokens": 8}, DataError, "Raise `max_length_tokens`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_leaves_no_data(tmp_path, case):
    rows, settings, error, message = BAD[case]
    of_source = {name: settings[name] for name in ("amount", "columns") if name in settings}
    source = _source(tmp_path, rows, **of_source)
    job = _job(tmp_path, source).model_copy(update={k: v for k, v in settings.items() if k not in of_source})
    with pytest.raises(error, match=message):
        _run(job)
    assert not (tmp_path / "out" / "data").exists()


def test_a_damaged_mixture_is_a_store_error(tmp_path):
    result, _ = _run(_job(tmp_path, _source(tmp_path, [_row(1)])))
    path = result.data.path / "train" / "rows.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="cannot be read"):
        PairDataset.open(result.data.path, "train")


def test_rows_and_templates_made_to_break_the_step_are_dropped_with_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(render_limits, "TICK_SECONDS", 0.1)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    evil = "{% if messages[0]['content'] == 'Question 3?' %}" + loops + "{% endif %}" + CHATML
    make_tokenizer(evil).save_pretrained(tmp_path / "tokenizer")
    source = _source(tmp_path, [_row(i) for i in range(8)])
    with source.path.open("a") as file:
        for depth in (300, 900, 990, 200_000):
            nested = "[" * depth + "]" * depth
            file.write(f'{{"prompt": "Question 8?", "chosen": "Yes", "rejected": "No", "tools": {nested}}}\n')
    result, _ = _run(_job(tmp_path, source))
    (ledger,) = result.per_source
    assert (ledger.rows_in, ledger.kept) == (12, 7)
    assert ledger.offenders["over_limits"][0] == 3
    assert sum(ledger.dropped.values()) == 5
    assert 11 in ledger.offenders["not_a_preference_row"]
