"""``tokens_per_forward: auto``: a proposal from the card's memory, tried before the first step, halved if it does not fit.
There is no card here: what is left on it is said, and memory is refused by the allocator."""

import re

import pytest
import torch

from dpo_core.contract.errors import OutOfMemory, StepCrashed
from dpo_core.contract.quantities import AUTO_ON_CPU
from dpo_core.contract.results import read_error, read_result
from dpo_core.engine.plain import PlainEngine
from dpo_core.training import fit_check
from tests.dpo_core.engine.test_sharded import SHARDINGS
from tests.programs.tight_cards import MOST_TOKENS
from tests.step_process import metrics_of, start_ranks
from tests.tiny_stage import run_here
from tests.waiting import PATIENCE_SECONDS

GIB = 1 << 30


def pretend(monkeypatch, left: int, most_tokens: int = 1 << 30) -> list[int]:
    """A card with so many bytes left, on which forwards of more than ``most_tokens`` do not fit. -> tokens of forwards"""
    tried, scores = [], PlainEngine.scores

    def within_memory(self, batch):
        tried.append(batch.ids_RT.numel())
        if tried[-1] > most_tokens:
            torch.empty(1 << 50)
        return scores(self, batch)

    monkeypatch.setattr(fit_check, "left_on_card", lambda device: left)
    monkeypatch.setattr(PlainEngine, "scores", within_memory)
    return tried


def test_a_card_s_memory_says_how_many_tokens_a_forward_has_and_pairs_have_no_limit(
    stage, tmp_path, monkeypatch
):
    """Eight pairs a step: by two in a forward on a CPU, all in one where memory is large."""
    tried = pretend(monkeypatch, GIB)
    on_card = run_here(stage.train_job(tmp_path / "card", "dpo", global_pairs=8, max_steps=2))
    assert on_card.checks["fit_pairs"] == 8
    assert on_card.checks["tokens_per_forward"] > 10 * AUTO_ON_CPU
    assert len(tried) == 1 + 2  # the probe, and a forward a step
    monkeypatch.undo()
    on_cpu = run_here(stage.train_job(tmp_path / "cpu", "dpo", global_pairs=8, max_steps=2))
    assert (on_cpu.checks["fit_pairs"], on_cpu.checks["tokens_per_forward"]) == (2, AUTO_ON_CPU)
    assert on_card.last_metrics["loss"] == pytest.approx(on_cpu.last_metrics["loss"], abs=1e-5)


def test_what_the_set_up_took_is_not_counted_as_training_s(stage, tmp_path, monkeypatch):
    seen, scores = [], PlainEngine.scores
    monkeypatch.setattr(fit_check, "forget_peak_memory", lambda: seen.append("forgotten"))
    monkeypatch.setattr(PlainEngine, "scores", lambda *both: (seen.append("forward"), scores(*both))[1])
    run_here(stage.train_job(tmp_path, "dpo", max_steps=1))
    assert seen[0] == "forgotten"
    assert set(seen[1:]) == {"forward"}


def test_what_does_not_fit_after_all_is_halved_until_it_does(stage, tmp_path, monkeypatch):
    tried = pretend(monkeypatch, GIB, most_tokens=300)
    result = run_here(stage.train_job(tmp_path, "dpo", global_pairs=8, max_steps=1))
    assert tried[0] > 300 >= max(tried[-3:])
    assert result.checks["fit_tokens"] <= 300


def test_a_pair_that_does_not_fit_alone_and_a_number_that_a_person_set_end_the_run(
    stage, tmp_path, monkeypatch
):
    tried = pretend(monkeypatch, GIB, most_tokens=0)
    with pytest.raises(OutOfMemory, match="on a batch of 1 pairs"):
        run_here(stage.train_job(tmp_path / "auto", "dpo", max_steps=1))
    tried.clear()
    with pytest.raises(OutOfMemory):
        run_here(stage.train_job(tmp_path / "set", "dpo", max_steps=1, tokens_per_forward=2048))
    assert len(tried) == 1


@pytest.mark.integration
def test_where_weights_are_shared_out_the_next_start_tries_half(stage, tmp_path):
    """A forward that failed leaves the ranks out of step. What a person has set stays an error."""
    module = "tests.programs.tight_cards"
    job = stage.train_job(tmp_path, "dpo", global_pairs=8, max_steps=1, sharding=SHARDINGS["fsdp2"])
    assert start_ranks(job, 1, module).wait(PATIENCE_SECONDS) != 0
    report = read_error(job)
    assert report.kind == StepCrashed.kind, report.message
    assert re.search(r"does not fit, .* started again with at most \d+ tokens", report.message)
    assert metrics_of(job.out_dir) == []
    for _ in range(2):  # retries
        if start_ranks(job, 1, module).wait(PATIENCE_SECONDS) == 0:
            break
    checks = read_result(job).checks
    assert 0 < checks["fit_tokens"] <= checks["tokens_per_forward"] <= MOST_TOKENS
    assert checks["fit_pairs"] > 1
