"""What a model and preference data hold, looked at before there is a recipe: formats, lengths, template, size, memory.

The looking is step ``mix`` over some rows, with the model's own tokenizer: it drops, cuts and counts what a run would.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_core.contract.chat_templates import is_template_text
from dpo_core.contract.checkpoint_files import tokenizer_fingerprint
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.data_jobs import LengthStats, MixJob, MixResult, SourceLedger
from dpo_core.contract.source_config import DataSource
from flows.settings.stage_config import StageConfig
from flows.terminal.model_size import ModelSize, model_size
from flows.terminal.source_size import source_size
from tasks.checkpoint.chosen_template import chosen_template
from tasks.checkpoint.files import CONFIG, TEMPLATE_FILES, WeightSource
from tasks.checkpoint.other_tokenizer import with_tokenizer
from tasks.checkpoint.own_files import read_json_file
from tasks.checkpoint.source import locate
from tasks.data.sources import check_sources, resolve_sources
from tasks.fetch_checkpoint import convert
from tasks.launch.compute import Machine, card_memory_bytes, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import launcher_for
from tasks.launch.run_job import in_store, reusable_result
from tasks.launch.workplace import Workplace
from tasks.mix_data import PinnedTokenizer, apart_from, fetch_rows, mix_job, sets_job

ROWS_LOOKED_AT = 2000  # of each source; two seconds of tokenising
ROWS_SHOWN_OF = 100  # the same, where a few rows are shown
NO_WEIGHTS = WeightSource("safetensors", ())
LONGEST_LOOKED_AT = 2048  # tokens; longer pairs are counted as cut


@dataclass(frozen=True, slots=True)
class Look:
    """What was found."""

    checkpoint: CheckpointConfig
    sources: tuple[DataSource, ...]
    size: ModelSize
    template: str  # which chat template it has, in words
    context_tokens: int | None  # longest sequence that the model was made for
    ledgers: tuple[SourceLedger, ...]
    lengths: LengthStats
    machine: Machine
    card_bytes: int  # memory of a card, 0 without one

    @property
    def num_rows(self) -> int:
        """About how many rows of all sources a mixture keeps."""
        return sum(
            round(one.available_rows * one.kept / (one.rows_in - one.extra_pairs)) for one in self.ledgers
        )

    @property
    def cut_fraction(self) -> float:
        """Share of the kept rows that are longer than what was looked at."""
        return sum(one.truncated for one in self.ledgers) / max(1, sum(one.kept for one in self.ledgers))

    @property
    def memory_bytes(self) -> int:
        """Memory that a training process may fill: a card's, or the machine's."""
        return self.card_bytes or self.machine.memory_bytes


def look(checkpoint: CheckpointConfig, sources: tuple[DataSource, ...], store_root: Path) -> Look:
    """Look at both. Rows and a converted GGUF stay in the store, where the run finds them.

    Raises ``CheckpointError`` for a model that cannot be used, ``DataError`` for data in which no pair is recognised,
    ``RemoteError`` when the Hub does not answer.
    """
    store_root = store_root.expanduser().resolve()
    check_sources(sources)
    place = Workplace(store_root, launcher_for(ComputeConfig()))
    tokenizer = pinned_tokenizer(checkpoint, place)
    some = tuple(source.model_copy(update={"amount": _some(source, ROWS_LOOKED_AT)}) for source in sources)
    chosen = chosen_template(checkpoint)
    job = MixJob(
        sources=resolve_sources(some),
        tokenizer_path=tokenizer.path,
        tokenizer_fingerprint=tokenizer.fingerprint,
        chat_template=chosen.template,
        add_bos=chosen.add_bos,
        held_out="0",
        max_length_tokens=LONGEST_LOOKED_AT,
        max_dropped_fraction=1.0,
        cache_dir=store_root / "cache",
    )
    fetch_rows(job, place)
    mixed = place.run(job)
    return Look(
        checkpoint=checkpoint,
        sources=sources,
        size=model_size(checkpoint),
        template=_template(checkpoint, tokenizer.path),
        context_tokens=_context(tokenizer.path),
        ledgers=mixed.per_source,
        lengths=mixed.lengths,
        machine=this_machine(),
        card_bytes=card_memory_bytes(),
    )


def look_at_rows(config: StageConfig) -> tuple[MixResult, bool]:
    """Return a recipe's mixture, if the store has it, else one of its sources' first rows; and whether it is the first.

    Raises as ``look`` does, and ``ConfigError``.
    """
    store_root = config.store.root.expanduser().resolve()
    place = Workplace(store_root, launcher_for(ComputeConfig()))
    tokenizer, cache = pinned_tokenizer(config.checkpoint, place), store_root / "cache"
    whole = mix_job(config.data, config.quality, config.checkpoint, tokenizer, cache)
    sets = _sets(config, tokenizer, store_root)
    if sets:
        whole = apart_from(whole, sets)
    if (sets or not config.evaluation.sets) and (made := reusable_result(in_store(whole, store_root))):
        return made, True
    sources = tuple(
        source.model_copy(update={"amount": _some(source, ROWS_SHOWN_OF)}) for source in config.data.sources
    )
    some = config.data.model_copy(update={"sources": sources, "held_out": "0", "max_dropped_fraction": 1.0})
    job = mix_job(some, config.quality, config.checkpoint, tokenizer, cache)
    fetch_rows(job, place)
    return place.run(job), False


def _sets(config: StageConfig, tokenizer: PinnedTokenizer, store_root: Path) -> MixResult | None:
    """The mixed sets of ``evaluation.sets``, if there are any and the store has them."""
    if not config.evaluation.sets:
        return None
    job = sets_job(config.data, config.evaluation.sets, config.checkpoint, tokenizer, store_root / "cache")
    return reusable_result(in_store(job, store_root))


def pinned_tokenizer(checkpoint: CheckpointConfig, place: Workplace) -> PinnedTokenizer:
    """Return a checkpoint's tokenizer without fetching its weights. Raises ``CheckpointError``, ``RemoteError``."""
    located = convert(locate(checkpoint, place.store, with_weights=False), place)
    located = with_tokenizer(replace(located, weights=NO_WEIGHTS), checkpoint, place.store)
    files = located.hashes(checkpoint)
    return PinnedTokenizer(located.small or located.folder, tokenizer_fingerprint(files))


def _some(source: DataSource, most: int) -> str:
    """An amount that takes every row of a small set, as far as its size is known, and the same number of any other."""
    rows = source_size(source).rows
    return "1.0" if rows is not None and rows <= most else str(most)


def _template(checkpoint: CheckpointConfig, folder: Path) -> str:
    if checkpoint.chat_template:
        return (
            "the chat template given"
            if is_template_text(checkpoint.chat_template)
            else f"the chat template {checkpoint.chat_template}"
        )
    found = [name for name in TEMPLATE_FILES if (folder / name).is_file()] or ["tokenizer_config.json"]
    return f"its own chat template ({found[0]})"


def _context(folder: Path) -> int | None:
    positions = read_json_file(folder / CONFIG).get("max_position_embeddings")
    return positions if isinstance(positions, int) and positions > 0 else None


def formats_of(ledger: SourceLedger) -> str:
    """Return "messages", or several with their shares: "messages 90 %, prompt_text 10 %"."""
    counts = Counter(ledger.format)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(
        f"{name} {count / counts.total():.0%}".replace("%", " %") for name, count in counts.most_common()
    )


def dropped_of(ledger: SourceLedger) -> str:
    """Return "2 of 60 rows looked at would be dropped (empty_answer 2)", or "all usable"."""
    dropped = sum(ledger.dropped.values())
    if not dropped:
        return "all usable"
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(ledger.dropped.items()))
    return f"{dropped} of {ledger.rows_in} looked at would be dropped ({reasons})"
