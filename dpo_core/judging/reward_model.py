"""A reward model as the judge: a sequence classifier scores each answer, and the better score is preferred.

The preference is that of Bradley and Terry (1952), which reward models are trained by: sigmoid(score of the trained model's
answer - score of the SFT model's). Each answer is scored once, whatever it is compared with: a sweep's members share the
scores of the SFT model's answers.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers import logging as transformers_logging

from dpo_core.contract.errors import CheckpointError, OutOfMemory, is_out_of_memory
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judge_job import RewardModelJudge
from dpo_core.contract.judgement import Opinion
from dpo_core.contract.store import fingerprint
from dpo_core.data.render_limits import rendered_by_library
from dpo_core.judging.judge import Session
from dpo_core.judging.kept import KeptWords

log = logging.getLogger(__name__)
Tokens = dict[str, list[int]]  # input_ids and what a tokenizer gives beside them, of one text


class RewardModel:
    """See ``Judge``. The model is loaded when an answer has no score yet."""

    def __init__(
        self,
        settings: RewardModelJudge,
        tie_band: float,
        kept: KeptWords,
        device: torch.device,
        on_scores: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.settings, self.tie_band, self.kept = settings, tie_band, kept
        self.device, self.on_scores = device, on_scores

    def judge(self, answers: Sequence[AnswerPair]) -> Session:
        """Score what has no score. Raises ``CheckpointError`` for a model that gives none, ``OutOfMemory``."""
        sides = [(pair.prompt, text) for pair in answers for text in (pair.before, pair.after)]
        keys = [fingerprint(side) for side in sides]
        missing = {key: side for key, side in zip(keys, sides, strict=True) if key not in self.kept}
        self.on_scores(len(sides) - len(missing))
        if missing:
            self._score(missing)
        scores = [self.kept[key] for key in keys]
        values = [float(score["score"]) for score in scores]
        both = list(zip(values[::2], values[1::2], strict=True))
        return Session(
            opinions=tuple(
                Opinion(preference=preference(old, new, self.tie_band), scores=(old, new))
                for old, new in both
            ),
            said=tuple([f"scores {old:.6g} and {new:.6g}"] for old, new in both),
            asked=len(missing),
            cut=sum(bool(score["cut"]) for score in scores),
        )

    def _score(self, missing: dict[str, tuple[str, str]]) -> None:
        """Score and keep, batch by batch."""
        scorer = _Scorer(self.settings, self.device)
        encoded = {key: scorer.encode(*side) for key, side in missing.items()}
        for batch in scorer.batches(encoded):
            scores = scorer.score([encoded[key][0] for key in batch])
            self.kept.put(
                {
                    key: {"score": score, "cut": encoded[key][1]}
                    for key, score in zip(batch, scores, strict=True)
                }
            )
            self.on_scores(len(batch))


def preference(before: float, after: float, tie_band: float = 0.0) -> float:
    """Return the chance that the second score's answer is the better one; within ``tie_band`` of one half, one half."""
    difference = after - before
    chance = 1 / (1 + math.exp(-difference)) if difference > -700 else 0.0
    return 0.5 if abs(chance - 0.5) <= tie_band else chance


class _Scorer:
    """A loaded sequence classifier with its tokenizer."""

    def __init__(self, settings: RewardModelJudge, device: torch.device) -> None:
        self.settings, self.device = settings, device
        checkpoint = settings.checkpoint
        transformers_logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.path, trust_remote_code=checkpoint.allow_remote_code, local_files_only=True
        )
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"
        self.model = _load(settings).to(device).eval()  # type: ignore[arg-type]  # transformers wraps it and loses `self`
        self.longest = self._longest()
        config = self.model.config.get_text_config()
        # The model takes the last token that is not its own padding token as an answer's end.
        self.can_batch = (
            config.pad_token_id is not None and config.pad_token_id == self.tokenizer.pad_token_id
        )

    def _longest(self) -> int:
        takes = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        bounds = [
            takes,
            _positions(self.model),
            self.tokenizer.model_max_length,
            self.settings.max_length_tokens,
        ]
        return min(bound for bound in bounds if bound and bound > 0)

    def encode(self, prompt: str, answer: str) -> tuple[Tokens, bool]:
        """Return the tokens of a prompt with its answer, and whether their beginning was cut off: in the chat template; of
        a model that has none, as a pair of texts."""
        if not self.tokenizer.chat_template:
            whole = self.tokenizer(prompt, answer)
            if len(whole["input_ids"]) <= self.longest:
                return dict(whole), False
            return self._cut_pair(prompt, answer), True
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = self.tokenizer.encode(rendered_by_library(self.tokenizer, turns), add_special_tokens=False)
        return {"input_ids": ids[-self.longest :]}, len(ids) > self.longest

    def _cut_pair(self, prompt: str, answer: str) -> Tokens:
        """Tokens of a pair without the beginning of its prompt; of an answer that alone is too long, without its own."""
        room = self.longest - len(self.tokenizer("", "")["input_ids"]) - 1  # one token of the prompt stays
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) > room:
            answer = cast(str, self.tokenizer.decode(ids[-room:]))
        return dict(self.tokenizer(prompt, answer, truncation="only_first", max_length=self.longest))

    def batches(self, encoded: dict[str, tuple[Tokens, bool]]) -> list[list[str]]:
        """Return keys, longest texts first, as many together as the budget of tokens allows."""
        found: list[list[str]] = []
        widest = 0
        for key in sorted(encoded, key=lambda key: -len(encoded[key][0]["input_ids"])):
            width = len(encoded[key][0]["input_ids"])
            fits = found and widest * (len(found[-1]) + 1) <= self.settings.tokens_per_batch
            if fits and self.can_batch:
                found[-1].append(key)
            else:
                found.append([key])
                widest = width
        return found

    @torch.no_grad()
    def score(self, rows: list[Tokens]) -> list[float]:
        """Return each row's score: the logit of a classifier with one label; of two labels, the second one's less the
        first one's."""
        inputs: Any = (
            {name: torch.tensor([ids]) for name, ids in rows[0].items()}
            if len(rows) == 1
            else self.tokenizer.pad(rows, return_tensors="pt")
        )
        try:
            logits = self.model(**{name: value.to(self.device) for name, value in inputs.items()}).logits
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"Out of memory in the reward model: {str(error)[:200]}. Lower judge.tokens_per_batch, or "
                "judge.max_length_tokens."
            ) from error
        logits = logits.double()
        scores = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        if not torch.isfinite(scores).all():
            raise CheckpointError(
                f"The reward model {self.settings.name} gives NaN or infinite scores: its weights are damaged."
            )
        return scores.tolist()


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens have a learnt position; None for a model without such. RoBERTa's relatives count them from behind
    their padding token's number on."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _load(settings: RewardModelJudge) -> PreTrainedModel:
    """Weights in the number format of their files, as the model's makers scored with them."""
    checkpoint = settings.checkpoint
    try:
        both = AutoModelForSequenceClassification.from_pretrained(
            checkpoint.path,
            dtype="auto",
            trust_remote_code=checkpoint.allow_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{settings.name} cannot be loaded as a sequence classifier: {error}"
        ) from error
    model, loading = cast(tuple[PreTrainedModel, dict[str, Any]], both)  # its types know the model alone
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(
            f"{settings.name} is no reward model: it lacks {', '.join(missing[:3])}, which would be random. judge.model "
            "needs a sequence classifier that was trained to score answers."
        )
    if model.config.num_labels not in (1, 2):
        raise CheckpointError(
            f"{settings.name} has {model.config.num_labels} labels, and a score needs one, or two (worse, better). Choose "
            "another judge.model."
        )
    return model
