"""The neighbour before the stage: supervised fine-tuning with TRL, which tells of its checkpoint when it is verified."""

from pathlib import Path

from prefect import flow, get_run_logger, task

from dpo_core.contract.config import CheckpointConfig
from tasks.checkpoint.announced import verify_checkpoint
from tasks.events.chain import announce_sft, this_run
from tasks.events.payloads import SftCheckpointReady, chain_tag


class DemoCheckpointReady(SftCheckpointReady):
    """Told of under an id that the demo's own stage waits for, and dpo-stage/after-sft does not."""

    @property
    def resource(self) -> dict[str, str]:
        return super().resource | {
            "prefect.resource.id": f"pairline.chain-demo.{self.weights_fingerprint[:16]}"
        }


@task(name="sft with TRL", retries=0)
def train_sft(inputs: Path, target: Path, max_steps: int, seed: int) -> Path:
    """``max_steps`` of full-weight SFT from ``inputs``/start. -> the checkpoint's folder"""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset(
        "json", data_files=str(inputs / "sft.jsonl"), split="train", cache_dir=str(target / "datasets")
    )
    config = SFTConfig(
        str(target / "trainer"),
        max_steps=max_steps,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        max_length=128,
        seed=seed,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=max(1, max_steps // 4),
    )
    start = str(inputs / "start")
    trainer = SFTTrainer(
        start, config, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(start)
    )
    loss = trainer.train().training_loss
    trainer.save_model(str(target / "checkpoint"))
    get_run_logger().info("%d steps, mean loss %.3f", max_steps, loss)
    return target / "checkpoint"


@flow(name="trl-sft", persist_result=False)
def trl_sft(inputs: Path, target: Path, max_steps: int = 60, seed: int = 8) -> str:
    """Train, verify, tell. -> the chain's tag"""
    folder = train_sft(inputs, target, max_steps, seed)
    found = verify_checkpoint(CheckpointConfig(source=str(folder)), target)
    chain = chain_tag(found.weights_fingerprint)
    announce_sft(
        DemoCheckpointReady(
            name="chain-demo",
            source=found.source,
            weights_fingerprint=found.weights_fingerprint,
            chain=chain,
            tokenizer_fingerprint=found.tokenizer_fingerprint,
            flow_run_id=this_run(),
        )
    )
    return chain
