"""The objectives' names and what sets them apart, torch-free. Their functions are in ``dpo_core.loss.losses``.

Settings, plan, trainer and docs/losses.md (a test compares its table) all ask here: a new objective is described once.
"""

from dataclasses import dataclass
from typing import Literal

LossName = Literal[
    "dpo",
    "dpo_norm",
    "simpo",
    "ipo",
    "wpo",
    "hinge",
    "robust",
    "exo_pair",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "nca_pair",
    "bco_pair",
    "aot",
    "aot_pair",
    "discopop",
    "dpop",
    "sft",
]


@dataclass(frozen=True, slots=True)
class Traits:
    """What an objective is like. ``usual_beta`` is in the loss's own unit, ``beta_source`` says who uses it."""

    usual_beta: float
    beta_source: str
    smoothing: Literal["no", "yes", "required"] = "no"  # of labels
    any_divergence: bool = (
        False  # the prompt's term cancels, so that f-divergences other than reverse KL are defined
    )
    needs_reference: bool = True
    per_token: bool = False  # rewards are means over an answer's tokens, not sums
    whole_batch: bool = False  # losses depend on all pairs of the optimizer step together
    mean_reward: bool = False  # takes the mean reward of earlier steps
    weights_pairs: bool = False  # dpo, times a weight of the pair that whole answers give
    target: float | None = None  # the margin that it aims at, whose place a pair's own can take
    token_mean: bool = (
        False  # a mean over the chosen answers' tokens of the optimizer step, not over its pairs
    )
    own_settings: tuple[str, ...] = ()  # of LossConfig, that mean something to this objective alone


TRL_DEFAULT = "TRL's default; the paper names none"
OBJECTIVES: dict[LossName, Traits] = {
    "dpo": Traits(0.1, "paper, appendix B", "yes", any_divergence=True, target=0.0),
    "dpo_norm": Traits(5.0, "Tulu 3 and OLMo 2", "yes", any_divergence=True, per_token=True, target=0.0),
    "simpo": Traits(
        2.0,
        "paper, table 8: 2 to 2.5",
        "yes",
        needs_reference=False,
        per_token=True,
        own_settings=("gamma_beta_ratio",),
    ),
    "ipo": Traits(0.1, TRL_DEFAULT, any_divergence=True, per_token=True, target=0.5),
    "wpo": Traits(0.01, "the authors' models", "yes", any_divergence=True, weights_pairs=True),
    "hinge": Traits(0.1, TRL_DEFAULT, any_divergence=True, target=1.0),
    "robust": Traits(0.01, "paper, section B", "yes", any_divergence=True),
    "exo_pair": Traits(0.1, "paper, section B", "required", any_divergence=True),
    "apo_zero": Traits(0.1, "paper, section 5.2"),
    "apo_down": Traits(0.1, "paper, section 5.2"),
    "sppo_hard": Traits(0.001, "paper, section C: eta 1000"),
    "nca_pair": Traits(0.01, "paper, section C"),
    "bco_pair": Traits(0.01, "paper, section C", mean_reward=True, own_settings=("bco_threshold",)),
    "aot": Traits(0.1, TRL_DEFAULT, "yes", whole_batch=True),
    "aot_pair": Traits(0.1, TRL_DEFAULT, "yes", whole_batch=True),
    "discopop": Traits(0.05, "paper, section B.1", any_divergence=True, own_settings=("discopop_tau",)),
    "dpop": Traits(0.3, "the authors' models", own_settings=("dpop_lambda",)),
    "sft": Traits(
        1.0, "of the reported rewards alone", needs_reference=False, per_token=True, token_mean=True
    ),
}
# Names that people look for, and why there is no such objective.
REFUSED = {
    "tr_dpo": "TR-DPO moves the reference while the policy is trained, and the reference's log-probabilities are computed "
    "once, before training, and kept; after the first move they would be those of another model. Train in rounds "
    "instead: a second run whose checkpoint.source is the first one's result starts with that as its reference"
}


def names_where(trait: str) -> list[LossName]:
    """Return the objectives that have a trait, sorted; for the advice of an error."""

    def has(value: object) -> bool:  # a target of 0 is one
        return value is not False and value is not None and value != "no"

    return sorted(name for name, traits in OBJECTIVES.items() if has(getattr(traits, trait)))


def owner_of(setting: str) -> LossName:
    """Return the one objective that a setting of its own belongs to."""
    return next(name for name, traits in OBJECTIVES.items() if setting in traits.own_settings)
