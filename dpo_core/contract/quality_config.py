"""What is looked for in preference data before a model is trained on it. All of it is off by default."""

from typing import Literal

from pydantic import Field

from dpo_core.contract.section import Section

# What becomes of rows that are found: nothing is looked for; they stay and the ledger tells of them; they go.
Handling = Literal["keep", "count", "drop"]


class QualityConfig(Section):
    """Duplicates: which rows are looked for, and what becomes of them."""

    exact_duplicates: Handling = Field(
        "keep",
        description="Rows that are the same tokens as another: keep does not look for them, count tells of them in "
        "the ledger, drop leaves all but one out. A row that its amount takes several times is no duplicate of itself.",
    )
    duplicates_of: Literal["pair", "prompt"] = Field(
        "pair", description="What is compared: prompt and both answers, or the prompt alone."
    )
    duplicates_across: Literal["all_sources", "each_source"] = Field(
        "all_sources", description="Compare all rows, or only those of one source with each other."
    )
    duplicate_kept: Literal["first", "last"] = Field(
        "first", description="Which of several stays, in the order of the sources and of their rows."
    )

    @property
    def looks(self) -> bool:
        """Whether anything is looked for."""
        return self.exact_duplicates != "keep"
