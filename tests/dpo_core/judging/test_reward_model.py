"""A reward model as the judge: scores are those of stock transformers, one answer at a time, and are kept."""

import json
import math

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    RobertaConfig,
)

from dpo_core.contract.errors import CheckpointError, StoreError
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judge_job import RewardModelJudge
from dpo_core.judging.reward_model import preference
from tests.tiny_judges import ANSWERS, judge_job, make_reward_model
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import checkpoint_ref, run_here


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return make_reward_model(tmp_path_factory.mktemp("judge") / "reward")


def score_of(folder, prompt: str, answer: str) -> float:
    """By stock transformers, alone in its batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return model(ids).logits[0, 0].item()


def test_a_preference_is_that_of_bradley_and_terry_with_a_band_of_ties():
    assert preference(1.0, 3.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert preference(3.0, 1.0) == pytest.approx(1 - preference(1.0, 3.0))
    assert (preference(2.0, 2.0), preference(0.0, 1e6), preference(1e6, 0.0)) == (0.5, 1.0, 0.0)
    assert preference(0.0, 0.1, tie_band=0.03) == 0.5 < preference(0.0, 0.1, tie_band=0.02)


def test_scores_in_batches_are_those_of_stock_transformers_one_by_one(reward_model, tmp_path):
    result = run_here(judge_job(tmp_path / "run", reward_model))
    for pair, opinion in zip(ANSWERS, result.opinions, strict=True):
        expected = [score_of(reward_model, pair.prompt, text) for text in (pair.before, pair.after)]
        assert opinion.scores == pytest.approx(expected, abs=1e-4)
        assert opinion.preference == pytest.approx(1 / (1 + math.exp(expected[0] - expected[1])), abs=1e-4)
    one_by_one = judge_job(
        tmp_path / "other" / "run",
        RewardModelJudge(checkpoint=checkpoint_ref(reward_model), tokens_per_batch=1),
    )
    slow = run_here(one_by_one)
    for opinion, twin in zip(result.opinions, slow.opinions, strict=True):
        assert opinion.scores == pytest.approx(twin.scores, abs=1e-4)
    assert slow.job_fingerprint == result.job_fingerprint  # a batch's shape is no content
    found = result.judgement
    chances = [opinion.preference for opinion in result.opinions]
    assert found.win_rate == pytest.approx(sum(chances) / 7)
    assert (found.wins, found.ties, found.losses) == (
        sum(chance > 0.5 for chance in chances),
        0,
        sum(chance < 0.5 for chance in chances),
    )
    assert found.characters_before == sum(len(pair.before) for pair in ANSWERS) / 7


def test_what_was_scored_is_not_scored_again(reward_model, tmp_path):
    first = run_here(judge_job(tmp_path / "a", reward_model))
    assert first.asked == len({(pair.prompt, text) for pair in ANSWERS for text in (pair.before, pair.after)})
    # Another member of a sweep: the same SFT answers, other ones of its own.
    other = [pair.model_copy(update={"after": f"{pair.after}more"}) for pair in ANSWERS]
    second = run_here(judge_job(tmp_path / "b", reward_model, other))
    assert second.asked == 7
    assert [one.scores[0] for one in second.opinions] == [one.scores[0] for one in first.opinions]
    assert run_here(judge_job(tmp_path / "c", reward_model, tie_band=0.49)).asked == 0


def test_two_labels_are_a_score_and_three_are_none(tmp_path):
    two = make_reward_model(tmp_path / "two", num_labels=2)
    (opinion, *_) = run_here(judge_job(tmp_path / "a", two)).opinions
    model = AutoModelForSequenceClassification.from_pretrained(two)
    tokenizer = AutoTokenizer.from_pretrained(two)
    turns = [
        {"role": "user", "content": ANSWERS[0].prompt},
        {"role": "assistant", "content": ANSWERS[0].before},
    ]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    worse, better = model(ids).logits[0].tolist()
    assert opinion.scores[0] == pytest.approx(better - worse, abs=1e-4)
    three = make_reward_model(tmp_path / "three", num_labels=3)
    with pytest.raises(CheckpointError, match="has 3 labels"):
        run_here(judge_job(tmp_path / "b", three))


def test_a_model_without_a_head_is_refused_as_its_scores_would_be_random(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no reward model: it lacks score\.weight"):
        run_here(judge_job(tmp_path / "run", make_model(tmp_path / "sft")))


def test_without_a_chat_template_prompt_and_answer_are_a_pair_of_texts(tmp_path):
    folder = make_reward_model(tmp_path / "reward", make_tokenizer(chat_template=None))
    (opinion, *_) = run_here(judge_job(tmp_path / "run", folder)).opinions
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = tokenizer(ANSWERS[0].prompt, ANSWERS[0].before, return_tensors="pt")["input_ids"]
    assert opinion.scores[0] == pytest.approx(model(ids).logits.item(), abs=1e-4)


OTHERS: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    # Its tokens say of which text they are.
    "bert": (BertConfig, {"max_position_embeddings": 64}),
    # 64 rows of positions, of which tokens use those behind the padding token's number.
    "roberta": (RobertaConfig, {"max_position_embeddings": 64, "type_vocab_size": 1}),
    # No padding token in its configuration: one answer at a time.
    "gpt2": (GPT2Config, {"n_positions": 64, "n_head": 4, "pad_token_id": None}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_scores_of_other_classifiers_are_those_of_stock_transformers(tmp_path, name):
    """Pairs of texts, one of them as long as the model takes and one longer."""
    kind, settings = OTHERS[name]
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.model_max_length = int(1e30)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {"vocab_size": len(tokenizer), "num_labels": 1, "initializer_range": 0.3}
    torch.manual_seed(0)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = kind(**ends | shared | sizes | settings)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    about = tmp_path / name / "tokenizer_config.json"
    inputs = ["input_ids", *(["token_type_ids"] if name == "bert" else []), "attention_mask"]
    about.write_text(json.dumps(json.loads(about.read_text()) | {"model_input_names": inputs}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
    assert ("token_type_ids" in tokenizer("a", "b")) == (name == "bert")
    long = AnswerPair(prompt="the sky " * 40, before="a", after="the sea " * 3)
    result = run_here(judge_job(tmp_path / "run", tmp_path / name, (*ANSWERS[:4], long)))
    assert result.judgement.cut == 2
    for pair, opinion in zip(ANSWERS[:4], result.opinions, strict=False):
        for text, score in zip((pair.before, pair.after), opinion.scores, strict=True):
            with torch.no_grad():
                expected = model(**tokenizer(pair.prompt, text, return_tensors="pt")).logits.item()
            assert score == pytest.approx(expected, abs=1e-4)


def test_a_long_prompt_loses_its_beginning_and_is_counted(reward_model, tmp_path):
    long = AnswerPair(prompt="the sky " * 200, before="a", after="b")
    result = run_here(judge_job(tmp_path / "run", reward_model, (long, ANSWERS[1])))
    assert result.judgement.cut == 2


def test_other_answers_than_the_job_s_are_refused(reward_model, tmp_path):
    job = judge_job(tmp_path / "run", reward_model)
    changed = job.answers_file.read_text().replace("Question 3", "Question 4")
    job.answers_file.write_text(changed)
    with pytest.raises(StoreError, match="holds other answers"):
        run_here(job)
