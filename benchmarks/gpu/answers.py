"""Answers of eight layers of 8B width."""

import numpy as np
import torch

from benchmarks.gpu.workload import Bench, Figure, free, seconds_of
from dpo_core.model.generate import Generation, continue_all


def generate(bench: Bench) -> list[Figure]:
    """Greedy answers of 16 prompts: milliseconds a token, by number format, as a graph that is replayed and kernel by
    kernel; and how many answers are the same by both."""
    figures, tokens = [], 4 if bench.tiny else 64
    prompts = [pair.chosen_ids[:100] for pair in bench.pairs(16)]
    for dtype in (torch.float32, torch.bfloat16):
        model = bench.model(bench.wide).to(dtype)
        name = str(dtype).removeprefix("torch.")
        found = {}
        for how, may_record, bar in (("", True, 3.0), (", kernel by kernel", False, None)):
            generation = Generation(tokens, len(prompts), may_record=may_record)
            answers: list[list[int]] = []
            seconds = seconds_of(
                lambda model=model, generation=generation, answers=answers: answers.extend(
                    _greedy(model, prompts, generation)
                ),
                bench.device,
                turns=1,
                warm_up=1,
            )
            found[may_record] = answers[: len(prompts)]
            figures.append(Figure(f"{name}: a token of 16 answers{how}", 1e3 * seconds / tokens, "ms", bar))
        same = sum(one == other for one, other in zip(found[True], found[False], strict=True))
        figures.append(Figure(f"{name}: answers of 16 that are the same", float(same)))
        del model
        free(bench.device)
    return figures


@torch.no_grad()
def _greedy(model: torch.nn.Module, prompts: list[np.ndarray], generation: Generation) -> list[list[int]]:
    return continue_all(
        model, (), prompts, generation, None, lambda logits_RV, rows, step: logits_RV.argmax(dim=-1)
    )
