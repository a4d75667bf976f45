"""The form in which a checkpoint leaves: its pad token, a row of the embedding for every token, its number format."""

import logging
from typing import cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dpo_core.model.generate import end_token_ids
from dpo_core.model.pad_token import VOCABULARY_MULTIPLE, choose_pad_token

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def num_embedding_rows(model: PreTrainedModel) -> int:
    """Return how many tokens the model knows."""
    return cast(nn.Embedding, model.get_input_embeddings()).num_embeddings


def tokens_without_row(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> dict[str, int]:
    """Return tokens whose ids lie beyond an embedding of ``num_rows`` rows, with the ids, ascending."""
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= num_rows}
    return dict(sorted(beyond.items(), key=lambda item: item[1]))


def apply_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make pad and eos the same everywhere a reader looks: tokenizer, config, generation config. An embedding that the
    tokenizer's ids reach beyond is grown: whoever trains the result further may assert that there is a row for each."""
    ends = end_token_ids(model, tokenizer)
    vocab_size = num_embedding_rows(model)
    pad = choose_pad_token(tokenizer, None, vocab_size, ends)
    if pad.is_new:
        tokenizer.add_special_tokens({"pad_token": pad.token})
    tokenizer.pad_token = pad.token
    wanted = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1, pad.vocab_size)
    if wanted > vocab_size:
        rows = -(-wanted // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        model.resize_token_embeddings(rows, mean_resizing=False)
        log.info(
            "the embedding grows from %d to %d rows, as the tokenizer has %d tokens", vocab_size, rows, wanted
        )
    model.generation_config = model.generation_config or GenerationConfig()
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        config.pad_token_id = pad.token_id
    ends = tuple(one for one in ends if one < num_embedding_rows(model))  # no text ends with another
    model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0] if ends else None
    log.info("pad token %s (%s)", pad.token, pad.why)
