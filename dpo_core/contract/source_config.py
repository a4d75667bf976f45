"""One set of the mixture as a recipe names it. Torch-free."""

from typing import Literal

from pydantic import Field, model_validator

from dpo_core.contract.amount import Amount
from dpo_core.contract.chat_templates import TemplateArguments
from dpo_core.contract.section import Section

OUR_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "system",
    "tools",
    "constraints",
    "instruction_id_list",
    "kwargs",
    "chat_template_kwargs",
    "weight",
    "margin",
    "answers",
    "scores",
    "ranks",
)
PairRule = Literal["best_worst", "best_random", "all"]


class DataSource(Section):
    """One preference set of the mixture."""

    source: str = Field(
        description="Hub data set id, or a local .jsonl, .json, .jsonl.gz, .parquet file or directory. A "
        "relative path starts at the working directory."
    )
    amount: Amount = Field(
        "1.0",
        description="With a dot a proportion of the split (0.5, 1.0, 3.0), without one a "
        "number of rows (100).",
    )
    split: str = Field("train", description="Split of a Hub data set; local files have only `train`.")
    revision: str | None = Field(
        None, description="Hub branch, tag or commit; resolved to a commit and recorded."
    )
    subset: str | None = Field(None, description="Configuration name of a Hub data set.")
    columns: dict[str, str] = Field(
        {},
        description="Our column -> the set's column, e.g. {chosen: winner}. Ours are "
        "prompt, chosen, rejected, conversations, system, tools, constraints, instruction_id_list, kwargs, "
        "chat_template_kwargs; weight and margin are numbers of a pair that are used where they are named here "
        "(docs/losses.md), and so are answers, scores and ranks "
        "(see pairs).",
    )
    pairs: PairRule | None = Field(
        None,
        description="Which pairs a row of several answers gives. Its columns are named as {answers: completions.response, "
        "scores: completions.overall_score} (the higher the better) or {answers: ..., ranks: ...} (1 is best). best_worst: "
        "the best answer against the worst; best_random: against one drawn among those that are worse, by data.seed and "
        "the row's number; all: each answer against every worse one.",
    )
    chat_template_kwargs: TemplateArguments = Field(
        {},
        description="Variables that the chat template is given for this set's rows, e.g. {enable_thinking: false}. A "
        "row's own column chat_template_kwargs goes before it, name by name.",
    )

    @model_validator(mode="after")
    def _maps_our_columns(self) -> "DataSource":
        if unknown := [ours for ours in self.columns if ours not in OUR_COLUMNS]:
            raise ValueError(
                f"columns names `{unknown[0]}`, which is none of ours: {', '.join(OUR_COLUMNS)}. The map goes from our "
                "column to theirs, e.g. {chosen: winner}"
            )
        if blank := [ours for ours, theirs in self.columns.items() if not theirs.strip()]:
            raise ValueError(f"columns names no column of the set for {blank[0]}: leave it out, or name one")
        if (side := self.columns.get("chosen")) and side == self.columns.get("rejected"):
            raise ValueError(
                f"columns names `{side}` for both chosen and rejected, which would be the same answer"
            )
        return self

    @model_validator(mode="after")
    def _names_what_pairs_are_made_of(self) -> "DataSource":
        named = {name for name in ("answers", "scores", "ranks") if name in self.columns}
        if self.pairs is None and named:
            raise ValueError(
                f"columns names {', '.join(sorted(named))}, of which pairs are made by a rule: set pairs to best_worst, "
                "best_random or all"
            )
        if self.pairs is not None and named not in ({"answers", "scores"}, {"answers", "ranks"}):
            raise ValueError(
                "pairs needs columns {answers: ..., scores: ...}, or ranks in place of scores: the columns of the set that "
                "hold a row's answers and how good each is"
            )
        if self.pairs is not None and (taken := {"chosen", "rejected"} & set(self.columns)):
            raise ValueError(
                f"columns names {', '.join(sorted(taken))} beside answers; with pairs both sides come from the answers"
            )
        return self
