"""Progress of a step whose shares are jobs of their own: one line out of all of theirs."""

import json
from dataclasses import dataclass, field

from dpo_core.contract.progress import MARK, ProgressEvent


@dataclass
class SharesProgress:
    """One line of progress out of those of all shares, of which some have not begun."""

    count: int
    seen: dict[int, ProgressEvent] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def merged(self, share: int, event: ProgressEvent) -> str:
        """Return the line once this share has told where it stands."""
        self.seen[share] = event
        each = sum(event.total for event in self.seen.values()) / len(self.seen)
        ended = {one: self.seen[one].total if one in self.seen else each for one in self.done}
        at_work = [one for number, one in self.seen.items() if number not in self.done]
        done = sum(ended.values()) + sum(one.done for one in at_work)
        update = {
            "done": round(done),
            "total": round(each * self.count),
            "rate": sum(one.rate for one in at_work),
        }
        return json.dumps({MARK: "progress", **event.model_copy(update=update).model_dump()})
