"""``JudgeConfig``: the section ``judge`` of a recipe, who says which of two answers is the better one."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dpo_core.contract.chat_templates import Plain
from dpo_core.contract.evaluation_config import EvaluationConfig
from dpo_core.contract.quantities import Count, LengthTokens, Seconds, TokenBudget
from dpo_core.contract.section import Section

JUDGE_KEY = "JUDGE_API_KEY"  # the variable with the endpoint's key
NO_KEY = "none"  # sent in its place, else a client would send the Hub's token to a server that it is none of the business of
JUDGE_KEY_FILE = "PAIRLINE_JUDGE_KEY_FILE"  # names a file with the key, in a container
PLACES = ("{prompt}", "{first}", "{second}")  # what a question holds, once each
WORTH_ANOTHER_TRY = frozenset({408, 409, 425, 429})  # and every 5xx
QUESTION = """\
You compare two answers to one request. Judge what each answer does for the person who asked: whether it is correct, \
follows every part of the request, is honest about what it does not know, and is clear. A longer answer is not a better \
one, and which of them stands first means nothing.

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Say in a few sentences what speaks for each. Then end with one line and nothing behind it: "Verdict: A", "Verdict: B", or \
"Verdict: tie" where neither is better.\
"""
JudgeKind = Literal["none", "reward_model", "endpoint"]
OF_A_REWARD_MODEL = ("revision", "tie_band", "max_length_tokens", "tokens_per_batch")
OF_AN_ENDPOINT = (
    "endpoint",
    "key_block",
    "question",
    "max_new_tokens",
    "parameters",
    "concurrency",
    "retries",
    "timeout_seconds",
    "price_in",
    "price_out",
)


class JudgeConfig(Section):
    """Who compares the trained model's held-out answers with the SFT model's. Off by default. See docs/judge.md."""

    kind: JudgeKind = Field(
        "none",
        description="reward_model: a sequence classifier of transformers scores each answer. endpoint: a model behind an "
        "OpenAI-compatible server compares both, in both orders.",
    )
    model: str = Field(
        "",
        max_length=500,
        description="reward_model: Hub id or local directory. endpoint: the model's name there.",
    )
    revision: str | None = Field(
        None, max_length=200, description="reward_model: Hub branch, tag or commit of it."
    )
    tie_band: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="reward_model: a preference within so much of 0.5 is a tie, and counts as 0.5.",
    )
    max_length_tokens: LengthTokens | None = Field(
        None,
        description="reward_model: longest prompt with its answer in tokens; longer ones lose their beginning. Empty: as "
        "the model takes.",
    )
    tokens_per_batch: TokenBudget = Field(2048, description="reward_model: token budget of a forward.")
    endpoint: str = Field(
        "",
        max_length=2000,
        description="endpoint: base URL, e.g. https://api.openai.com/v1 or http://localhost:8000/v1.",
    )
    key_block: str | None = Field(
        None,
        description=f"endpoint: name of the Prefect Secret block with its key; empty: the {JUDGE_KEY} environment variable, "
        "or no key.",
    )
    question: str | None = Field(
        None,
        max_length=100_000,
        description="endpoint: what it is asked, with {prompt}, {first} and {second}; its reply has to end with Verdict: A, "
        "Verdict: B or Verdict: tie. Empty: the question of docs/judge.md.",
    )
    max_new_tokens: Count = Field(1024, description="endpoint: longest reply in tokens.")
    parameters: dict[str, Plain] = Field(
        {},
        description="endpoint: further parameters of a request, or others than temperature 0 and max_tokens; null leaves "
        "one out, e.g. {max_tokens: null, max_completion_tokens: 2000}.",
    )
    concurrency: int = Field(8, ge=1, le=100, description="endpoint: questions that are under way at once.")
    retries: int = Field(
        6,
        ge=0,
        le=100,
        description="endpoint: how often a question is put again after 429, 5xx, no answer or one that is no completion; "
        "waits double from one second to a minute, or are what the server asks for.",
    )
    timeout_seconds: Seconds = Field(120, description="endpoint: how long one reply may take.")
    price_in: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description="endpoint: of a million tokens of questions; 0: no cost is shown.",
    )
    price_out: float = Field(0.0, ge=0, le=1_000_000, description="endpoint: of a million tokens of replies.")

    @field_validator("endpoint")
    @classmethod
    def _a_plain_url(cls, endpoint: str) -> str:
        if not endpoint:
            return endpoint
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("judge.endpoint must be a URL that begins with http:// or https://")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError(
                "judge.endpoint stands in records and reports, so it must hold no key: give the base URL alone, and the key "
                f"in {JUDGE_KEY} or judge.key_block"
            )
        return endpoint.rstrip("/")

    @field_validator("parameters")
    @classmethod
    def _leaves_the_question_alone(cls, parameters: dict[str, Plain]) -> dict[str, Plain]:
        if taken := sorted(parameters.keys() & {"messages", "model", "stream", "n"}):
            raise ValueError(f"judge.parameters cannot set {taken[0]}, which is what a question is made of")
        return parameters

    @field_validator("question")
    @classmethod
    def _asks_about_both(cls, question: str | None) -> str | None:
        if question is not None and any(question.count(place) != 1 for place in PLACES):
            raise ValueError(f"judge.question must hold each of {', '.join(PLACES)} once")
        return question

    @model_validator(mode="after")
    def _says_what_its_kind_needs(self) -> "JudgeConfig":
        meaningless = {
            "none": ("model", *OF_A_REWARD_MODEL, *OF_AN_ENDPOINT),
            "reward_model": OF_AN_ENDPOINT,
            "endpoint": OF_A_REWARD_MODEL,
        }[self.kind]
        changed = self.model_dump(exclude_defaults=True)
        if set_for_nothing := [name for name in meaningless if name in changed]:
            raise ValueError(
                f"judge.{set_for_nothing[0]} means nothing with judge.kind {self.kind}; remove it, or choose another kind"
            )
        if self.kind != "none" and not self.model:
            raise ValueError(f"judge.kind {self.kind} needs judge.model")
        if self.kind == "endpoint" and not self.endpoint:
            raise ValueError("judge.kind endpoint needs judge.endpoint, the server's base URL")
        return self

    @property
    def is_on(self) -> bool:
        """Whether anybody judges."""
        return self.kind != "none"

    @property
    def in_words(self) -> str:
        """What a plan says: "org/reward-model scores both models' held-out answers"."""
        if self.kind == "endpoint":
            return f"{self.model} at {self.endpoint} compares both models' held-out answers, in both orders"
        return f"{self.model} scores both models' held-out answers"


def advice_on_refusal(status: int) -> str:
    """Return what to do about an endpoint that refuses a question."""
    return {
        401: f"Give its key: {JUDGE_KEY}, or judge.key_block.",
        403: f"Its key ({JUDGE_KEY}, or judge.key_block) may not do this.",
        404: "Look at judge.endpoint, which is the base URL (http://host/v1), and at the name in judge.model.",
    }.get(
        status,
        "What it does not take can be left out or replaced with judge.parameters, e.g. {temperature: null}.",
    )


def why_not_judged(judge: JudgeConfig, evaluation: EvaluationConfig, held_out: str) -> str | None:
    """Return what a judge lacks, as a sentence; None where there are answers to judge, or nobody judges."""
    if judge.is_on and (evaluation.num_prompts == 0 or float(held_out) == 0):
        return (
            "judge compares answers to held-out prompts; set data.held_out and evaluation.num_prompts above 0"
        )
    return None
