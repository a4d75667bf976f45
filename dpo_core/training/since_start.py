"""Which instructions the policy keeps now and kept before the first step, prompt by prompt.

A rate of before and one of now tell less than the prompts that changed between them, which the exact sign test looks at. So
the start's verdicts are kept beside the evaluations, and each evaluation counts what was lost and gained since.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from dpo_core.contract.jobs import TrainJob
from dpo_core.contract.metric_names import GAINED, KEPT, LOST, label_of, of_set, set_and_metric
from dpo_core.contract.outcome import Outcome, sign_test, times, told_together
from dpo_core.contract.regular_file import read_regular
from dpo_core.contract.section import Section
from dpo_core.contract.store import write_json
from dpo_core.data.checkers import passes
from dpo_core.training.answers import AskedPrompts

log = logging.getLogger(__name__)
START_FILE = "start_verdicts.json"
LARGEST_BYTES = 64 << 20  # a character a prompt
KEEPS, BREAKS, SILENT = "1", "0", "-"  # silent: the prompt has no instruction


class StartVerdicts(Section):
    """By set ("" stands for the mixture): what was asked, by content, and a character a prompt."""

    asked: dict[str, str] = Field({}, max_length=10_000)
    kept: dict[str, str] = Field({}, max_length=10_000)


def verdicts_of(asked: AskedPrompts, answers: Sequence[str]) -> dict[str, str]:
    """Return which answers keep their prompt's instructions, by set, a character a prompt."""
    prompts = asked.all

    def verdict(number: int) -> str:
        constraints = prompts[number].constraints
        return SILENT if not constraints else KEEPS if passes(answers[number], constraints) else BREAKS

    return {name: "".join(map(verdict, range(len(prompts))[places])) for name, places in asked.parts()}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, float]:
    """Return how many prompts of each set keep their instructions no longer, and how many only now; nothing of a set whose
    prompts have none."""
    found: dict[str, float] = {}
    for name, verdicts in now.items():
        pairs = list(zip(before.get(name, ""), verdicts, strict=False))
        if {KEEPS, BREAKS}.isdisjoint(verdicts) or len(pairs) != len(verdicts):
            continue
        found[of_set(name, LOST)] = float(pairs.count((KEEPS, BREAKS)))
        found[of_set(name, GAINED)] = float(pairs.count((BREAKS, KEEPS)))
    return found


def outcomes_since(start: Mapping[str, float], row: Mapping[str, float], looks: int) -> tuple[Outcome, ...]:
    """Return what became of instructions kept, of the mixture and of each set, told together. Each of so many looks counts:
    of twenty evaluations of a policy that stays as good one falls below 0.05 by chance."""
    found = []
    for name, lost in row.items():
        of, metric = set_and_metric(name)
        kept, gained = of_set(of, KEPT), row.get(of_set(of, GAINED))
        if metric == LOST and gained is not None and kept in start and kept in row:
            chance = sign_test(round(gained), round(lost))
            found.append(Outcome(label_of(kept), start[kept], row[kept], chance))
    return tuple(times(one, looks) for one in told_together(found))


def has_changes(row: Mapping[str, float]) -> bool:
    """Return whether an evaluation was compared with the start, prompt by prompt."""
    return any(set_and_metric(name)[1] == LOST for name in row)


def keep_start(job: TrainJob, asked: dict[str, str], kept: dict[str, str]) -> None:
    """Write the start's verdicts down. ``asked``: as ``Measured.answers`` has it."""
    write_json(_file(job), StartVerdicts(asked=asked, kept=kept))


def read_start(job: TrainJob, asked: dict[str, str]) -> dict[str, str] | None:
    """Return the start's verdicts on what is asked now; None where there are none, or others were asked."""
    try:
        found = StartVerdicts.model_validate_json(read_regular(_file(job), LARGEST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # StoreError is a ValueError
        log.warning("%s cannot be read (%s): the start's answers are made again", _file(job), error)
        return None
    return found.kept if found.asked == asked else None


def _file(job: TrainJob) -> Path:
    return job.out_dir / START_FILE
