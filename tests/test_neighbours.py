"""Real neighbours on both sides of the stage: TRL's SFTTrainer before it, TRL's GRPOTrainer after it."""

from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from dpo_core.contract.config import AdapterConfig, CheckpointConfig
from dpo_core.contract.jobs import AnswerJob, ExportJob
from tasks.checkpoint.source import locate, snapshot
from tasks.handoff.rlvr_rules import check_rules, failed_rules
from tasks.publish.directory import content_revision
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import TinyStage, make_rows, mix, reference_job, run_here

pytestmark = pytest.mark.integration

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture(scope="module")
def sft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a TRL SFT run leaves; its pad is its eos, as in many SFT checkpoints."""
    root = tmp_path_factory.mktemp("sft")
    start = make_model(root / "start", make_tokenizer(pad_token="<|im_end|>"))
    rows = Dataset.from_list([{"messages": row["prompt"] + row["chosen"]} for row in make_rows(8)])
    trainer = SFTTrainer(
        str(start),
        SFTConfig(str(root / "sft"), max_steps=2, per_device_train_batch_size=2, **QUIET),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.train()
    trainer.save_model(str(root / "sft"))
    return root / "sft"


@pytest.fixture(scope="module", params=["none", "lora"])
def exported(request, sft_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The stage between them: fetch, mix, reference, train all weights or an adapter, export (merged)."""
    adapter = AdapterConfig(kind=request.param, rank=4)
    root = tmp_path_factory.mktemp("stage")
    config = CheckpointConfig(source=str(sft_folder))
    policy = snapshot(locate(config, root), config, root)
    data = mix(make_rows(12), policy, root / "data", held_out="2")
    reference = run_here(reference_job(root / "reference", data, policy))
    trained = run_here(TinyStage(root, policy, data, reference).train_job(root / "train", adapter=adapter))
    assert trained.guard["loss"] == pytest.approx(0.6931472, abs=1e-5)
    return run_here(
        ExportJob(
            weights_path=trained.weights_path,
            checkpoint=policy,
            adapter=adapter,
            weights_fingerprint=trained.weights_fingerprint,
            precision="fp32",
        ).at(root / "export")
    )


def test_a_trl_sft_checkpoint_becomes_one_that_grpo_trains_from(exported, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(exported.path)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(4)])
    rewarded = []

    def short_is_good(completions: list, **_: object) -> list[float]:
        rewards = [1.0 / (1 + len(completion[0]["content"])) for completion in completions]
        rewarded.extend(rewards)
        return rewards

    config = GRPOConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        learning_rate=1e-2,
        max_completion_length=8,
        beta=0.01,
        **QUIET,
    )
    trainer = GRPOTrainer(str(exported.path), reward_funcs=short_is_good, args=config, train_dataset=prompts)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert len(rewarded) == 4
    assert trainer.state.global_step == 1
    assert any((old != new).any() for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_an_export_is_as_a_checkpoint_what_it_says_it_is(exported, tmp_path):
    """A run that starts from it, and whoever verifies it, computes the fingerprints that stand in its hand-off."""
    config = CheckpointConfig(source=str(exported.path))
    found = snapshot(locate(config, tmp_path), config, tmp_path)
    assert (found.fingerprint, found.tokenizer_fingerprint) == (
        exported.fingerprint,
        exported.tokenizer_fingerprint,
    )


def test_the_export_satisfies_what_an_rlvr_trainer_asserts(exported, tmp_path):
    answer = run_here(
        AnswerJob(checkpoint_path=exported.path, files=exported.files, prompts=("Hello?",)).at(tmp_path)
    )
    uploaded = UploadedCheckpoint(
        uri=exported.path.as_uri(),
        revision=content_revision(exported.files),
        files=exported.files,
        kind="directory",
    )
    rules = check_rules(exported.path, uploaded, answer)
    assert len(rules) >= 9
    assert failed_rules(rules) == ""


def test_the_weights_that_were_trained_are_the_ones_exported(exported, sft_folder):
    parent, child = (
        AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (sft_folder, exported.path)
    )
    moved = [
        name
        for (name, old), new in zip(parent.named_parameters(), child.parameters(), strict=True)
        if not old.equal(new)
    ]
    assert len(moved) > 10
