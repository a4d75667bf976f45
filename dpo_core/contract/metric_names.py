"""What metrics are called and mean, for a reader who has not trained with preferences before; which of them come first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Meaning:
    """``better``: the sign of a wanted change; 0 where neither direction is good by itself."""

    label: str
    explanation: str
    better: int = 0


MEANINGS = {
    "loss": Meaning(
        "loss", "The objective on held-out pairs. Comparable only between runs of one loss and beta.", -1
    ),
    "rewards/accuracies": Meaning(
        "reward accuracy",
        "Share of pairs in which the chosen answer gained more against the "
        "reference than the rejected one. 0.5 is chance, and where an untrained policy is.",
        1,
    ),
    "rewards/margins": Meaning(
        "reward margin", "By how much the chosen answer's reward exceeds the rejected one's.", 1
    ),
    "rewards/chosen": Meaning(
        "reward, chosen",
        "How much likelier than the reference the policy makes the chosen answer "
        "(in the loss's units). Below 0: less likely than before, which DPO often does to both.",
    ),
    "rewards/rejected": Meaning(
        "reward, rejected", "The same of the rejected answer; it should fall below chosen."
    ),
    "rewards/average": Meaning("reward, average", "Mean of both: how far the policy has moved as a whole."),
    "rewards/length_correlation": Meaning(
        "margin and length",
        "Correlation of a pair's reward margin with how many tokens longer its chosen answer is. Far from 0: the policy "
        "may have learnt length.",
    ),
    "rewards/accuracies_stderr": Meaning(
        "reward accuracy, standard error",
        "Of reward accuracy: how much other prompts would have changed it. Pairs of one prompt count together.",
    ),
    "ranking/accuracies": Meaning(
        "ranking accuracy",
        "Share of pairs in which the policy alone, without the reference, "
        "finds the chosen answer likelier per token.",
        1,
    ),
    "logps/chosen": Meaning("log-probability, chosen", "Of the whole answer (sum over its tokens, nats)."),
    "logps/rejected": Meaning(
        "log-probability, rejected", "Of the whole answer (sum over its tokens, nats)."
    ),
    "logps/margins_moved": Meaning(
        "margin moved",
        "By how many nats a pair's difference of log-probabilities has moved from the reference's, either way.",
    ),
    "logps_per_token/chosen": Meaning("log-prob. per token, chosen", "Divided by the answer's tokens."),
    "logps_per_token/rejected": Meaning("log-prob. per token, rejected", "Divided by the answer's tokens."),
    "logps_per_token/chosen_lost": Meaning(
        "chosen answers lost",
        "Share of pairs whose chosen answer is less likely than under the reference by 3 nats a token or more, 20 times.",
        -1,
    ),
    "trained_tokens_per_pair": Meaning(
        "trained tokens a pair", "Tokens of both answers that carry the loss."
    ),
    "length_rule/accuracies": Meaning(
        "accuracy of length alone",
        "What a rule has that prefers the longer answer, or the shorter, whichever these pairs have chosen oftener.",
    ),
    "length_rule/accuracies_above": Meaning(
        "reward accuracy above that of length",
        "By how much reward accuracy exceeds it. Not above 0: these pairs do not show that anything but length was learnt.",
        1,
    ),
    "length_rule/accuracies_above_stderr": Meaning(
        "above that of length, standard error", "Of that difference, prompt by prompt."
    ),
    "checker/pass_rate": Meaning(
        "instructions kept",
        'Share of greedy answers that keep an instruction which code can check ("at most ten words").',
        1,
    ),
    "checker/pass_rate_loose": Meaning(
        "instructions kept, loosely",
        "The same where a first or last line and the stars of Markdown are passed over (IFEval's loose accuracy).",
        1,
    ),
    "checker/instruction_rate": Meaning(
        "single instructions kept", "Share of all instructions, where a prompt may have several.", 1
    ),
    "checker/instruction_rate_loose": Meaning(
        "single instructions kept, loosely",
        "The same where a first or last line and stars are passed over.",
        1,
    ),
    "checker/prompts": Meaning("prompts checked", "Answered prompts that carry such an instruction."),
    "checker/lost": Meaning(
        "instructions lost",
        "Answered prompts whose instructions were kept before the first step, and are not any more.",
        -1,
    ),
    "checker/gained": Meaning(
        "instructions gained", "Answered prompts whose instructions are kept only since the first step.", 1
    ),
    "answers/mean_words": Meaning(
        "words an answer",
        "Mean length of the greedy answers; of Chinese, Japanese and Thai each character counts, as they write no blanks. "
        "DPO tends to lengthen answers; a large change deserves a look at the samples.",
    ),
    "answers/unended": Meaning(
        "answers that did not end",
        "Share of greedy answers that were cut at evaluation.max_new_tokens: where it is large, length cannot grow.",
    ),
    "judge/win_rate": Meaning(
        "win rate",
        "Mean preference of a judge for the trained model's greedy answers over the SFT model's; 0.5 is no difference.",
        1,
    ),
    "judge/length_controlled_win_rate": Meaning(
        "win rate, length-controlled", "The same of answers of equal length (AlpacaEval 2).", 1
    ),
    "kl/per_token": Meaning(
        "KL from the reference, a token",
        "How far the policy has moved, in nats per token of answers that it sampled itself.",
    ),
    "kl/per_answer": Meaning("KL from the reference, an answer", "The same summed over an answer's tokens."),
    "kl/per_token_stderr": Meaning(
        "KL, standard error", "Of the figure a token: how much other samples would have changed it."
    ),
    "pairs": Meaning("pairs", "Preference pairs that the other figures are means over."),
    "prompts": Meaning("prompts of the pairs", "Different prompts that these pairs are of."),
    "grad_norm": Meaning("gradient norm", "Of all trained weights together, before it is clipped."),
    "router_aux_loss": Meaning("router loss", "Load balance of a mixture-of-experts model's routers.", -1),
}
# Metrics of the short table that ends a run, in its order; the artifact shows all.
HEADLINE = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "checker/pass_rate",
    "answers/mean_words",
)
# A peer's second name for a value -> ours; metrics.jsonl has both, a table for people ours.
SECOND_NAMES = {
    "train_loss": "loss",
    "rewards/accuracy": "rewards/accuracies",
    "rewards/margin": "rewards/margins",
}
# The figures at the top of a report.
TILES = ("rewards/accuracies", "checker/pass_rate", "rewards/margins", "answers/mean_words")
# In the loss's own unit: no comparison between runs of different objectives or betas.
OF_THE_LOSS = ("loss", "rewards/margins")
# Of the last training step, where runs are compared.
LAST_STEP = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "logps_per_token/chosen",
    "logps_per_token/rejected",
    "grad_norm",
)
# Of a sweep's members, which may have several objectives.
OF_MEMBERS = tuple(
    name
    for name in (
        "rewards/accuracies",
        "ranking/accuracies",
        "judge/win_rate",
        "judge/length_controlled_win_rate",
        "checker/pass_rate",
        "kl/per_token",
        *HEADLINE,
    )
    if name not in OF_THE_LOSS
)


BY_SOURCE = "by_source"
OF_A_SOURCE = ("rewards/accuracies", "rewards/margins")  # in training
LOGPS = ("logps/chosen", "logps/rejected", "logps_per_token/chosen", "logps_per_token/rejected")
OF_A_HELD_OUT_SOURCE = (*OF_A_SOURCE, "loss", *LOGPS)
BY_SET = "held_out"


# Of the held-out pairs, while training and before and after it; beside these, metrics by source where there are several.
EVALUATED = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/average",
    "ranking/accuracies",
    *LOGPS,
)


# How sure reward accuracy is, and what it has to be above.
ACCURACY, ACCURACY_ERROR, PROMPTS = "rewards/accuracies", "rewards/accuracies_stderr", "prompts"
MOVED, CHOSEN_LOST = "logps/margins_moved", "logps_per_token/chosen_lost"
LOST_NATS = 3.0  # a token
LENGTH_RULE, OVER_LENGTH_RULE = "length_rule/accuracies", "length_rule/accuracies_above"
OVER_LENGTH_RULE_ERROR = f"{OVER_LENGTH_RULE}_stderr"

# Of answers to held-out prompts; and of those that are sampled, where evaluation.measure_kl asks for it.
UNENDED = "answers/unended"
KEPT, LOST, GAINED = "checker/pass_rate", "checker/lost", "checker/gained"
ANSWERED = (
    "answers/mean_words",
    UNENDED,
    "checker/pass_rate",
    "checker/pass_rate_loose",
    "checker/instruction_rate",
    "checker/instruction_rate_loose",
)
DIVERGENCE = ("kl/per_token", "kl/per_answer")


def direction_of(name: str) -> int:
    """Return the sign of a wanted change of a metric, of a source or a set as well; 0 where neither is good by itself."""
    found = split_by_source(name) or split_by_set(name)
    meaning = MEANINGS.get(found[1] if found else name)
    return meaning.better if meaning else 0


def of_source(source: str, name: str) -> str:
    """Return what a metric over one source's pairs is called; trackers put those of all sources on one page."""
    return f"{BY_SOURCE}/{source}/{name}"


def of_set(name: str, metric: str) -> str:
    """Return what a metric of a named set of ``evaluation.sets`` is called; of no set (""), the mixture's own."""
    return f"{BY_SET}/{name}/{metric}" if name else metric


def split_by_set(name: str) -> tuple[str, str] | None:
    """Return the set and the metric that ``of_set`` has put together; None for another name."""
    prefix, _, rest = name.partition("/")
    of, _, metric = rest.partition("/")
    return (of, metric) if prefix == BY_SET and metric else None


def set_and_metric(name: str) -> tuple[str, str]:
    """Return the set and the metric that a name stands for; no set where it is the mixture's own."""
    return split_by_set(name) or ("", name)


def by_set(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics of each named set under their own names, in order of appearance."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if split := split_by_set(name):
            found.setdefault(split[0], {})[split[1]] = value
    return found


def label_of(name: str) -> str:
    """Return what a metric is called on pages, one of a named set with the set before it."""
    of, metric = split_by_set(name) or ("", name)
    label = MEANINGS[metric].label if metric in MEANINGS else metric.replace("_", " ")
    return f"{of}: {label}" if of else label


def as_evaluated(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics of held-out pairs under the names that tell trackers so, ``step`` apart."""
    return {name if name == "step" else f"eval/{name}": value for name, value in metrics.items()}


def split_by_source(name: str) -> tuple[str, str] | None:
    """Return the source and the metric that ``of_source`` has put together; None for another name."""
    for metric in OF_A_HELD_OUT_SOURCE:
        if name.startswith(f"{BY_SOURCE}/") and name.endswith(f"/{metric}"):
            return name.removeprefix(f"{BY_SOURCE}/").removesuffix(f"/{metric}"), metric
    return None


def source_names(labels: list[str]) -> list[str]:
    """Return a name for each source of a mixture, its label: the second of a label has "#2" behind it."""
    return [
        label if (before := labels[:number].count(label)) == 0 else f"{label}#{before + 1}"
        for number, label in enumerate(labels)
    ]


def tone_of(name: str, before: float | None, after: float | None) -> Literal["", "good", "bad"]:
    """Return "good" or "bad" where a metric moved in a direction that means one of them, else nothing."""
    better = direction_of(name)
    if not better or before is None or after is None or after == before:
        return ""
    return "good" if (after - before) * better > 0 else "bad"
