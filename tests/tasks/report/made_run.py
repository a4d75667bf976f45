"""A run's files as its steps leave them, made in milliseconds: the report and the comparison read files alone."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from dpo_core.contract.config import OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import LengthHistogram, LengthStats, MixJob, MixResult, SourceLedger
from dpo_core.contract.environment import step_environment
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.job import Job, Result
from dpo_core.contract.jobs import (
    AnswerPair,
    BatchPlan,
    EvaluateJob,
    EvaluateResult,
    ExportJob,
    ExportResult,
    ReferenceJob,
    ReferenceResult,
    TrainJob,
    TrainResult,
)
from dpo_core.contract.loss_config import LossConfig
from dpo_core.contract.refs import CheckpointRef, DatasetRef, ReferenceRef, ResolvedSource
from dpo_core.contract.results import ENVIRONMENT_FILE, RESULT_FILE
from dpo_core.contract.store import write_json
from flows.settings.stage_config import StageConfig
from tasks.handoff.schema import Parent, Probe, RLVRHandoff, RuleCheck, Tokens
from tasks.launch.run_job import in_store
from tasks.publish.uploaded_checkpoint import UploadedCheckpoint
from tasks.run.folder import RunFolder, recorded_run

HEX = "0123456789abcdef" * 4
POLICY = CheckpointRef(
    path="/models/sft",
    fingerprint=HEX,
    tokenizer_fingerprint=HEX,
    source="org/sft",
    revision="c0ffee" * 6 + "c0ff",
)
BEFORE = {
    "loss": 0.69,
    "rewards/accuracies": 0.5,
    "rewards/margins": 0.0,
    "checker/pass_rate": 0.25,
    "answers/mean_words": 20.0,
}
AFTER = {
    "loss": 0.55,
    "rewards/accuracies": 0.85,
    "rewards/margins": 0.4,
    "checker/pass_rate": 0.75,
    "answers/mean_words": 11.0,
}


def config_of(store: Path, **sections: Any) -> StageConfig:
    """A recipe; keywords replace sections."""
    return StageConfig.model_validate(
        {
            "name": "demo",
            "checkpoint": {"source": "org/sft"},
            "data": {"sources": [{"source": "org/prefs"}]},
            "store": {"root": str(store)},
        }
        | sections
    )


def make_run(
    store: Path,
    *,
    answer: AnswerPair | None = None,
    steps: int = 40,
    after: dict[str, float] | None = None,
    label: str = "org/prefs",
    fails: Exception | None = None,
    **sections: Any,
) -> Path:
    """A run through all steps, or until ``fails`` is raised in the middle of the training. -> its folder"""
    config = config_of(store, **sections)
    folder = store
    with contextlib.suppress(type(fails)), recorded_run(store, config.name, config, "flow-run-id") as run:
        folder = run.folder
        _steps(run, store, config, steps, answer, after or AFTER, label, fails)
    return folder


def _steps(
    run: RunFolder,
    store: Path,
    config: StageConfig,
    steps: int,
    answer: AnswerPair | None,
    after: dict[str, float],
    label: str,
    fails: Exception | None,
) -> None:
    source = ResolvedSource(label=label, content=HEX, hub_id="org/prefs", commit="f00d")
    mix = in_store(
        MixJob(sources=(source,), tokenizer_path="/models/sft", tokenizer_fingerprint=HEX, cache_dir=store),
        store,
    )
    data = DatasetRef(path=mix.out_dir / "data", fingerprint="d" + HEX[1:])
    with run.task("mix data"):
        run.result(
            "mix",
            finish(
                run,
                mix,
                MixResult,
                data=data,
                train_rows=steps * 4,
                held_out_rows=8,
                lengths=lengths(),
                chat_template_sha256=HEX,
                per_source=(ledger(label),),
            ),
        )
    cached = in_store(ReferenceJob(data=data, checkpoint=POLICY, cache_dir=store), store)
    reference = ReferenceRef(path=cached.out_dir / "reference", fingerprint="e" + HEX[1:])
    with run.task("cache reference"):
        run.result(
            "reference",
            finish(
                run,
                cached,
                ReferenceResult,
                reference=reference,
                rows=100,
                rows_computed=10,
                pairs_per_second=3.5,
                forward="packed",
            ),
        )
    plan = BatchPlan(global_pairs=4, per_device_pairs=4, accumulation=1, num_processes=1)
    train = in_store(
        TrainJob(
            data=data,
            checkpoint=POLICY,
            reference=reference,
            reference_checkpoint=POLICY,
            loss=config.loss,
            optim=OptimConfig(),
            train=TrainConfig(),
            batch=plan,
        ),
        store,
    )
    with run.task("train"):
        metrics = write_metrics(train.out_dir / "metrics.jsonl", steps, config.loss)
        if fails is not None:
            run.job(train, "started")
            train.write()
            (train.out_dir / "log.txt").write_text('{"pairline": "progress"}\nTraceback: out of cheese <b>\n')
            run.job(train, "ended")
            raise fails
        weights = {
            "weights_path": train.out_dir / "weights",
            "weights_fingerprint": HEX,
            "weights_sha256": {},
        }
        run.result(
            "train",
            finish(
                run,
                train,
                TrainResult,
                **weights,
                steps=steps,
                pairs=steps * 4,
                resumed_from_step=None,
                guard={"rows": 4},
                metrics_path=train.out_dir / "metrics.jsonl",
                forward="packed",
                first_metrics=metrics[0],
                last_metrics=metrics[-1],
            ),
        )
        export = in_store(
            ExportJob(weights_path=train.out_dir, weights_fingerprint=HEX, checkpoint=POLICY), store
        )
        run.result(
            "export",
            finish(
                run,
                export,
                ExportResult,
                path=export.out_dir / "checkpoint",
                files={},
                fingerprint=HEX,
                tokenizer_fingerprint=HEX,
            ),
        )
    exported = CheckpointRef(path="/x", fingerprint=HEX, tokenizer_fingerprint=HEX, source="x")
    evaluate = in_store(
        EvaluateJob(
            data=data,
            reference=reference,
            before=POLICY,
            after=exported,
            loss=config.loss,
            evaluation=EvaluationConfig(),
        ),
        store,
    )
    with run.task("evaluate"):
        answers = (
            answer
            or AnswerPair(
                prompt="Name a sea in at most three words.",
                before="There are many seas, such as",
                after="The Baltic",
                before_passes=False,
                after_passes=True,
            ),
        )
        run.result(
            "evaluate",
            finish(
                run,
                evaluate,
                EvaluateResult,
                before=BEFORE,
                after=after,
                num_pairs=8,
                num_prompts=1,
                answers=answers,
            ),
        )
    with run.task("hand off"):
        path = store / "handoff" / HEX[:16] / "handoff.json"
        write_json(path, handoff(config.name))
        run.output("handoff", path)


def finish(run: RunFolder, job: Job, kind: type[Result], **fields: Any) -> Result:
    """Leave a job's folder as the step would, and tell the run of it."""
    run.job(job, "started")
    job.write()
    result = kind(job_fingerprint=job.fingerprint, seconds=2.0, **fields)
    write_json(job.out_dir / RESULT_FILE, result)
    write_json(job.out_dir / ENVIRONMENT_FILE, step_environment())
    run.job(job, "ended")
    return result


def write_metrics(path: Path, steps: int, loss: LossConfig) -> list[dict[str, float]]:
    """A training that learns, noisily, resumed once in the middle."""
    metrics = []
    for step in range(1, steps + 1):
        share, noise = step / steps, math.sin(7 * step) / 20
        metrics.append(
            {
                "step": step,
                "epoch": share,
                "loss": 0.69 - 0.2 * share + noise,
                "rewards/accuracies": 0.5 + 0.4 * share,
                "rewards/margins": loss.beta * share,
                "rewards/chosen": share + noise,
                "rewards/rejected": -share + noise,
                "logps_per_token/chosen": -1.0,
                "logps_per_token/rejected": -1.2,
                "grad_norm": 2 + noise,
                "learning_rate": 5e-7,
                "pairs": 4,
                "pairs_per_second": 2.0,
                "tokens_per_second": 900.0 + 100 * noise,
                "step_seconds": 2.0,
                "trained_tokens_per_pair": 90.0,
                "memory/peak_gib": 1.5,
                **({"checks/fit_seconds": 1.0} if step in (1, steps // 2) else {}),
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(step) + "\n" for step in metrics))
    return metrics


def ledger(label: str) -> SourceLedger:
    """100 rows, 12 of them dropped for two reasons."""
    return SourceLedger(
        label=label,
        content=HEX,
        format={"messages": 100},
        available_rows=200,
        rows_in=100,
        kept=88,
        truncated=3,
        dropped={"identical_pair": 10, "no_label_left": 2},
        offenders={"identical_pair": (3, 5), "no_label_left": (9,)},
    )


def lengths() -> LengthStats:
    """Histograms of 88 pairs."""
    part = {"bin_tokens": 5, "counts": (3, 40, 30, 10, 5), "median": 11.0, "p95": 21.0, "longest": 24}
    return LengthStats(
        mean_prompt=11,
        mean_chosen=12,
        mean_rejected=13,
        max_sequence=50,
        total=4000,
        histograms={name: LengthHistogram(**part) for name in ("prompt", "chosen", "rejected")},
    )


def handoff(name: str) -> RLVRHandoff:
    """A sealed hand-off of a checkpoint on a hub."""
    uploaded = UploadedCheckpoint(
        kind="hub",
        uri="hf://org/dpo@" + "ab" * 20,
        revision="ab" * 20,
        repo_id="org/dpo",
        files={"config.json": HEX},
    )
    tokens = Tokens(
        tokenizer_fingerprint=HEX,
        chat_template_sha256=HEX,
        pad_token="<pad>",
        pad_token_id=0,
        eos_token_ids=(2,),
        tokenizer_size=100,
        vocab_size=104,
        num_parameters=1000,
    )
    return RLVRHandoff(
        name=name,
        checkpoint=uploaded,
        weights_fingerprint=HEX,
        tokens=tokens,
        rules=(RuleCheck(rule="pad is not eos", passed=True, detail="0 and 2"),),
        data_fingerprint=HEX,
        parent=Parent(source="org/sft", revision="c0ffee", fingerprint=HEX, tokenizer_fingerprint=HEX),
        reference_fingerprint=HEX,
        metrics_before=BEFORE,
        metrics_after=AFTER,
        inputs_fingerprint=HEX,
        probe=Probe(prompt="What is the capital of France?", answer="Paris."),
        grpo_command="python grpo.py",
    ).sealed()
