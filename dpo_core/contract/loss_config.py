"""``LossConfig``: the objective and its settings, held to what the objective is like (``objectives``)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_core.contract.objectives import OBJECTIVES, LossName, Traits, names_where, owner_of
from dpo_core.contract.quantities import Beta
from dpo_core.contract.section import Section

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


def _may_be_empty(schema: dict[str, Any]) -> None:
    """A form's field that may be left empty, as of the settings whose default is None."""
    number = {name: schema.pop(name) for name in ("type", "exclusiveMinimum", "maximum")}
    schema.update(anyOf=[number, {"type": "null"}], default=None)


class LossConfig(Section):
    """The objective. Units of rewards and margins are the loss's own (see docs/losses.md)."""

    name: LossName = Field(
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
        description="Probability that a label is flipped (dpo, dpo_norm, "
        "simpo, wpo, robust, aot, aot_pair); exo_pair needs one, 0.001 as a rule.",
    )
    discopop_tau: float = Field(0.05, gt=0, le=1, description="discopop only: temperature of its mixture.")
    f_divergence: Divergence = Field(
        "reverse_kl",
        description="What holds the policy near the reference (dpo, dpo_norm, "
        "ipo, wpo, hinge, robust, exo_pair, discopop).",
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

    @model_validator(mode="before")
    @classmethod
    def _an_empty_beta_is_the_usual_one(cls, values: Any) -> Any:
        """Resolved here and not in the loss: a job states the number, so its fingerprint is that of a recipe that does."""
        is_empty = isinstance(values, dict) and values.get("beta", 0) is None
        return {name: value for name, value in values.items() if name != "beta"} if is_empty else values

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
    def needs_reference(self) -> bool:
        """Whether the objective compares with reference log-probabilities."""
        return self.traits.needs_reference
