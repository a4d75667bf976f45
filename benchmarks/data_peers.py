"""Three ways from preference rows to token ids and labels, which ``benchmarks.data`` compares.

    pairline  our step ``mix`` as it is: read the file, select, convert, tokenise, split, write, hash
    trl       TRL's own ``DPOTrainer._prepare_dataset`` on rows whose prompt is already apart (its cheapest input)
    per_row   the seed workflow's procedure, written anew: one ``datasets.map`` call per row, then a filter

The rows of the peers are loaded before the clock starts; ours are read from the file while it runs.
"""

import os
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

Prepared = Callable[
    [], list[Sized]
]  # runs the preparation and gives the rows it made, in one part or several
IGNORED = -100  # label of a token without loss, in both peers


@dataclass(frozen=True, slots=True)
class Work:
    """One measurement: which rows, how long, how many processes."""

    rows: Path  # .jsonl of {"prompt": turns, "chosen": [turn], "rejected": [turn]}
    tokenizer: Path
    folder: Path  # empty; for what the run writes
    max_length_tokens: int
    num_workers: int
    drops_duplicates: bool = False  # exact and near ones; ours alone


def pairline(work: Work) -> Prepared:
    """Our step; gives both splits. It loads the tokenizer itself while the clock runs."""
    import pandas  # noqa: F401  # pyarrow imports it at its first array; the peers' libraries have by then

    from dpo_core.contract.data_jobs import MixJob
    from dpo_core.contract.progress import Progress
    from dpo_core.contract.quality_config import Handling, QualityRules
    from dpo_core.contract.refs import ResolvedSource
    from dpo_core.data.chat_template import Renderer
    from dpo_core.data.pair_dataset import PairDataset
    from dpo_core.data.tokenizer import load_tokenizer
    from dpo_core.steps import mix

    handling: Handling = "drop" if work.drops_duplicates else "keep"
    source = ResolvedSource(label="rows", path=work.rows, content=str(work.rows))
    job = MixJob(
        sources=(source,),
        tokenizer_path=work.tokenizer,
        tokenizer_fingerprint="",
        cache_dir=work.folder / "cache",
        max_length_tokens=work.max_length_tokens,
        num_workers=work.num_workers,
        quality=QualityRules(exact_duplicates=handling, near_duplicates=handling),
    )
    job = job.at(work.folder / "mix")
    Renderer(load_tokenizer(work.tokenizer)).render(
        [[{"role": "user", "content": ""}]], [None]
    )  # imports happen here

    def run() -> list[PairDataset]:
        data = mix.run(job, Progress("mix", active=False)).data
        return [PairDataset.open(data.path, "train"), PairDataset.open(data.path, "held_out")]

    return run


def _dataset(work: Work):
    from datasets import load_dataset

    return load_dataset(
        "json", data_files=str(work.rows), split="train", cache_dir=str(work.folder / "cache")
    )


def _num_proc(work: Work) -> int | None:
    return work.num_workers if work.num_workers > 1 else None  # datasets starts a process for num_proc=1 too


def trl(work: Work) -> Prepared:
    """TRL's preparation of a data set; gives the rows left."""
    from trl import DPOConfig, DPOTrainer

    tokenizer, dataset = AutoTokenizer.from_pretrained(work.tokenizer), _dataset(work)
    args = DPOConfig(
        output_dir=str(work.folder / "trl"),
        max_length=work.max_length_tokens,
        report_to="none",
        use_cpu=True,
        bf16=False,
        dataset_num_proc=_num_proc(work),
    )
    # The method needs of a trainer its tokenizer alone, and the rest of a trainer would only add to its time.
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._tokenizer = tokenizer
    return lambda: [trainer._prepare_dataset(dataset, tokenizer, args, "train")]


def encode_row(row: dict, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> dict[str, list[int]]:
    """The seed workflow's row: each side whole and cut on the right, labels on the last assistant turn alone.

    The prompt's tokens, with the assistant's header, are counted and masked.
    """
    encoded = {}
    for side in ("chosen", "rejected"):
        turns = row["prompt"] + row[side]
        limits = {
            "tokenize": True,
            "truncation": True,
            "max_length": max_length_tokens,
            "return_dict": False,
            "return_tensors": "pt",
        }
        ids = tokenizer.apply_chat_template(turns, **limits)[0]
        num_prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, **limits).shape[1]
        labels = ids.clone()
        labels[:num_prompt] = IGNORED
        encoded |= {
            f"{side}_input_ids": ids.tolist(),
            f"{side}_attention_mask": [1] * len(ids),
            f"{side}_labels": labels.tolist(),
        }
    return encoded


def has_labels(row: dict) -> bool:
    """Whether both sides of an encoded row kept a token to train on."""
    return all(any(label != IGNORED for label in row[f"{side}_labels"]) for side in ("chosen", "rejected"))


def per_row(work: Work) -> Prepared:
    """The seed workflow's mapping; gives the rows left."""
    tokenizer, dataset = AutoTokenizer.from_pretrained(work.tokenizer), _dataset(work)
    arguments = {"tokenizer": tokenizer, "max_length_tokens": work.max_length_tokens}

    def run() -> list:
        mapped = dataset.map(
            encode_row, fn_kwargs=arguments, remove_columns=dataset.column_names, num_proc=_num_proc(work)
        )
        return [mapped.filter(has_labels, num_proc=_num_proc(work))]

    return run


def readers(work: Work) -> Prepared:
    """What later steps hold of a mixture in memory: both splits, reference values aligned with them, one epoch's order.

    The mixture is the one that ``pairline`` left in ``work.folder``; gives both splits.
    """
    import numpy as np

    from dpo_core.data.order import forward_tokens, step_rows
    from dpo_core.data.pair_dataset import PairDataset
    from dpo_core.data.reference_cache import (
        ReferenceCache,
        ReferenceRows,
        read_aligned,
        write_aligned,
        write_shard,
    )

    def run() -> list[PairDataset]:
        splits = []
        for split in ("train", "held_out"):
            dataset = PairDataset.open(work.folder / "mix" / "data", split)
            cache = work.folder / "reference" / split
            cache.mkdir(parents=True)
            for first in range(0, len(dataset), 1024):
                keys = dataset.row_keys[first : first + 1024]
                write_shard(
                    cache,
                    keys,
                    ReferenceRows(
                        *(np.ones((len(keys), 2), kind) for kind in (np.float32, np.int32, np.float32))
                    ),
                )
            shards = ReferenceCache(cache)
            assert not shards.is_missing(dataset.row_keys).any()
            write_aligned(cache / f"{split}.npz", dataset.row_keys, shards.look_up(dataset.row_keys))
            assert len(read_aligned(cache, split, dataset.row_keys).sums) == len(dataset)
            forward_tokens(dataset.lengths, dataset.prefix_lengths, "prefix_sharing")
            rows = step_rows(0, len(dataset), 1024, seed=0) if len(dataset) else []
            splits.append(dataset)
            for row in rows:
                assert len(dataset[row].chosen_ids)
        return splits

    return run


PEERS: dict[str, Callable[[Work], Prepared]] = {
    "pairline": pairline,
    "trl": trl,
    "per_row": per_row,
    "readers": readers,
}


def _cpu_seconds() -> float:
    """User and system seconds of this process and of the children that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_timed(name: str, work: Work) -> dict[str, float]:
    """Rows left, wall seconds and processor seconds of one peer; imports and loading of the peers' rows left out."""
    run = PEERS[name](work)
    start, cpu_at_start = time.perf_counter(), _cpu_seconds()
    rows = sum(map(len, run()))
    return {
        "rows": rows,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu_seconds() - cpu_at_start,
    }
