"""What is looked for in preference data before a model is trained on it. All of it is off by default."""

from typing import Literal

from pydantic import Field

from dpo_core.contract.section import Section

# What becomes of rows that are found: nothing is looked for; they stay and the ledger tells of them; they go.
Handling = Literal["keep", "count", "drop"]


class QualityRules(Section):
    """Which rows are looked for, and what becomes of them."""

    exact_duplicates: Handling = Field(
        "keep",
        description="Rows that are the same tokens as another: keep does not look for them, count tells of them in "
        "the ledger, drop leaves all but one out. A row that its amount takes several times is no duplicate of itself.",
    )
    near_duplicates: Handling = Field(
        "keep",
        description="Rows that are nearly the same words as another, found by MinHash and compared in full.",
    )
    near_similarity: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="Share of runs of words that prompt, chosen and rejected answer must each have in common.",
    )
    near_ngram_words: int = Field(3, ge=1, le=20, description="Words in a run; 1 leaves their order out.")
    duplicates_of: Literal["pair", "prompt"] = Field(
        "pair", description="What is compared: prompt and both answers, or the prompt alone."
    )
    duplicates_across: Literal["all_sources", "each_source"] = Field(
        "all_sources", description="Compare all rows, or only those of one source with each other."
    )
    duplicate_kept: Literal["first", "last"] = Field(
        "first", description="Which of several stays, in the order of the sources and of their rows."
    )
    contaminated: Literal["count", "drop"] = Field(
        "drop", description="What becomes of rows that overlap with evaluation_sets."
    )
    contamination_ngram_words: int = Field(
        8, ge=1, le=50, description="Words in a run that matches; Tulu 3 takes 8."
    )
    contamination_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="A row overlaps with an evaluation instance when more than this share of the instance's words match.",
    )


class EvaluationSet(Section):
    """One evaluation set that prompts are compared with."""

    source: str = Field(description="Hub data set id, or a local file or directory, as of data.sources.")
    split: str = Field("test", description="Split of a Hub data set; local files have only `train`.")
    revision: str | None = Field(
        None, description="Hub branch, tag or commit; resolved to a commit and recorded."
    )
    subset: str | None = Field(None, description="Configuration name of a Hub data set.")
    fields: tuple[str, ...] = Field(
        ("prompt",), min_length=1, description="Columns with an instance's text, e.g. [question]."
    )


class QualityConfig(QualityRules):
    """Duplicates, overlap with evaluation sets: what is looked for before a model is trained."""

    evaluation_sets: tuple[EvaluationSet, ...] = Field(
        (), description="Sets whose instances the prompts of training rows must not hold."
    )

    @property
    def rules(self) -> QualityRules:
        """All but the sets."""
        return QualityRules(**{name: getattr(self, name) for name in QualityRules.model_fields})
