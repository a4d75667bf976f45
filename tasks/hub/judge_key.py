"""The key of a judge's endpoint: from a Prefect Secret block by name, or from the environment, for the step ``judge``."""

from collections.abc import Iterator
from contextlib import contextmanager

from dpo_core.contract.judge_config import JUDGE_KEY, JudgeConfig
from tasks.hub.token import load_secret
from tasks.hub.tracker_key import with_secret
from tasks.launch.workplace import Workplace


@contextmanager
def with_judge_key(place: Workplace, judge: JudgeConfig) -> Iterator[Workplace]:
    """Yield the place with JUDGE_API_KEY for the step that names it and no other, if the judge is an endpoint that has a
    key; one on this machine needs none. Raises ``ConfigError`` if the named block does not exist or is empty."""
    block = judge.key_block
    key = load_secret(block, "judge.key_block", JUDGE_KEY) if block else place.context.secret(JUDGE_KEY)
    if judge.kind != "endpoint" or not key:
        yield place
        return
    with with_secret(place, JUDGE_KEY, key) as its_place:
        yield its_place
