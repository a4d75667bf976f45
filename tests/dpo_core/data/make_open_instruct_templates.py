"""Write open_instruct_templates.json anew: what open-instruct's own templates and functions make of our rows, as hashes.

    git clone https://github.com/allenai/open-instruct
    python -m tests.dpo_core.data.make_open_instruct_templates open-instruct

Of their packages it needs one file, ``open_instruct/dataset_transformation.py``; two functions that it imports from a module
with many packages of its own, and does not call here, are left out.
"""

import argparse
import json
import subprocess
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType

from dpo_core.data.pairs import PreferencePair
from tests.dpo_core.data.open_instruct_rows import (
    function_conversations,
    many_pairs,
    pairs,
    plain_conversations,
    sha,
)
from tests.tiny_models import make_tokenizer

FILE = Path(__file__).with_name("open_instruct_templates.json")
MAX_LENGTH_TOKENS = 2048


def their_code(checkout: Path) -> ModuleType:
    """Import what tokenises."""
    sys.path.insert(0, str(checkout))
    unused = ModuleType("open_instruct.utils")
    unused.hf_whoami = unused.max_num_processes = None
    sys.modules[unused.__name__] = unused
    return import_module("open_instruct.dataset_transformation")


def main() -> None:
    """Take the folder of a checkout, and its commit where the folder is no repository."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit")
    asked = parser.parse_args()
    head = ["git", "-C", str(asked.checkout), "rev-parse", "HEAD"]
    commit = asked.commit or subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    theirs = their_code(asked.checkout.absolute())
    content = {
        "repository": "allenai/open-instruct",
        "commit": commit,
        "functions": "preference_tulu_tokenize_and_truncate_v1_2, preference_tulu_filter_v1, "
        f"{MAX_LENGTH_TOKENS} tokens; null: filtered",
        "templates": {name: of_template(theirs, text) for name, text in theirs.CHAT_TEMPLATES.items()},
    }
    FILE.write_text(json.dumps(content, indent=1) + "\n")


def of_template(theirs: ModuleType, text: str) -> dict[str, object]:
    """Hashes of the texts, of each of few rows, and of many rows together."""
    tokenizer = make_tokenizer(text)
    reads_functions = "function_calls" in text
    conversations = plain_conversations() + (function_conversations() if reads_functions else [])
    rendered = [
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn)
        for turns in conversations
        for open_turn in (False, True)
    ]
    rows = [tokenised(theirs, tokenizer, pair) for pair in pairs()]
    many = [tokenised(theirs, tokenizer, pair) for pair in many_pairs()]
    kept = [masks for _, masks in many if masks is not None]
    return {
        "rendered": sha(rendered),
        "rows": [{"ids": sha(ids), "trained": masks and sha(masks)} for ids, masks in rows],
        "many": {
            "ids": sha([ids for ids, _ in many]),
            "trained": sha(kept),
            "kept": runs([masks is not None for _, masks in many]),
        },
    }


def tokenised(theirs: ModuleType, tokenizer: object, pair: PreferencePair) -> tuple[list, list | None]:
    """Ids of both sides and, unless their filter drops the row, which of them are trained (1)."""
    row = {"chosen": pair.chosen, "rejected": pair.rejected}
    made = theirs.preference_tulu_tokenize_and_truncate_v1_2(row, tokenizer, MAX_LENGTH_TOKENS)
    ids, labels = (
        [[int(each) for each in made[f"{side}_{what}"].flatten()] for side in ("chosen", "rejected")]
        for what in ("input_ids", "labels")
    )
    by_side = {f"{side}_labels": of for side, of in zip(row, labels, strict=True)}
    if not theirs.preference_tulu_filter_v1(by_side, tokenizer):
        return ids, None
    return ids, [[int(label != theirs.MASKED_TOKEN_VALUE) for label in side] for side in labels]


def runs(flags: list[bool]) -> list[int]:
    """How many are kept, how many then are not, and so on in turn."""
    counts = [len(list(group)) for _, group in groupby(flags)]
    return counts if flags[0] else [0, *counts]


if __name__ == "__main__":
    main()
