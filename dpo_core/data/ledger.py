"""Where every row went. ``rows_in = kept + sum(dropped)`` per source, always; too many drops are an error."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dpo_core.contract.data_jobs import Finding, SourceLedger
from dpo_core.contract.drops import MEANING
from dpo_core.contract.errors import DataError
from dpo_core.contract.refs import ResolvedSource
from dpo_core.contract.row_warnings import (
    all_of,
    amount_warning,
    left_out_warning,
    passed_by_warning,
    prompt_left_out_warning,
    repeated_warning,
    replaced_warning,
    truncation_warning,
    unnamed_role_warning,
)
from dpo_core.data.pairs import RowMarks

MAX_OFFENDERS, MAX_DETAILS = 20, 3


@dataclass
class SourceTally:
    """Counts the rows of one source, part by part, in ascending order of the parts' numbers."""

    source: ResolvedSource
    available_rows: int
    notes: tuple[str, ...] = ()  # warnings of the whole mixture and of the source's files
    formats: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    marked: Counter[str] = field(default_factory=Counter)  # kept rows by ``RowMarks``
    marked_rows: dict[str, list[int]] = field(default_factory=dict)  # the first of them
    dropped: Counter[str] = field(default_factory=Counter)
    offenders: dict[str, list[int]] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)
    longer: tuple[int, int] = (0, 0)  # kept rows whose chosen, whose rejected side is the longer one
    counted: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    extra_pairs: int = 0

    def add(self, facts: pa.RecordBatch, times: np.ndarray) -> None:
        """Count the rows of a part of the pool (``POOL_SCHEMA``), each selected ``times`` times, int [n]."""
        formats, reasons = (
            facts.column("format").dictionary_encode(),
            facts.column("reason").dictionary_encode(),
        )
        for name, count in zip(
            formats.dictionary.to_pylist(), _sums(formats.indices.to_numpy(), times), strict=True
        ):
            self.formats[name] += count
        self.extra_pairs += int(times[facts.column("number").to_numpy() > 0].sum())
        is_kept = reasons.is_null().to_numpy(zero_copy_only=False)
        self.kept += int(times[is_kept].sum())
        rows = facts.column("row").to_numpy()
        for name in RowMarks._fields:
            is_marked = is_kept & facts.column(name).to_numpy(zero_copy_only=False)
            self.marked[name] += int(times[is_marked].sum())
            _note(self.marked_rows.setdefault(name, []), rows[is_marked].tolist())
        dropped = facts.filter(pa.array(~is_kept))
        for reason, row, detail, count in zip(
            dropped.column("reason").to_pylist(),
            dropped.column("row").to_pylist(),
            dropped.column("detail").to_pylist(),
            times[~is_kept].tolist(),
            strict=True,
        ):
            self.dropped[reason] += count
            _note(self.offenders.setdefault(reason, []), [row])
            said = self.details.setdefault(reason, [])
            if detail and detail not in said and len(said) < MAX_DETAILS:
                said.append(detail)

    def find(
        self, reason: str, rows: np.ndarray, times: np.ndarray, marks: tuple[np.ndarray, ...] | None
    ) -> None:
        """Count kept rows that a check of quality found, int64 [n], each selected ``times`` times.

        They are dropped where ``marks`` tell their ``RowMarks``, bool [n] each.
        """
        count = int(times.sum())
        if marks is None:
            self.counted[reason] += count
            return
        self.kept -= count
        for name, is_marked in zip(RowMarks._fields, marks, strict=True):
            self.marked[name] -= int(times[is_marked].sum())
        self.dropped[reason] += count
        self.offenders[reason] = rows[:MAX_OFFENDERS].tolist()

    def compare_lengths(self, lengths_N2: np.ndarray, times: np.ndarray) -> None:
        """Count which side of the kept rows is longer, int [n, 2], each selected ``times`` times."""
        chosen, rejected = lengths_N2.T
        self.longer = int(times[chosen > rejected].sum()), int(times[rejected > chosen].sum())

    @property
    def rows_in(self) -> int:
        """Rows counted so far, repetitions included."""
        return self.kept + self.dropped.total()

    def _marked(self, name: str) -> tuple[int, tuple[int, ...]]:
        return self.marked[name], tuple(self.marked_rows.get(name, ()))

    def _warnings(self) -> tuple[str, ...]:
        label = self.source.label
        return tuple(
            all_of(
                *self.notes,
                amount_warning(label, self.source.amount, self.available_rows),
                truncation_warning(label, self.marked["truncated"] / max(1, self.kept)),
                left_out_warning(label, *self._marked("left_out")),
                prompt_left_out_warning(label, self.marked["prompt_left_out"]),
                passed_by_warning(label, *self._marked("prompt_passed_by")),
                repeated_warning(label, *self._marked("prompt_repeated"), self.kept),
                unnamed_role_warning(label, *self._marked("unnamed_role")),
                replaced_warning(label, *self._marked("replaced")),
            )
        )

    def close(self, rows_selected: int) -> SourceLedger:
        """Return the account of a source of which ``rows_selected`` rows were asked for."""
        counted = rows_selected + self.extra_pairs
        assert self.rows_in == self.formats.total() == counted, "a row was lost or counted twice"
        return SourceLedger(
            label=self.source.label,
            content=self.source.content,
            format=dict(self.formats.most_common()),
            available_rows=self.available_rows,
            rows_in=counted,
            kept=self.kept,
            truncated=self.marked["truncated"],
            dropped=dict(self.dropped.most_common()),
            offenders={reason: tuple(rows) for reason, rows in self.offenders.items()},
            left_out_in_part=self.marked["left_out"],
            left_out_rows=self._marked("left_out")[1],
            prompt_left_out=self.marked["prompt_left_out"],
            prompt_passed_by=self.marked["prompt_passed_by"],
            prompt_passed_by_rows=self._marked("prompt_passed_by")[1],
            prompt_repeated=self.marked["prompt_repeated"],
            prompt_repeated_rows=self._marked("prompt_repeated")[1],
            unnamed_role=self.marked["unnamed_role"],
            unnamed_role_rows=self._marked("unnamed_role")[1],
            replaced=self.marked["replaced"],
            replaced_rows=self._marked("replaced")[1],
            warnings=self._warnings(),
            details={reason: tuple(said) for reason, said in self.details.items() if said},
            longer_chosen=self.longer[0],
            longer_rejected=self.longer[1],
            counted=dict(self.counted.most_common()),
            findings=tuple(self.findings),
            extra_pairs=self.extra_pairs,
        )


def _note(first: list[int], rows: list[int]) -> None:
    first += rows[: MAX_OFFENDERS - len(first)]


def _sums(codes: np.ndarray, times: np.ndarray) -> list[int]:
    """Sum of ``times`` per code 0, 1, ..."""
    return np.bincount(codes, weights=times).astype(np.int64).tolist()


def _said(ledger: SourceLedger, reason: str) -> str:
    """What was found in the rows, or what the template said itself."""
    return "".join(f": “{detail}”" for detail in ledger.details.get(reason, ())[:1])


def describe(ledger: SourceLedger) -> str:
    """Return the drops of one source as a sentence, with the first row numbers."""
    parts = [
        f"{count} {reason} ({MEANING[reason]}{_said(ledger, reason)}; "
        f"rows {', '.join(map(str, ledger.offenders[reason][:5]))}{', ...' if count > 5 else ''})"
        for reason, count in ledger.dropped.items()
    ]
    return f"{ledger.label}: {sum(ledger.dropped.values())} of {ledger.rows_in} rows dropped: " + "; ".join(
        parts
    )


def check_drops(
    ledgers: list[SourceLedger], max_dropped_fraction: float, columns: list[tuple[str, ...]]
) -> None:
    """Raise ``DataError`` if a source lost all its rows or more than ``max_dropped_fraction`` of them, or if no row of
    any source is left. ``columns`` are the sources' columns, for the message."""
    if not sum(ledger.rows_in for ledger in ledgers):
        raise DataError(
            'The mixture is empty: the amounts of all sources ask for 0 rows. Raise `amount` ("1.0" is '
            'all rows, "1" is one row).'
        )
    for ledger, names in zip(ledgers, columns, strict=True):
        dropped = sum(ledger.dropped.values())
        if not dropped or (ledger.kept and dropped <= max_dropped_fraction * ledger.rows_in):
            continue
        what = (
            "No row is left"
            if not ledger.kept
            else f"More rows were dropped than max_dropped_fraction = {max_dropped_fraction} allows"
        )
        raise DataError(
            f"{what}. {describe(ledger)}. The set's columns are {', '.join(names) or 'none'}. "
            f"{_advice(ledger)}"
        )


def check_left(ledgers: list[SourceLedger]) -> None:
    """Raise ``DataError`` if checks of quality have left no row at all."""
    if not any(ledger.kept for ledger in ledgers):
        raise DataError(
            "The checks of quality have left no row: "
            + "; ".join(map(describe, ledgers))
            + ". Loosen the rules in `quality`, or add data."
        )


def _advice(ledger: SourceLedger) -> str:
    advice = {
        "not_a_preference_row": "Look at these rows; if the answers stand in other columns, name them with `columns`, "
        "e.g. {chosen: winner, rejected: loser, prompt: question}.",
        "template_error": "Choose another chat template (`checkpoint.chat_template`) or repair these rows.",
        "over_limits": "Choose another chat template (`checkpoint.chat_template`), or remove these rows if they are long.",
        "answer_left_out": "Choose a chat template that renders the answers as these rows have them "
        "(`checkpoint.chat_template`).",
        "template_without_tools": "Choose a chat template that renders tools (`checkpoint.chat_template`).",
        "bad_constraints": "Correct the rows' `constraints` (docs/data.md), or rename that column if it is another's.",
        "token_without_row": "Call model.resize_token_embeddings(len(tokenizer)) where the tokens are added, train them, "
        "and save the checkpoint again; or choose another template (`checkpoint.chat_template`).",
        "bad_template_kwargs": "Repair these rows, or name another column with `columns` (chat_template_kwargs: other).",
        "too_long": "Raise `max_length_tokens`, or set `when_too_long: truncate`.",
        "no_label_left": "Raise `max_length_tokens`.",
        "identical_tokens": "Raise `max_length_tokens` if the answers differ behind it, or choose a chat template that "
        "renders what differs (`checkpoint.chat_template`).",
    }
    worst = max(ledger.dropped, key=lambda reason: ledger.dropped[reason])
    return advice.get(worst, "Repair these rows, or raise `max_dropped_fraction` if they may go.")
