"""A run's judge: which of the two models' answers are preferred, recorded in the run's folder."""

from dpo_core.contract.jobs import EvaluateResult
from dpo_core.contract.judge_job import JudgeResult
from flows.settings.stage_config import StageConfig
from tasks.judge import judge
from tasks.launch.workplace import Workplace
from tasks.run.folder import RunFolder


def judge_answers(
    config: StageConfig, evaluation: EvaluateResult, folder: RunFolder, place: Workplace
) -> JudgeResult | None:
    """Return what the judge found of the evaluation's answers; None where nobody judges."""
    if not config.judge.is_on:
        return None
    with folder.task("judge"):
        result = judge(config.judge, evaluation, place)
        folder.result("judge", result)
    return result
