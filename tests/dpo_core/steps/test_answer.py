"""The probe: files verified, stock load, a prompt answered, and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.contract.errors import CheckpointError, StoreError
from dpo_core.contract.jobs import AnswerJob
from dpo_core.contract.store import hash_files
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import run_here


def answer_job(folder: Path, out_dir: Path) -> AnswerJob:
    return AnswerJob(
        checkpoint_path=folder, files=hash_files(folder), prompts=("hello", "the sea"), max_new_tokens=6
    ).at(out_dir)


def test_it_answers_and_reports_what_the_rules_need(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    result = run_here(answer_job(make_model(tmp_path / "model", tokenizer), tmp_path / "out"))
    assert len(result.answers) == 2
    assert all(result.answers)
    assert (result.pad_token, result.pad_token_id, result.eos_token_ids) == ("<|endoftext|>", 0, (2,))
    assert result.vocab_size == result.tokenizer_size == len(tokenizer)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True
    )
    assert list(result.prompts_ids[0]) == rendered["input_ids"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    job = answer_job(folder, tmp_path / "out")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match=r"model\.safetensors is damaged"):
        run_here(job)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN or infinite logits"):
        run_here(answer_job(folder, tmp_path / "out"))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights .* model\.norm\.weight"):
        run_here(answer_job(folder, tmp_path / "out"))


def test_a_checkpoint_without_template_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", make_tokenizer(chat_template=None))
    with pytest.raises(CheckpointError, match="no chat template"):
        run_here(answer_job(folder, tmp_path / "out"))
