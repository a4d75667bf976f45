"""Tiny models and tokenizers made on the fly: real formats, real code paths, milliseconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_TEXT = (
    "The capital of France is Paris. What is the capital of France? Answer in one short sentence. "
    "user assistant system Please write a list of three things about the sea and the sky. "
) * 4


def make_tokenizer(
    chat_template: str | None = CHATML, pad_token: str | None = "<|endoftext|>", eos_token: str = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML's special tokens; any text round-trips. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token, pad_token=pad_token)
    fast.chat_template = chat_template
    return fast


def make_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    tie_word_embeddings: bool = True,
    **other_sizes: int,
) -> Path:
    """Save a random 2-layer Llama (hidden 32, float32, safetensors) with its tokenizer into ``folder``; returns it."""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    } | other_sizes
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # large enough that greedy answers differ from prompt to prompt
        **sizes,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
