"""Inputs of the example, made on the fly: a tiny random Llama, and questions with a short and a long answer."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}
MAX_WORDS = 3  # the instruction that code can check: DPO prefers answers that keep it, RLVR rewards them
NUM_PAIRS = 64


def questions() -> list[dict]:
    """Each with a short and a long true answer."""
    things = list(COLOURS.items())
    return [
        {
            "question": f"{number}. In at most {MAX_WORDS} words: which colour is the {thing}?",
            "short": f"It is {colour}.",
            "long": f"The colour of the {thing} is {colour} as far as anybody knows.",
        }
        for number in range(NUM_PAIRS)
        for thing, colour in [things[number % len(things)]]
    ]


def make_inputs(folder: Path) -> Path:
    """``folder`` with start/ (the model), sft.jsonl, preferences.jsonl and prompts.jsonl; made once."""
    if (folder / "prompts.jsonl").is_file():
        return folder
    rows = questions()
    make_model(folder / "start", [text for row in rows for text in row.values()])
    prompts = [[{"role": "user", "content": row["question"]}] for row in rows]
    sides = [
        {side: [{"role": "assistant", "content": row[side]}] for side in ("short", "long")} for row in rows
    ]
    keep = [{"name": "max_words", "limit": MAX_WORDS}]
    # SFT sees both kinds of answers, so that there is something for DPO and RLVR to decide.
    write(
        folder / "sft.jsonl",
        [
            {"messages": prompt + side[("short", "long")[number % 2]]}
            for number, (prompt, side) in enumerate(zip(prompts, sides, strict=True))
        ],
    )
    write(
        folder / "preferences.jsonl",
        [
            {"prompt": prompt, "chosen": side["short"], "rejected": side["long"], "constraints": keep}
            for prompt, side in zip(prompts, sides, strict=True)
        ],
    )
    write(folder / "prompts.jsonl", [{"prompt": prompt, "constraints": keep} for prompt in prompts])
    return folder


def make_model(folder: Path, texts: list[str]) -> None:
    """A random 2-layer Llama with a byte-level BPE learnt from ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        [*texts, "user assistant system"],
        trainers.BpeTrainer(
            vocab_size=512,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=special,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0])
    fast.chat_template = CHATML
    torch.manual_seed(8)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def write(path: Path, rows: list[dict]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
