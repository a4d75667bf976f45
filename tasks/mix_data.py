"""Task: preference sets -> one tokenised, shuffled, split mixture with a ledger."""

from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.chat_templates import OLMO_NOTE
from dpo_core.contract.config import CheckpointConfig, DataConfig
from dpo_core.contract.data_jobs import FetchJob, MixJob, MixResult
from dpo_core.contract.evaluation_config import HeldOutSet
from dpo_core.contract.quality_config import QualityConfig
from dpo_core.contract.refs import CheckpointRef, ResolvedSource
from dpo_core.contract.row_warnings import dropped_sentence
from tasks.checkpoint.chosen_template import chosen_template
from tasks.checkpoint.template_date import template_date
from tasks.data.sources import resolve_evaluation_sets, resolve_sources
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_mixture


@dataclass(frozen=True, slots=True)
class PinnedTokenizer:
    """A checkpoint's tokenizer and chat template, named by their content."""

    path: Path
    fingerprint: str


# Retried because a download may break off; sources that arrived and rows that were tokenised are kept.
@task(
    name="mix data",
    retries=3,
    retry_delay_seconds=[5, 30, 90],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def mix_data(
    data: DataConfig,
    quality: QualityConfig,
    template: CheckpointConfig,
    checkpoint: CheckpointRef,
    place: Workplace,
    sets: MixResult | None = None,
) -> MixResult:
    """Run step ``mix``, and before it ``fetch`` for every Hub data set. No prompt of ``sets`` is trained on.

    Raises ``DataError`` for data that cannot be used, ``CheckpointError`` for the template, ``RemoteError``.
    """
    tokenizer = PinnedTokenizer(checkpoint.path, checkpoint.tokenizer_fingerprint)
    job = mix_job(data, quality, template, tokenizer, place.store / "cache")
    if sets is not None:
        job = apart_from(job, sets)
    if job.chat_template == "olmo":
        get_run_logger().warning(OLMO_NOTE)
    result = mixed(job, place)
    get_run_logger().info(
        "%d pairs to train on, %d held out, %d tokens",
        result.train_rows,
        result.held_out_rows,
        result.lengths.total,
    )
    for one in result.per_source:
        if said := dropped_sentence(one.label, one.rows_in, one.dropped):
            get_run_logger().info("%s ledger.json and the report name them.", said)
    for warning in result.warnings:
        get_run_logger().warning("%s", warning)
    show_mixture(result, place.context.run.family)
    return result


def mix_job(
    data: DataConfig,
    quality: QualityConfig,
    template: CheckpointConfig,
    tokenizer: PinnedTokenizer,
    cache_dir: Path,
) -> MixJob:
    """Return the job of these settings, its sources pinned. Raises ``DataError``, ``ConfigError``, ``RemoteError``."""
    chosen = chosen_template(template)
    return MixJob(
        sources=resolve_sources(data.sources),
        tokenizer_path=tokenizer.path,
        tokenizer_fingerprint=tokenizer.fingerprint,
        chat_template=chosen.template,
        add_bos=chosen.add_bos,
        template_date=template_date(tokenizer.path, chosen.template, data.template_date),
        cache_dir=cache_dir,
        quality=quality.rules,
        evaluation_sets=resolve_evaluation_sets(quality.evaluation_sets),
        **data.model_dump(
            include={
                "held_out",
                "max_length_tokens",
                "when_too_long",
                "train_on",
                "max_dropped_fraction",
                "seed",
                "num_workers",
            }
        ),
    )


def sets_job(
    data: DataConfig,
    sets: tuple[HeldOutSet, ...],
    template: CheckpointConfig,
    tokenizer: PinnedTokenizer,
    cache_dir: Path,
) -> MixJob:
    """Return the job that mixes ``evaluation.sets``, tokenised as the data are. Raises what ``mix_job`` raises."""
    job = mix_job(
        data.model_copy(update={"sources": sets, "held_out": "1.0"}),
        QualityConfig(),
        template,
        tokenizer,
        cache_dir,
    )
    return job.model_copy(update={"set_names": tuple(one.name for one in sets)})


def apart_from(job: MixJob, sets: MixResult) -> MixJob:
    """Return the job of a mixture that holds no prompt of the sets."""
    return job.model_copy(update={"apart_from": sets.data})


def mixed(job: MixJob, place: Workplace) -> MixResult:
    """Run step ``mix``, with the rows of its Hub data sets in the cache."""
    if hub_sets(job) and not place.has_result(
        job
    ):  # asked where it matters: to verify a mixture is to read all of it
        fetch_rows(job, place)
    return place.run(job)


def hub_sets(job: MixJob) -> list[ResolvedSource]:
    """Return the data sets of a mixture that lie on the Hub, those that prompts are compared with among them."""
    return [one for one in (*job.sources, *job.evaluation_sets) if one.hub_id is not None]


def fetch_rows(job: MixJob, place: Workplace) -> None:
    """Bring the rows of Hub data sets into the cache; what becomes of them there is not the fetching's business."""
    for source in hub_sets(job):
        whole = ResolvedSource(
            **source.model_dump(exclude={"amount", "columns", "fields", "chat_template_kwargs", "pairs"})
        )
        place.run(FetchJob(source=whole, cache_dir=job.cache_dir))
