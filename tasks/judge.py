"""Task: the trained model's held-out answers beside the SFT model's, compared by a judge."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judge_config import JUDGE_KEY, QUESTION, JudgeConfig
from dpo_core.contract.judge_job import EndpointJudge, JudgeJob, JudgeResult, content_of_answers
from dpo_core.contract.results import RESULT_FILE
from tasks.checkpoint.reward_model import fetch_reward_model
from tasks.hub.judge_key import with_judge_key
from tasks.launch.run_job import step_folder
from tasks.launch.workplace import Workplace
from tasks.run.retry_policy import worth_a_retry
from tasks.show.artifacts import show_judgement


# Retried because servers are away for minutes: what was said is kept, so a retry goes on at the next question.
@task(
    name="judge",
    retries=3,
    retry_delay_seconds=[10, 60, 300],
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def judge(config: JudgeConfig, evaluation: EvaluateResult, place: Workplace) -> JudgeResult:
    """Run step ``judge`` on the answers of an evaluation. Raises ``CheckpointError`` for a reward model that cannot be used,
    ``ConfigError`` for what the endpoint refuses."""
    with with_judge_key(place, config) as its_place:
        result = its_place.run(judge_job(config, evaluation, its_place))
    get_run_logger().info("%s, by %s", result.judgement.outcome.in_words, result.judgement.model)
    show_judgement(result.judgement, config, place.context.run.family)
    return result


def judge_job(config: JudgeConfig, evaluation: EvaluateResult, place: Workplace) -> JudgeJob:
    """Return the job of the step; a reward model is fetched for it."""
    return JudgeJob(
        judge=endpoint_of(config, place)
        if config.kind == "endpoint"
        else fetch_reward_model(config, place.store),
        tie_band=config.tie_band,
        answers_file=step_folder(place.store, "evaluate", evaluation.job_fingerprint) / RESULT_FILE,
        answers_content=content_of_answers(evaluation.answers),
        cache_dir=place.store / "judge-words",
    )


def endpoint_of(config: JudgeConfig, place: Workplace) -> EndpointJudge:
    """Return the endpoint as the step asks it."""
    asked = set(EndpointJudge.model_fields) - {"kind", "url", "question", "has_key"}
    return EndpointJudge(
        url=config.endpoint,
        question=config.question or QUESTION,
        has_key=place.context.secret(JUDGE_KEY) is not None,
        **config.model_dump(include=asked),
    )
