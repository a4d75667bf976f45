"""``LossConfig``: the objective and its settings, held to what the objective is like (``objectives``); ``LossSum``: several.

A job holds a ``Loss``, which is one of the two. What both can be asked is a ``Loss``'s own.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpo_core.contract.objectives import OBJECTIVES, REFUSED, LossName, Traits, names_where, owner_of
from dpo_core.contract.quantities import Beta
from dpo_core.contract.section import ContentAs, NotContentAt, Section

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


def _may_be_empty(schema: dict[str, Any]) -> None:
    """A form's field that may be left empty, as of the settings whose default is None."""
    number = {name: schema.pop(name) for name in ("type", "exclusiveMinimum", "maximum")}
    schema.update(anyOf=[number, {"type": "null"}], default=None)


def _with_alignment(value: object) -> object:
    """What weighs by the policy, apart from what did so before weights were aligned."""
    return [value, "aligned"] if value in ("wpo", True) else value


class Objectives(Section):
    """What one objective and a weighted sum of several can both be asked."""

    @property
    def parts(self) -> "tuple[tuple[float, LossConfig], ...]":
        """(weight, objective) of each."""
        raise NotImplementedError

    def any_is(self, trait: str) -> bool:
        """Return whether one of the objectives has a trait."""
        return any(getattr(part.traits, trait) for _, part in self.parts)

    @property
    def needs_reference(self) -> bool:
        """Whether an objective compares with reference log-probabilities."""
        return self.any_is("needs_reference")

    @property
    def weighs_by_policy(self) -> bool:
        """Whether an objective weighs pairs by how likely the policy finds them (WPO)."""
        return any(part.wpo_weighting or part.traits.weights_pairs for _, part in self.parts)

    @property
    def ignores_weights(self) -> bool:
        """Whether a pair has no loss of its own that could weigh more or less than another's."""
        return self.any_is("whole_batch")

    @property
    def ignores_margins(self) -> bool:
        """Whether no objective aims at a margin whose place a pair's own could take."""
        return self.any_is("whole_batch") or all(part.traits.target is None for _, part in self.parts)

    @property
    def rewarding(self) -> "LossConfig":
        """The objective whose rewards are reported: bco_pair, whose threshold is their mean, else the first that compares
        two answers."""
        parts = [part for _, part in self.parts]
        compared = [part for part in parts if not part.traits.token_mean] or parts
        return next((part for part in parts if part.traits.mean_reward), compared[0])

    @property
    def title(self) -> str:
        """ "dpo", or "0.8 dpo + 0.2 sft"."""
        if len(self.parts) == 1:
            return self.parts[0][1].name
        return " + ".join(f"{weight:g} {part.name}" for weight, part in self.parts)


class LossConfig(Objectives):
    """The objective. Units of rewards and margins are the loss's own (see docs/losses.md)."""

    name: Annotated[LossName, ContentAs(_with_alignment)] = Field(
        "dpo_norm", description="dpo_norm is DPO on mean log-probabilities per token (Tulu 3)."
    )
    beta: Beta = Field(
        default_factory=lambda others: OBJECTIVES[others["name"]].usual_beta,
        json_schema_extra=_may_be_empty,
        description="Inverse temperature. Empty: the objective's usual one, 5 for dpo_norm, 0.1 for dpo, 2 for simpo ...",
    )
    gamma_beta_ratio: float = Field(
        0.3, ge=0, le=1_000_000, description="simpo only: target margin divided by beta."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description=f"Probability that a label is flipped ({', '.join(names_where('smoothing'))}); exo_pair needs one, "
        "0.001 as a rule.",
    )
    discopop_tau: float = Field(0.05, gt=0, le=1, description="discopop only: temperature of its mixture.")
    f_divergence: Divergence = Field(
        "reverse_kl",
        description=f"What holds the policy near the reference ({', '.join(names_where('any_divergence'))}).",
    )
    alpha_divergence_coef: float = Field(
        0.5, gt=0, lt=1, description="alpha_divergence only: near 0 it is reverse_kl, near 1 forward_kl."
    )
    ld_alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of the tokens of the longer answer beyond the shorter "
        "one's length (LD-DPO); 1 is off.",
    )
    rpo_alpha: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description="Weight of an added mean negative log-likelihood per token of the "
        "chosen answer (RPO); 0 is off.",
    )
    wpo_weighting: Annotated[bool, NotContentAt(False), ContentAs(_with_alignment)] = Field(
        False,
        description="Weigh each pair by how likely the policy finds its two answers (WPO), under any objective that "
        "does not sort a batch.",
    )
    dpop_lambda: Annotated[float, NotContentAt(50.0)] = Field(
        50.0,
        ge=0,
        le=1_000_000,
        description="dpop only: weight of what the chosen answer has lost against the reference.",
    )
    bco_threshold: Annotated[float | None, NotContentAt(None)] = Field(
        None,
        ge=-1_000_000,
        le=1_000_000,
        description="bco_pair only: a threshold that stays (TRL has 0). Empty: the mean reward so far.",
    )

    @model_validator(mode="before")
    @classmethod
    def _an_empty_beta_is_the_usual_one(cls, values: Any) -> Any:
        """Resolved here and not in the loss: a job states the number, so its fingerprint is that of a recipe that does."""
        is_empty = isinstance(values, dict) and values.get("beta", 0) is None
        return {name: value for name, value in values.items() if name != "beta"} if is_empty else values

    @model_validator(mode="before")
    @classmethod
    def _refused_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and (reason := REFUSED.get(str(values.get("name")))):
            raise ValueError(reason)
        return values

    @model_validator(mode="after")
    def _settings_fit_the_objective(self) -> "LossConfig":
        name, traits = self.name, self.traits
        if self.label_smoothing and traits.smoothing == "no":
            raise ValueError(
                f"{name} defines no label smoothing; set loss.label_smoothing to 0 or choose one of "
                f"{', '.join(names_where('smoothing'))}"
            )
        if traits.smoothing == "required" and not self.label_smoothing:
            raise ValueError(
                f"{name} needs label smoothing, as it takes its logarithm; set loss.label_smoothing to 0.001"
            )
        if self.f_divergence != "reverse_kl" and not traits.any_divergence:
            raise ValueError(
                f"{name} is defined for reverse_kl alone; set loss.f_divergence to reverse_kl or choose one of "
                f"{', '.join(names_where('any_divergence'))}"
            )
        if traits.weights_pairs and self.ld_alpha < 1:
            raise ValueError(
                f"{name} weights pairs by whole answers, which loss.ld_alpha would change; set loss.ld_alpha "
                "to 1 or choose dpo"
            )
        if traits.token_mean and self.ld_alpha < 1:
            raise ValueError(
                f"{name} looks at one answer alone, so loss.ld_alpha means nothing to it; leave it out"
            )
        if self.wpo_weighting and (traits.whole_batch or traits.weights_pairs):
            why = (
                "weighs pairs so by itself"
                if traits.weights_pairs
                else "sorts a batch, so that its losses are no pair's"
            )
            raise ValueError(f"{name} {why}; leave loss.wpo_weighting out or choose another objective")
        if self._is_set("alpha_divergence_coef") and self.f_divergence != "alpha_divergence":
            raise ValueError(
                f"loss.alpha_divergence_coef means nothing to {self.f_divergence}; leave it out or set "
                "loss.f_divergence to alpha_divergence"
            )
        for setting in {own for each in OBJECTIVES.values() for own in each.own_settings} - set(
            traits.own_settings
        ):
            if self._is_set(setting):
                raise ValueError(
                    f"loss.{setting} means nothing to {name}; leave it out or choose {owner_of(setting)}"
                )
        return self

    def _is_set(self, setting: str) -> bool:
        """Whether a setting differs from its default (a job's file states them all)."""
        return getattr(self, setting) != type(self).model_fields[setting].default

    @property
    def traits(self) -> Traits:
        """What the objective is like."""
        return OBJECTIVES[self.name]

    @property
    def parts(self) -> "tuple[tuple[float, LossConfig], ...]":
        """Itself."""
        return ((1.0, self),)


class LossTerm(LossConfig):
    """A term of a weighted sum: an objective with settings of its own."""

    weight: float = Field(1.0, gt=0, le=1e6, description="What the objective is multiplied with.")


class LossSum(Objectives):
    """A weighted sum of objectives (MPO, arXiv 2411.10442, eq. 1)."""

    terms: tuple[LossTerm, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_threshold(self) -> "LossSum":
        if sum(part.traits.mean_reward for _, part in self.parts) > 1:
            raise ValueError(
                "losses names bco_pair twice; its threshold is the mean of one set of rewards, keep one"
            )
        return self

    @property
    def parts(self) -> tuple[tuple[float, LossConfig], ...]:
        """Its terms."""
        return tuple((term.weight, term) for term in self.terms)


Loss = LossConfig | LossSum
