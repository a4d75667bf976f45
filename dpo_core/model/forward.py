"""A model as a scorer of pairs: batch in, sums of log-probabilities out. Shapes: see ``dpo_core.data.pair_batch``.

The fast way computes hidden states, once per distinct token where the layout shares prefixes, and projects onto the
vocabulary only those that predict a trained token. The plain way is its twin: padded rows and the stock logits of every
token. It works for any architecture. ``choose_layout`` compares the two on real pairs before a run and falls back if they
disagree.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpo_core.contract.config import AttentionKernel, ForwardLayout, Precision
from dpo_core.contract.errors import (
    OutOfMemory,
    is_card_failure,
    is_failed_compile,
    is_out_of_memory,
    is_peer_lost,
)
from dpo_core.data.pair_batch import PairBatch, collate
from dpo_core.data.pair_dataset import PairDataset
from dpo_core.data.pairs import TokenizedPair
from dpo_core.loss.pair_logps import PairLogps
from dpo_core.model.attention import (
    PAIRWISE,
    attention_arguments,
    decoder_of,
    set_kernel,
    text_config,
    use_kernel,
    why_not_shared,
)
from dpo_core.model.logprobs import (
    LogitRule,
    TokenScores,
    VocabularyHead,
    scores_from_logits,
    sum_by_sequence,
)
from dpo_core.model.router import RouterLoss
from dpo_core.model.stock_logits import of_predictors, thinned

log = logging.getLogger(__name__)

# How far two computations of the same token's log-probability may be apart, in nats, mean over a sequence. fp32 sums
# differ in order only (1e-6 was measured); bf16 keeps 8 bits of mantissa, float8 4, and a value that bf16 leaves between two
# of its numbers falls to either.
TOKEN_NOISE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2, "bf16_pure": 5e-2}
FLOAT8_NOISE = 0.1  # between layouts 0.07 was measured; values of bf16 are 0.16 off

OF_SCORER = "model."  # what a scorer puts before its model's names of parameters


class SequenceScores(NamedTuple):
    """What a forward gives, per sequence of S = 2B (chosen, rejected, chosen, ...). A tuple, so that sharding engines find
    its tensors."""

    sums_S: Tensor  # float32, sums of log-probabilities over the trained tokens
    tails_S: Tensor  # float32, their parts beyond the other side's length; see PairLogps
    router_loss: (
        Tensor  # float32 scalar, load-balancing loss of a mixture-of-experts model, 0 for a dense one
    )
    squares_S: Tensor  # float32, sums of log sum_v p(v)^2; see PairLogps. [0] where they are not asked for


class PairScorer(nn.Module):
    """Wraps a causal language model; ``forward`` is what DDP or a sharding engine sees."""

    def __init__(
        self, model: PreTrainedModel, precision: Precision, router: RouterLoss | None = None
    ) -> None:
        """``router``: the load-balancing loss to compute as well, in training of a mixture-of-experts model."""
        super().__init__()
        self.model, self.precision, self.router = model, precision, router
        self.has_half_weights = (
            False  # whether a back end hands the forward bf16 weights, so that nothing is cast
        )
        if precision == "bf16_pure":  # buffers stay: rotary frequencies need fp32
            for parameter in model.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        # ``choose_layout`` sets both: whether padded rows are given the stock logits, not the fast way's; how far the chosen
        # layout is from the plain way, nats per token.
        self.stock_logits, self.layout_difference = True, 0.0
        self.is_split = (
            False  # whether no process holds all weights, so that a forward is one of all together
        )
        self.with_squares = False  # whether what WPO's weights need is computed as well

    def forward(self, batch: PairBatch) -> SequenceScores:
        """Return log-probabilities per sequence. Raises ``OutOfMemory`` with the batch's shape."""
        with memory_for(batch):
            return self._scores(batch)

    def noise(self, precision: Precision) -> float:
        """Return how far two computations of a token's log-probability may be apart, in nats, mean over a sequence."""
        float8 = getattr(self.model, "float8", None)
        return FLOAT8_NOISE if float8 and float8.is_on else TOKEN_NOISE[precision]

    def arithmetic(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Return a context in which the model computes as ``precision`` says."""
        # No weight is used twice in a forward, so kept casts save nothing and are a second copy of the model: 14 GiB of 8B.
        casts = self.precision == "bf16" and not self.has_half_weights
        return torch.autocast(device.type, torch.bfloat16, enabled=casts, cache_enabled=False)

    def _scores(self, batch: PairBatch) -> SequenceScores:
        wanted = {"output_router_logits": True} if self.router else {}
        with self.arithmetic(batch.ids_RT.device):
            arguments = {
                "input_ids": batch.ids_RT,
                "use_cache": False,
                **attention_arguments(text_config(self.model), batch),
                **wanted,
            }
            if batch.layout == "padded" and self.stock_logits:
                chosen, at_N = of_predictors(self.model, batch)
                outputs = self.model(**arguments, **chosen)
                logits_NV = outputs.logits.flatten(0, 1)[at_N]
                logps_N, squares_N = scores_from_logits(logits_NV, batch.target_N, self.with_squares)
            else:
                outputs = decoder_of(self.model)(**arguments)
                logps_N, squares_N = self._answer_scores(outputs.last_hidden_state, batch)
            num_sequences = len(batch.tokens_2B)
            sums_S = sum_by_sequence(logps_N, batch.sequence_N, num_sequences)
            tails_S = sum_by_sequence(logps_N * batch.tail_N, batch.sequence_N, num_sequences)
            squares_S = (
                sum_by_sequence(squares_N, batch.sequence_N, num_sequences)
                if self.with_squares
                else squares_N
            )
            router_loss = (
                self.router(outputs.router_logits, batch.segment_RT >= 0)
                if self.router
                else sums_S.new_zeros(())
            )
            return SequenceScores(sums_S, tails_S, router_loss, squares_S)

    def _answer_scores(self, hidden_RTH: Tensor, batch: PairBatch) -> TokenScores:
        hidden_NH = hidden_RTH.flatten(0, 1)[batch.predictor_N]
        return vocabulary_head(self.model).token_scores(hidden_NH, batch.target_N, self.with_squares)


@contextlib.contextmanager
def memory_for(batch: PairBatch) -> Iterator[None]:
    """Turn out of memory inside the block into an ``OutOfMemory`` that names the batch's shape and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        rows, tokens = batch.ids_RT.shape
        raise OutOfMemory(
            f"Out of memory on a batch of {len(batch.weight_B)} pairs, {rows} rows of {tokens} tokens (data "
            f"rows {batch.row_B.tolist()}). Lower train.tokens_per_forward (in other steps "
            "reference.tokens_per_batch, evaluation.tokens_per_batch), turn on train.gradient_checkpointing, "
            "or lower data.max_length_tokens."
        ) from error


def vocabulary_head(model: PreTrainedModel) -> VocabularyHead:
    """Return hidden states -> logits as the architecture defines it, with its scaling and soft cap."""
    config = text_config(model)
    factor = getattr(config, "logit_scale", None) or 1.0
    factor /= getattr(config, "logits_scaling", None) or 1.0
    return VocabularyHead(
        model.get_output_embeddings(), LogitRule(factor, getattr(config, "final_logit_softcapping", None))
    )


def pair_logps(scores: SequenceScores, tokens_2B: Tensor) -> PairLogps:
    """Split interleaved scores and counts [2B] by side."""
    fields = [scores.sums_S, tokens_2B, scores.tails_S]
    fields += [scores.squares_S] if len(scores.squares_S) else []
    return PairLogps(*(field[side::2] for field in fields for side in (0, 1)))


def probe_pairs(dataset: PairDataset) -> list[TokenizedPair]:
    """Return the pairs that layouts are compared on: one of median length and the longest (where a sliding window would
    show).
    """
    by_length = np.argsort(dataset.lengths.sum(axis=1), kind="stable")
    return [dataset[int(row)] for row in (by_length[len(by_length) // 2], by_length[-1])]


@torch.no_grad()
def largest_difference(
    scorer: PairScorer, pairs: Sequence[TokenizedPair], layout: ForwardLayout, device: torch.device
) -> float:
    """Return the largest |difference| per token between the fast way with all pairs and the plain one with each pair, in
    nats. Of long pairs some of the tokens are compared.
    """
    pairs = thinned(pairs, text_config(scorer.model).vocab_size)
    scorer.stock_logits = True
    alone = [
        scorer(collate([pair], [0], "padded").to(device)).sums_S for pair in pairs
    ]  # logits of all tokens: not at once
    scorer.stock_logits = False
    together = collate(pairs, range(len(pairs)), layout).to(device)
    return float(((scorer(together).sums_S - torch.cat(alone)).abs() / together.tokens_2B.clamp(min=1)).max())


@contextlib.contextmanager
def _as_exact_as_weights_allow(scorer: PairScorer) -> Iterator[Precision]:
    """Compute without float8, and without autocast where weights are fp32: what a wrong mask changes may hide in their
    noise. -> the precision meant. flash attention knows no fp32."""
    precision, float8 = scorer.precision, getattr(scorer.model, "float8", None)
    are_exact = not scorer.has_half_weights and all(p.dtype == torch.float32 for p in scorer.parameters())
    if (
        precision == "bf16"
        and are_exact
        and text_config(scorer.model)._attn_implementation != "flash_attention_2"
    ):
        scorer.precision = "fp32"
    try:
        with float8.off() if float8 else contextlib.nullcontext():
            yield scorer.precision
    finally:
        scorer.precision = precision


def choose_layout(
    scorer: PairScorer,
    pairs: Sequence[TokenizedPair],
    wanted: ForwardLayout,
    device: torch.device,
    kernel: AttentionKernel = "sdpa",
    of_any: Callable[[str | None], str | None] = lambda reason: reason,
) -> ForwardLayout:
    """Return ``wanted`` if it gives the plain forward's numbers on these real pairs, else the next plainer one, with a
    warning. ``of_any`` gives, of what keeps each rank from a layout, one for all: they try the next one together.

    Sets the model's attention to ``kernel``, and to what the layout needs of it. Raises ``ConfigError`` for a kernel that
    the model or the machine does not have.
    """
    use_kernel(scorer.model, kernel)
    architecture = type(scorer.model).__name__
    layouts: list[ForwardLayout] = ["packed", "prefix_sharing", "padded"]
    layouts = layouts[layouts.index(wanted) :]
    if kernel == "flash_attention_2" and wanted != "padded":
        log.info(
            "flash_attention_2 takes no mask that hides one side of a pair from the other; using the padded forward"
        )
        layouts = ["padded"]
    elif wanted != "padded" and (reason := why_not_shared(scorer.model)):
        log.warning(
            "%s cannot hold both sides of a pair in one row: %s; using the padded forward",
            architecture,
            reason,
        )
        layouts = ["padded"]
    for layout, fallback in zip(layouts, [*layouts[1:], "plain"], strict=True):
        stock_kernel = text_config(scorer.model)._attn_implementation
        if not (reason := of_any(_why_not(scorer, pairs, layout, device))):
            return layout
        set_kernel(scorer.model, stock_kernel)
        log.warning("the %s forward %s on %s; using the %s forward", layout, reason, architecture, fallback)
    scorer.stock_logits = True
    return "padded"


def _why_not(
    scorer: PairScorer, pairs: Sequence[TokenizedPair], layout: ForwardLayout, device: torch.device
) -> str | None:
    """What keeps a layout from being used with this model, None (and a line in the log) if it agrees."""
    try:
        if layout == "packed" and (
            pairwise_kernel := PAIRWISE.get(text_config(scorer.model)._attn_implementation)
        ):
            set_kernel(scorer.model, pairwise_kernel)
            if text_config(scorer.model)._attn_implementation != pairwise_kernel:
                return "needs attention that can be replaced, else a mask as wide as all pairs together"
        with _as_exact_as_weights_allow(scorer) as precision:
            difference, allowed = largest_difference(scorer, pairs, layout, device), scorer.noise(precision)
        if device.type == "cuda" and precision != scorer.precision:
            # On a card half precision takes another kernel, which the comparison in fp32 has not seen. Whatever that one
            # said: what a rank computes may not depend on its own numbers.
            in_training, bound = (
                largest_difference(scorer, pairs, layout, device),
                scorer.noise(scorer.precision),
            )
            if difference <= allowed and not in_training <= bound:
                difference, allowed = in_training, bound
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
        if is_card_failure(error) or is_failed_compile(error) or is_peer_lost(error):
            raise  # no other layout would do better; what was asked for would be silently left out
        return f"does not work ({type(error).__name__}: {error})"
    if not difference <= allowed:  # a NaN agrees with nothing
        return f"differs from the plain one by {difference:.2e} nats a token (allowed {allowed:.0e})"
    scorer.layout_difference = difference
    log.info(
        "the %s forward agrees with the plain one: largest difference %.1e nats a token", layout, difference
    )
    return None
