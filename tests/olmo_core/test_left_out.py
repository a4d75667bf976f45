"""The layout check is what stands between a defect of the parts exchanged in OLMo-core's model and a run."""

from collections.abc import Callable

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from dpo_core.model.forward import PairScorer, largest_difference
from dpo_core.model.load import load_on_olmo_core
from dpo_core.model.olmo_core import LayerRows, OlmoCoreModel
from tests.dpo_core.model.test_attention import some_pairs
from tests.olmo_core.test_models import CPU, MODELS, saved

Hidden = Callable[..., BaseModelOutputWithPast]  # the Transformer's second forward


def without_positions(model: OlmoCoreModel, hidden: Hidden) -> Hidden:
    return lambda ids, position_ids=None, **more: hidden(ids, **more)


def without_masks(model: OlmoCoreModel, hidden: Hidden) -> Hidden:
    """Each token sees all before it in its row, the other answer among them."""
    for block in model.transformer.blocks.values():
        attend = block.attention.forward

        def forward(x, rows=None, attend=attend, **stock):
            if rows is not None:
                rows = LayerRows(rows.sin_RTD, rows.cos_RTD, None, None, {})
            return attend(x, rows=rows, **stock)

        block.attention.forward = forward
    return hidden


def without_the_last_norm(model: OlmoCoreModel, hidden: Hidden) -> Hidden:
    def forward(*ids, **more):
        head = model.transformer.lm_head
        norm, head.norm = head.norm, torch.nn.Identity()
        try:
            return hidden(*ids, **more)
        finally:
            head.norm = norm

    return forward


@pytest.mark.parametrize("left_out", [without_positions, without_masks, without_the_last_norm])
def test_what_an_exchanged_part_left_out_would_be_seen(tmp_path, left_out):
    model = load_on_olmo_core(saved(MODELS["llama"], tmp_path))
    scorer = PairScorer(model, "fp32")
    with torch.no_grad():
        assert largest_difference(scorer, some_pairs(), "prefix_sharing", CPU) < 1e-5
        model.transformer._hidden = left_out(model, model.transformer._hidden)
        assert largest_difference(scorer, some_pairs(), "prefix_sharing", CPU) > 1e-2
