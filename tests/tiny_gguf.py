"""A tiny Llama as a GGUF file, as llama.cpp's converter would write it."""

import json
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_models import CHATML, make_tokenizer

HIDDEN, LAYERS, HEADS, FEED_FORWARD = 32, 1, 4, 64


def make_gguf(path: Path, chat_template: str | None = CHATML) -> np.ndarray:
    """Write the file; returns its embedding [V, 32] (float32, tied to the output)."""
    rng = np.random.default_rng(0)
    bpe = json.loads(make_tokenizer().backend_tokenizer.to_str())
    vocabulary = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)
    special = {token["content"] for token in bpe["added_tokens"]}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_eos_token_id(vocabulary.index("<|im_end|>"))
    writer.add_pad_token_id(vocabulary.index("<|im_end|>"))
    if chat_template:
        writer.add_chat_template(chat_template)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    embedding = random(len(vocabulary), HIDDEN)
    tensors = {"token_embd": embedding, "output_norm": np.ones(HIDDEN, np.float32)}
    for name, shape in {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (HIDDEN, HIDDEN),
        "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (FEED_FORWARD, HIDDEN),
        "ffn_up": (FEED_FORWARD, HIDDEN),
        "ffn_down": (HIDDEN, FEED_FORWARD),
    }.items():
        tensors[f"blk.0.{name}"] = random(*shape)
    tensors |= {"blk.0.attn_norm": np.ones(HIDDEN, np.float32), "blk.0.ffn_norm": np.ones(HIDDEN, np.float32)}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding
