"""The step ``judge``: which of two held-out answers is the better one, prompt by prompt."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dpo_core.contract.chat_templates import Plain
from dpo_core.contract.job import Job, Result
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judge_config import JUDGE_KEY
from dpo_core.contract.judgement import JudgeFigures, Opinion
from dpo_core.contract.refs import CheckpointRef, FileHashes, Location
from dpo_core.contract.section import NotContent, Section
from dpo_core.contract.store import fingerprint


class RewardModelJudge(Section):
    """A sequence classifier that scores an answer to a prompt."""

    kind: Literal["reward_model"] = "reward_model"
    checkpoint: CheckpointRef
    max_length_tokens: int | None = None
    tokens_per_batch: Annotated[int, NotContent()] = 2048

    @property
    def name(self) -> str:
        """What it is called on pages: a Hub id, of a directory its last part."""
        source = self.checkpoint.source
        return source if self.checkpoint.revision else source.rstrip("/").rpartition("/")[2]


class EndpointJudge(Section):
    """A model behind an OpenAI-compatible server that is asked which of two answers is better."""

    kind: Literal["endpoint"] = "endpoint"
    url: str
    model: str
    question: str
    max_new_tokens: int = 1024
    parameters: dict[str, Plain] = {}
    concurrency: Annotated[int, NotContent()] = 8
    retries: Annotated[int, NotContent()] = 6
    timeout_seconds: Annotated[int, NotContent()] = 120
    has_key: Annotated[bool, NotContent()] = False

    @property
    def name(self) -> str:
        """What it is called on pages."""
        return self.model


class JudgeResult(Result):
    """``opinions``: in the order of the answers. ``verdicts``: a folder with what the judge said of which answers."""

    judgement: JudgeFigures
    opinions: tuple[Opinion, ...]
    asked: int  # scores or questions; the others were kept from earlier
    verdicts: Path
    verdicts_files: FileHashes = {}

    @property
    def preferences(self) -> tuple[float | None, ...]:
        """What the judge thinks of each answer, see ``Opinion``."""
        return tuple(opinion.preference for opinion in self.opinions)

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        yield self.verdicts, self.verdicts_files


class JudgeJob(Job[JudgeResult]):
    """Opinions on the answers of an evaluation; what the judge said before of the same answers is not asked again."""

    step = "judge"
    VERSION = 2  # agreement over different answers alone
    WORDS_VERSION: ClassVar[int] = (
        1  # raised when what a judge is asked changes: what it said before is asked anew
    )
    is_one_on_card = True
    judge: RewardModelJudge | EndpointJudge = Field(discriminator="kind")
    tie_band: float = 0.0
    answers_file: Location  # result.json of the step ``evaluate``
    answers_content: str  # see ``content_of_answers``
    cache_dir: Location  # of all judges: <cache_dir>/<judge>/*.jsonl

    def writes(self) -> tuple[Path, ...]:
        return (self.cache_dir,)

    @property
    def needs_network(self) -> bool:
        return isinstance(self.judge, EndpointJudge)

    @property
    def secrets(self) -> tuple[str, ...]:
        return (JUDGE_KEY,) if isinstance(self.judge, EndpointJudge) and self.judge.has_key else ()


def content_of_answers(answers: Sequence[AnswerPair]) -> str:
    """Return what names prompts and answers by their text."""
    return fingerprint([[pair.prompt, pair.before, pair.after] for pair in answers])
