"""What a judge found: how often the trained model's answers are better than the SFT model's."""

from typing import Literal

from dpo_core.contract.outcome import Outcome, sign_test
from dpo_core.contract.section import Section

JUDGED = "judge/"  # what names of a judge's metrics begin with
PREFERRED = "answers that win"  # what its outcome is called
WIN_RATE, LENGTH_CONTROLLED = "judge/win_rate", "judge/length_controlled_win_rate"
Preferred = Literal["before", "after", "tie"]


class Opinion(Section):
    """Of one prompt's two answers. ``preference``: that the trained model's is the better one, 0 to 1."""

    preference: float | None  # None: what the judge said could not be read
    scores: tuple[float, float] | None = (
        None  # a reward model's, of the SFT model's answer and of the trained one's
    )
    orders: tuple[Preferred | None, ...] = ()  # an endpoint's, with the SFT model's answer first, then second


class JudgeFigures(Section):
    """Rates are of the prompts that were judged; ``*_stderr`` their standard errors over prompts."""

    kind: Literal["reward_model", "endpoint"]
    model: str
    num_prompts: int  # judged
    unreadable: int = 0  # prompts beside these, on which the judge said nothing that could be read
    wins: int
    ties: int
    losses: int
    same: int | None = None  # ties of answers that are the same text; None in judgements of before
    win_rate: float  # mean preference
    win_rate_stderr: float | None
    length_controlled: float | None  # see dpo_core/judging/length_control.py; None where lengths tell nothing
    length_controlled_stderr: float | None
    characters_before: float  # mean length of the SFT model's answers
    characters_after: float
    cut: int = 0  # answers that a reward model saw without the beginning of their prompt
    agreement: float | None = (
        None  # share of the prompts with two different answers that have the same verdict in both orders
    )
    first_chosen: float | None = None  # share of verdicts, ties aside, for the answer that stood first
    prompt_tokens: int = 0  # of all questions behind the figures, those of earlier runs, too
    completion_tokens: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Return what gates, sweeps and hand-offs call them."""
        found = {WIN_RATE: self.win_rate}
        return (
            found if self.length_controlled is None else found | {LENGTH_CONTROLLED: self.length_controlled}
        )

    @property
    def outcome(self) -> Outcome:
        """Prompts won against prompts lost, by the exact sign test; ties count half, and tell nothing."""
        share = (self.wins + self.ties / 2) / self.num_prompts
        return Outcome(PREFERRED, 0.5, share, sign_test(self.wins, self.losses))

    def cost(self, price_in: float, price_out: float) -> float:
        """Return what its tokens cost, at prices of a million."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6
