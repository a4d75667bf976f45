"""``StageConfig``: everything one DPO stage needs to know. Recipes, the CLI, the UI form and the jobs derive from it."""

from typing import Any

from pydantic import Field, model_validator

from dpo_core.contract.benchmark_config import BenchmarkConfig
from dpo_core.contract.config import (
    AdapterConfig,
    CheckpointConfig,
    DataConfig,
    OptimConfig,
    ReferenceConfig,
    TrainConfig,
)
from dpo_core.contract.cuda8bit import check_8bit_fits
from dpo_core.contract.destination_config import StoreConfig, UploadConfig
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.judge_config import JudgeConfig, why_not_judged
from dpo_core.contract.judge_job import JudgeJob
from dpo_core.contract.keep_best import check_metric
from dpo_core.contract.loss_config import Loss, LossConfig, LossSum, LossTerm
from dpo_core.contract.metric_names import BY_SET, DIVERGENCE, of_set, set_and_metric
from dpo_core.contract.objectives import names_where
from dpo_core.contract.possible_texts import check_texts
from dpo_core.contract.quality_config import QualityConfig
from dpo_core.contract.section import Section
from dpo_core.contract.tracking_config import TrackingConfig
from dpo_core.contract.warning_signs import why_not_measured
from tasks.gate.config import GateConfig, why_unmeasurable
from tasks.handoff.config import HandoffConfig
from tasks.image.config import ImageConfig
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.job_spec.config import BeakerConfig, KubernetesConfig
from tasks.launch.launchers import LAUNCHERS, LauncherSections


class WhatIsTrained(Section):
    """The sections of a recipe that a form shows above those of the launchers."""

    name: str = Field(
        "dpo",
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=200,  # of folders, whose names begin with the time
        description="Name of the run family: lower case, digits, "
        "dashes. It names artifacts and the uploaded model.",
    )
    checkpoint: CheckpointConfig
    data: DataConfig
    quality: QualityConfig = QualityConfig()
    reference: ReferenceConfig = ReferenceConfig()
    loss: LossConfig = LossConfig()
    losses: tuple[LossTerm, ...] = Field(
        (),
        description="A weighted sum of objectives in place of loss, e.g. [{name: dpo, weight: 0.8}, {name: sft, weight: "
        "0.2}]. Each has settings of its own; those that name no beta take loss.beta where it is set.",
    )
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    adapter: AdapterConfig = AdapterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    judge: JudgeConfig = JudgeConfig()
    benchmarks: BenchmarkConfig = BenchmarkConfig()
    gate: GateConfig = GateConfig()
    compute: ComputeConfig = ComputeConfig()


class StageConfig(
    LauncherSections, WhatIsTrained
):  # of bases, pydantic lists the fields of the last one first
    """One run of the stage: SFT checkpoint and preference data in, aligned checkpoint and hand-off out."""

    image: ImageConfig = ImageConfig()
    upload: UploadConfig = UploadConfig()
    handoff: HandoffConfig = HandoffConfig()
    tracking: TrackingConfig = TrackingConfig()
    store: StoreConfig = StoreConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    beaker: BeakerConfig = BeakerConfig()

    @property
    def steps_without_card(self) -> frozenset[str]:
        """See ``LauncherSections``: an endpoint computes elsewhere, the step only asks."""
        return frozenset({JudgeJob.step} if self.judge.kind == "endpoint" else ())

    @model_validator(mode="before")
    @classmethod
    def _texts_are_possible(cls, values: Any) -> Any:
        check_texts(values)
        return values

    @model_validator(mode="before")
    @classmethod
    def _one_beta_for_all_losses(cls, values: Any) -> Any:
        """Resolved here, so that the terms, which are what a job states, say it."""
        if not isinstance(values, dict) or not isinstance(values.get("losses"), list | tuple):
            return values
        loss = values.get("loss")
        if not isinstance(loss, dict) or loss.get("beta") is None:
            return values
        terms = [
            {**term, "beta": loss["beta"]} if isinstance(term, dict) and term.get("beta") is None else term
            for term in values["losses"]
        ]
        return {**values, "losses": terms}

    @model_validator(mode="after")
    def _either_loss_or_losses(self) -> "StageConfig":
        if not self.losses:
            return self
        LossSum(terms=self.losses)  # its own rules
        other = self.loss.model_dump(exclude={"beta"}).items() - LossConfig().model_dump().items()
        if other:
            raise ValueError(
                f"losses takes the place of loss, so loss.{', loss.'.join(sorted(dict(other)))} would mean nothing. Remove "
                "it, or give it to a term of losses (loss.beta alone is for all terms without one)"
            )
        return self

    @model_validator(mode="after")
    def _reference_only_where_used(self) -> "StageConfig":
        if self.reference.source and not self.objective.needs_reference:
            raise ValueError(
                f"the objective {self.objective.title} uses no reference; remove reference.source"
            )
        return self

    @model_validator(mode="after")
    def _columns_of_pairs_are_used(self) -> "StageConfig":
        objective = self.objective
        aims = ", ".join(names_where("target"))
        reasons = {
            "weight": "sorts a batch, so that its losses are no pair's"
            if objective.ignores_weights
            else None,
            "margin": f"takes no margin of a pair's own ({aims} do)" if objective.ignores_margins else None,
        }
        sources = [(f"data.sources.{number}", source) for number, source in enumerate(self.data.sources)]
        sources += [(f"evaluation.sets.{number}", one) for number, one in enumerate(self.evaluation.sets)]
        for place, source in sources:
            for column, reason in reasons.items():
                if column in source.columns and reason:
                    raise ValueError(
                        f"{place}.columns names {column}, and {objective.title} {reason}. Remove "
                        "the column, or choose another objective"
                    )
        return self

    @property
    def objective(self) -> Loss:
        """What is minimised: ``loss``, or the sum of ``losses``."""
        return LossSum(terms=self.losses) if self.losses else self.loss

    @model_validator(mode="after")
    def _pure_bf16_trains_all_weights(self) -> "StageConfig":
        if self.train.precision == "bf16_pure" and (
            self.compute.sharding != "none" or self.adapter.kind != "none" or self.optim.optimizer != "adamw"
        ):
            raise ValueError(
                "train.precision bf16_pure keeps fp32 masters of all weights on every process: it goes with "
                "compute.sharding none, adapter.kind none and optim.optimizer adamw. Use train.precision bf16"
            )
        return self

    @model_validator(mode="after")
    def _olmo_core_can_do_it(self) -> "StageConfig":
        if self.train.implementation != "olmo_core":
            return self
        if self.adapter.kind != "none":
            raise ValueError(
                "train.implementation olmo_core trains all weights: adapters go on the layers of transformers' models, "
                "which peft knows by name. Set adapter.kind to none, or train.implementation to transformers"
            )
        if self.compute.sharding not in ("none", "fsdp2") or self.compute.offload != "none":
            raise ValueError(
                "train.implementation olmo_core shares weights out with PyTorch's FSDP2 alone, as OLMo-core does, and "
                "offloads nothing. Set compute.sharding to fsdp2 or none and compute.offload to none, or "
                "train.implementation to transformers"
            )
        return self

    @model_validator(mode="after")
    def _tensors_of_all_weights(self) -> "StageConfig":
        if self.compute.tensor_degree > 1 and (self.adapter.kind != "none" or self.train.compile_regions):
            raise ValueError(
                "compute.tensor_degree shares out the matrices of models whose weights are all trained, as they are: it "
                "goes with adapter.kind none and train.compile_regions false. Set these, or tensor_degree to 1"
            )
        return self

    @model_validator(mode="after")
    def _float8_by_one_arithmetic(self) -> "StageConfig":
        """Half a unit of bf16 beforehand is a whole one of float8 behind, so all steps have to round alike."""
        if self.train.float8 == "none":
            return self
        if self.compute.sharding != "fsdp2" or self.compute.tensor_degree > 1:
            raise ValueError(
                "train.float8 is for weights as FSDP2 gathers them: bf16, and whole. Set compute.sharding to fsdp2 (which a "
                "single card can have, too) and compute.tensor_degree to 1, or train.float8 to none"
            )
        if self.compute.launcher == "slurm" and self.slurm.num_shares("reference"):
            raise ValueError(
                "slurm.reference_array has single cards compute reference values, without FSDP2: train.float8 wants them "
                "computed as the training does. Leave slurm.reference_array empty, or set train.float8 to none"
            )
        return self

    @model_validator(mode="after")
    def _gate_is_measured(self) -> "StageConfig":
        evaluation = self.evaluation
        reason = (
            why_unmeasurable(
                self.gate, evaluation, self.data.held_out, self.benchmarks.tasks, self.judge.is_on
            )
            or why_not_measured(
                evaluation.warnings,
                evaluation.num_prompts,
                evaluation.measure_kl,
                self.objective.needs_reference,
            )
            or why_not_judged(self.judge, evaluation, self.data.held_out)
        )
        if reason:
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _evaluations_have_pairs(self) -> "StageConfig":
        has_own, sets = float(self.data.held_out) > 0, [one.name for one in self.evaluation.sets]
        if self.evaluation.is_while_training and not (has_own or sets):
            raise ValueError(
                "evaluation.every measures the held-out pairs; set data.held_out above 0, or name evaluation.sets"
            )
        if (keep := self.train.keep_best) is not None:
            if self.evaluation.every is None:
                raise ValueError(
                    "train.keep_best chooses by evaluations while training; set evaluation.every to epoch, or to a number "
                    "of optimizer steps"
                )
            if self.evaluation.every_minutes is not None:
                raise ValueError(
                    "train.keep_best would choose among steps that depend on the machine's speed, and a run that goes on "
                    "after a crash among others; leave evaluation.every_minutes out, or keep_best"
                )
            if not has_own and not keep.metric.startswith(f"{BY_SET}/"):
                raise ValueError(
                    f"train.keep_best.metric {keep.metric} is measured on held-out pairs of the mixture; set data.held_out "
                    f"above 0, or name one of evaluation.sets, such as {of_set(sets[0], keep.metric)}"
                )
            check_metric(keep, sets=sets, answered=self.evaluation.answered)
            if self.reference.source and set_and_metric(keep.metric)[1] in DIVERGENCE:
                raise ValueError(
                    f"train.keep_best.metric {keep.metric} is measured while training against the weights that it starts "
                    "from, and reference.source names another model. Choose another metric, or leave reference.source out"
                )
            keep.direction  # noqa: B018 (one that has none is refused)
        return self

    @model_validator(mode="after")
    def _trackers_are_in_the_image(self) -> "StageConfig":
        if (
            self.tracking.trackers
            and self.image.use is None
            and LAUNCHERS[self.compute.launcher]().runs_in_image
        ):
            raise ValueError(
                "the trainer image that Pairline builds holds no trackers; set image.use to an image that has "
                "them (requirements/trackers.txt), compute.launcher to process, or tracking.trackers to []"
            )
        return self

    @model_validator(mode="after")
    def _8bit_settings_fit(self) -> "StageConfig":
        check_8bit_fits(self.adapter, self.optim, self.train.precision, self.compute.sharding)
        return self
