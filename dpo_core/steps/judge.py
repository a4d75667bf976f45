"""Step ``judge``: which of two held-out answers is the better one, the trained model's or the SFT model's.

What the judge said is kept by content, so a killed step goes on at the next answer and nothing is asked twice.
"""

import json
import logging
from collections.abc import Sequence

from dpo_core.contract.errors import StoreError
from dpo_core.contract.jobs import AnswerPair, EvaluateResult
from dpo_core.contract.judge_job import EndpointJudge, JudgeJob, JudgeResult, content_of_answers
from dpo_core.contract.progress import Progress
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.results import LARGEST_RESULT_BYTES
from dpo_core.contract.section import content_of
from dpo_core.contract.store import fingerprint, hash_files, new_directory
from dpo_core.judging.endpoint import Endpoint, key_of_endpoint
from dpo_core.judging.figures import judgement_of
from dpo_core.judging.judge import Judge, Session
from dpo_core.judging.kept import KeptWords

log = logging.getLogger(__name__)
VERDICTS_FILE = "verdicts.jsonl"


def run(job: JudgeJob, progress: Progress) -> JudgeResult:
    """Ask the judge what it was not asked before, and count."""
    answers = read_answers(job)
    progress.begin("judge", 2 * len(answers), "answers" if not job.needs_network else "questions")
    kept_in = job.cache_dir / fingerprint({"version": job.WORDS_VERSION, "judge": content_of(job.judge)})[:16]
    with KeptWords(kept_in) as kept:
        session = judge_of(job, kept, progress).judge(answers)
    judgement = judgement_of(job.judge, answers, session)
    log.info("%s", judgement.outcome.in_words)
    verdicts = job.out_dir / "verdicts"
    with new_directory(verdicts) as aside:
        lines = map(json.dumps, verdict_rows(answers, session))
        (aside / VERDICTS_FILE).write_text("".join(f"{line}\n" for line in lines))
        files = hash_files(aside)
    return JudgeResult(
        job_fingerprint=job.fingerprint,
        judgement=judgement,
        opinions=session.opinions,
        asked=session.asked,
        verdicts=verdicts,
        verdicts_files=files,
    )


def read_answers(job: JudgeJob) -> tuple[AnswerPair, ...]:
    """Return the answers of the evaluation. Raises ``StoreError`` if they are not those that the job names."""
    try:
        content = read_regular(job.answers_file, LARGEST_RESULT_BYTES)
        answers = EvaluateResult.model_validate_json(content).answers
    except (OSError, ValueError) as error:  # StoreError is a ValueError
        raise StoreError(f"{job.answers_file} cannot be read as an evaluation: {error}") from error
    if content_of_answers(answers) != job.answers_content:
        raise StoreError(
            f"{job.answers_file} holds other answers than those to be judged. Start the run again."
        )
    return answers


def judge_of(job: JudgeJob, kept: KeptWords, progress: Progress) -> Judge:
    """Return the judge that the job names."""
    if isinstance(job.judge, EndpointJudge):
        return Endpoint(job.judge, kept, key_of_endpoint(), progress.advance)
    # Imported where it is needed: who asks a server needs no torch.
    from dpo_core.engine.distributed import start_accelerator
    from dpo_core.judging.reward_model import RewardModel

    return RewardModel(job.judge, job.tie_band, kept, start_accelerator().device, progress.advance)


def verdict_rows(answers: Sequence[AnswerPair], session: Session) -> list[dict]:
    """Return a line a prompt, for people and other programs."""
    return [
        {
            "prompt": pair.prompt,
            "before": pair.before,
            "after": pair.after,
            **opinion.model_dump(exclude_defaults=True),
            "preference": opinion.preference,
            "said": said,
        }
        for pair, opinion, said in zip(answers, session.opinions, session.said, strict=True)
    ]
