"""A run's judge: asked whether it is there before anything is trained, and which of two models' answers are preferred.
Whether there will be anything to judge a checkpoint by."""

import logging
import threading
from dataclasses import replace

from dpo_core.contract.data_jobs import MixResult
from dpo_core.contract.errors import DataError
from dpo_core.contract.job import Job
from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judge_config import JUDGE_KEY
from dpo_core.contract.judge_job import JudgeJob, JudgeResult
from dpo_core.contract.warning_signs import why_unmeasurable_here
from flows.settings.stage_config import StageConfig
from tasks.hub.judge_key import with_judge_key
from tasks.hub.judge_server import ask_endpoint, lacks_a_key
from tasks.judge import judge
from tasks.launch.context import Moment
from tasks.launch.launcher import kind_of
from tasks.launch.workplace import Workplace
from tasks.run.folder import RunFolder
from tasks.show.artifacts import show_samples

log = logging.getLogger(__name__)


def judge_answers(
    config: StageConfig, evaluation: EvaluateResult, folder: RunFolder, place: Workplace
) -> JudgeResult | None:
    """Return what the judge found of the evaluation's answers; None where nobody judges."""
    if not config.judge.is_on:
        return None
    with folder.task("judge"):
        result = judge(config.judge, evaluation, place)
        folder.result("judge", result)
    # Again, as a judge may choose which samples tell most.
    num_samples, family = config.evaluation.num_samples_shown, place.context.run.family
    show_samples(evaluation, num_samples, family, result.preferences)
    return result


def check_answers_to_come(config: StageConfig, mixture: MixResult, sets: MixResult | None = None) -> None:
    """Raise ``DataError`` where a judge would have nothing to compare, or a sign that is to stop the run could never be
    measured, which the gate would say after the training: of few rows a small share holds out few or none, and rows are
    dropped. ``sets``: those of ``evaluation.sets``."""
    if config.judge.is_on and not mixture.held_out_rows:
        raise DataError(
            f"judge compares answers to held-out prompts, and of the {mixture.train_rows:,} rows of this mixture none is "
            "held out.",
            "Raise data.held_out, or leave the judge out.",
        )
    # Mixtures of before do not say how many can be checked: perhaps some.
    has_checked = any(one.held_out_checked != 0 for one in (mixture, sets) if one)
    counts_answers = has_checked or config.judge.is_on or bool(config.benchmarks.tasks)
    if reason := why_unmeasurable_here(config.evaluation.warnings, mixture.held_out_rows, counts_answers):
        raise DataError(
            f"evaluation.warnings.stop names {reason}.",
            "Leave the sign out of stop, or give it what it needs: a larger data.held_out, constraints, a judge, tasks.",
        )


def with_judge_asked_first(config: StageConfig, place: Workplace) -> Workplace:
    """Return a place that starts its first step only once the judge's endpoint has answered a question.

    A run that finds every result in the store starts no step, and asks nothing: a server that is gone by then is no error.
    """
    if config.judge.kind != "endpoint":
        return place
    lock, has_answered = threading.Lock(), threading.Event()

    def before_step(job: Job, moment: Moment) -> None:
        if isinstance(job, JudgeJob):
            has_answered.set()  # now, or in an earlier run: what follows needs it no more
        elif moment == "started":
            with lock:  # the members of a sweep start steps side by side
                if not has_answered.is_set():
                    check_judge(config, place)
                    has_answered.set()

    return replace(place, context=replace(place.context, before_step=before_step))


def check_judge(config: StageConfig, place: Workplace) -> None:
    """Ask the judge's endpoint one question, or look for its key alone where the step has another network than this
    process. Raises ``ConfigError`` for what it refuses or a key that is not there, ``RemoteError`` where it does not
    answer."""
    with with_judge_key(place, config.judge) as its_place:
        key = its_place.context.secret(JUDGE_KEY)
        if kind_of(config.compute).is_reached_from_here(config, JudgeJob.step):
            ask_endpoint(config.judge, key)
            log.info("The judge %s at %s answers.", config.judge.model, config.judge.endpoint)
        elif lacks_a_key(config.judge):
            log.warning(
                "The judge is asked from the network of step judge, after the training, and without a key: %s is not set.",
                JUDGE_KEY,
            )
