"""``results.json`` -> ``RESULTS.md``: the figures beside the bars that they were to meet."""

from pathlib import Path

from benchmarks import opstream_page

PAGE = Path(__file__).with_name("RESULTS.md")
TRAINING_BARS = {
    "short fp32": (4, 6, 0.35, 0.70),
    "short bf16": (5, None, 0.35, 0.50),
    "long fp32": (2, 3, None, None),
    "long bf16": (2, None, None, None),
}
DATA_BARS = {"trl": 5, "per_row": 10}
CONTAINER_BAR_SECONDS = 3
LONG_MEMORY_BAR_GIB, EQUALITY_BAR, GROWTH_BAR, SPEED_BAR = 8, 1e-5, 1.10, 0.90
TITLES = {
    "short fp32": "Short answers, fp32",
    "short bf16": "Short answers, bf16 autocast",
    "long fp32": "Long answers, fp32",
    "long bf16": "Long answers, bf16 autocast",
}
HEADER = """# Measured beside the peers

Written by `make bench`; method and commands stand in the docstrings of `benchmarks/train.py` and `benchmarks/data.py`. Same
machine, same run, in turn (ours, theirs, ours, theirs); "times" is how many times faster. Short answers: 64 pairs of hh-rlhf
harmless; long answers: 24 pairs of a ShareGPT preference set, at most 1024 tokens. Model: SmolLM2-135M-Instruct.

Operations of a step are three times those of the forward that the shared computation needs (`benchmarks/flops.py`). For
a pair of n tokens, its prompt counted once: 2 n W for the W weights of linear layers, 4 L A for each visible (query,
key) in L layers of A attention channels, 2 H V for each trained token. Norms, optimizer, padding and recomputation are
not counted. The peak is a product of two 2048² matrices with all threads, measured in the same run.

"""

PROFILE = """8 pairs, one thread (`benchmarks/profile.py`): training steps on short ones, the reference pass over long ones.
In fp32 products of matrices (`aten::mm`) and attention run near the machine's peak and take most of the time, so little can
be gained from the rest: norms, rotations, activations, AdamW. Where a processor has matrix units for bf16 (AMX), products
shrink to a small part of the step and the rest weighs more.

"""


def page(figures: dict) -> str:
    """The whole page; sections without figures are left out."""
    parts = [HEADER]
    for name, bars in TRAINING_BARS.items():
        if name in figures:
            parts += [
                f"## {TITLES[name]}\n\n",
                _machine(figures[name]),
                _training(figures[name]["figures"], name, bars),
            ]
    if "data" in figures:
        parts += [
            "## Tokenising and mixing\n\n",
            _machine(figures["data"]),
            _data(figures["data"]["figures"]),
        ]
    if "memory" in figures:
        parts += [
            "## Memory of tokenising and mixing\n\n",
            _machine(figures["memory"]),
            _memory(figures["memory"]["figures"]),
        ]
    if "profile" in figures:
        parts += [
            "## Where a training step's time goes\n\n",
            _machine(figures["profile"]),
            PROFILE,
            _profile(figures["profile"]["figures"]),
        ]
    if "gpu" in figures:
        parts += ["## On a card\n\n", GPU_TEXT]
        for card, found in figures["gpu"].items():
            parts += [f"### {card}\n\n", _machine(found), _gpu(found["figures"])]
    if "implementations" in figures:
        parts += [
            "## On OLMo-core\n\n",
            _machine(figures["implementations"]),
            _implementations(figures["implementations"]["figures"]),
        ]
    if "opstream" in figures:
        found = figures["opstream"]["figures"]
        parts += [
            "## The operators of a microbatch, on paper\n\n",
            _machine(figures["opstream"]),
            opstream_page.TEXT,
            _table(opstream_page.HEADER, opstream_page.rows(found, _verdict)),
            opstream_page.largest(found, "16"),
        ]
    if "containers" in figures:
        parts += [
            "## A step in a container\n\n",
            _machine(figures["containers"]),
            _containers(figures["containers"]["figures"]),
        ]
    return "".join(parts)


def _implementations(figures: dict) -> str:
    """Written down from the logs of two demos, by hand."""
    whole, steps, apart = (figures[name] for name in ("stage_seconds", "step_seconds", "largest_difference"))
    rows = [
        (f"{figures['steps']} steps of 8 pairs, fp32", steps["transformers"], steps["olmo_core"]),
        ("the whole stage", whole["transformers"], whole["olmo_core"]),
    ]
    return (
        f"The demo by `make demo` and by `make demo IMPLEMENTATION=olmo_core`, once each, one after the other, from a fresh "
        f"clone of {figures['commit']}, on a host whose speed swings by a third: so little about speed, and nothing about "
        "cards.\n\n"
        + _table(("seconds of", "transformers", "OLMo-core"), rows)
        + f"The two runs: losses {apart['losses']:.1e} apart at most, weights {apart['weights']:.1e}, held-out metrics "
        f"{apart['held_out']:.1e}; all reference values and all answers the same.\n\n"
    )


def _containers(figures: dict) -> str:
    process, docker, more = figures["seconds"]["process"], figures["seconds"]["docker"], figures["overhead"]
    rows = [
        (
            "a step that loads a tiny model and answers",
            f"{process['step']:.2f}",
            f"{docker['step']:.2f}",
            f"{more['step']:.2f}",
            _verdict(more["step"], CONTAINER_BAR_SECONDS, at_most=True),
        ),
        (
            "a program that does nothing",
            f"{process['nothing']:.2f}",
            f"{docker['nothing']:.2f}",
            f"{more['nothing']:.2f}",
            "–",
        ),
    ]
    return f"Medians of {figures['turns']} runs of each, in turn (`benchmarks/containers.py`).\n\n" + _table(
        ("seconds of", "as a process", "in a container", "more", "bar"), rows
    )


def _profile(figures: dict) -> str:
    peaks, figures = (
        figures.get("peak_gflops", {}),
        {name: part for name, part in figures.items() if name != "peak_gflops"},
    )
    operators = list(dict.fromkeys(name for values in figures.values() for name in values["shares"]))
    shares = [values["shares"] for values in figures.values()]
    rows = [
        (f"`{name}`", *(f"{share[name]:.1%}" if name in share else "" for share in shares))
        for name in operators
    ]
    totals = [
        (
            "seconds of a step (GFLOP/s)",
            *(f"{v['seconds']:.1f} ({v['gflops']:.0f})" for v in figures.values()),
        )
    ]
    peak = "; ".join(f"{name} {value:.0f}" for name, value in peaks.items())
    return (f"Peak of one thread, GFLOP/s: {peak}.\n\n" if peak else "") + _table(
        ("", *figures), totals + rows
    )


GPU_TEXT = """`python -m benchmarks.gpu` (`benchmarks/gpu/`): eight layers of a model of 8B width, then a whole model of
SmolLM2-135M's shape; random weights, pairs of the lengths of a real set. The bars were set on paper for an H100, before any
run. On the H200 ran an earlier state of the program. Before packed rows took one flash call a layer a step of the whole
model took 3.86 s there and its reference pass 8.2 pairs/s: cuDNN's attention made a plan for the shapes of every pair.

Gradients of one flash call and of pair by pair, both in bf16, were 0.0279 apart (relative; bar 0.02, **not met**); the rows
below compare each with fp32 instead, from which both are equally far.

`wide` is eight layers of 8B width trained by the program (`fsdp2`, one process); its first line of memory beside what
`pairline plan` counts of it.

"""


def gpu_row(figure: dict) -> tuple[str, str, str]:
    """A figure as name, value with unit, and what was expected."""
    value = figure["value"]
    text = value if isinstance(value, str) else f"{value:.4g} {figure['unit']}".strip()
    bar = (
        _verdict(value, figure["bar"], figure["at_most"])
        if figure["bar"] and not isinstance(value, str)
        else "–"
    )
    return figure["name"], text, bar


def _gpu(figures: dict) -> str:
    return "".join(
        f"{name}\n\n" + _table(("", "", "expected"), [gpu_row(figure) for figure in part])
        for name, part in figures.items()
    )


def _machine(section: dict) -> str:
    return "; ".join(f"{name} {value}" for name, value in section["machine"].items()) + ".\n\n"


def _verdict(value: float, bar: float | None, at_most: bool = False) -> str:
    if bar is None:
        return "–"
    met = value <= bar if at_most else value >= bar
    return f"{'at most' if at_most else 'at least'} {bar:g}: {'met' if met else '**not met**'}"


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ("---",) * len(header), *rows)]
    return "\n".join(lines) + "\n\n"


def _training(figures: dict, name: str, bars: tuple) -> str:
    text = _comparison(
        figures[name], *bars, memory_gib=LONG_MEMORY_BAR_GIB if name.startswith("long") else None
    )
    if part := figures.get(f"{name.split()[0]} equality"):
        text += (
            f"Equal to the padded twin in fp32 over {part['pairs']} pairs: sequences' log-probabilities differ by "
            f"at most {_equal(part['logps'])} (relative), losses of steps of 8 pairs (dpo_norm, beta 5) by "
            f"{_equal(part['losses'])}, of single pairs by {_equal(part['pair_losses'])}."
        )
        if "noise" in part:
            text += (
                f" The padded twin differs from itself, cut into other batches, by {part['noise']['logps']:.1e}, "
                f"{part['noise']['losses']:.1e} and {part['noise']['pair_losses']:.1e}."
            )
        text += "\n\n"
    return text + figures.get("note", "")


def _equal(difference: float) -> str:
    return f"{difference:.1e} ({_verdict(difference, EQUALITY_BAR, at_most=True)})"


def _comparison(
    figures: dict,
    training: float,
    reference: float | None,
    memory: float | None,
    flops: float | None,
    memory_gib: float | None,
) -> str:
    ours, theirs, times, used = (figures[name] for name in ("pairline", "trl", "times", "flops"))
    rows = [
        (
            "training, pairs/s",
            f"{ours['pairs_per_second']:.2f}",
            f"{theirs['pairs_per_second']:.2f}",
            f"{times['training']:.1f}",
            _verdict(times["training"], training),
        ),
        (
            "a step, s (pairs)",
            f"{ours['step_seconds']:.2f} ({ours['pairs_per_step']})",
            f"{theirs['step_seconds']:.2f} ({theirs['pairs_per_step']})",
            "",
            "",
        ),
        (
            "reference pass, pairs/s",
            f"{ours['reference_pairs_per_second']:.2f}",
            f"{theirs['reference_pairs_per_second']:.2f}",
            f"{times['reference']:.1f}",
            _verdict(times["reference"], reference),
        ),
        (
            "peak resident memory, GB",
            f"{ours['peak_rss_gb']:.1f}",
            f"{theirs['peak_rss_gb']:.1f}",
            f"{times['memory']:.2f} of it",
            _verdict(times["memory"], memory, at_most=True),
        ),
        *(
            [
                (
                    "the same, GiB",
                    f"{ours['peak_rss_gb'] * 1e9 / 2**30:.1f}",
                    f"{theirs['peak_rss_gb'] * 1e9 / 2**30:.1f}",
                    "",
                    _verdict(ours["peak_rss_gb"] * 1e9 / 2**30, memory_gib, at_most=True),
                )
            ]
            if memory_gib
            else []
        ),
        (
            "GFLOP/s of the shared computation",
            f"{used['step_gflops']:.0f}",
            f"peak {used['peak_gflops']:.0f}",
            f"{used['share_of_peak']:.2f} of it",
            _verdict(used["share_of_peak"], flops),
        ),
    ]
    text = _table(("", "Pairline", "TRL DPOTrainer", "times", "bar"), rows)
    if "largest_loss_difference" in figures:
        text += f"Step losses of both, same pairs, same order: {figures['largest_loss_difference']:.1e} apart at most. "
    if "operations_times" in used:
        text += (
            f"The peer's forward takes {used['operations_times']:.2f} times our operations: both sides padded to the "
            f"batch's longest, every logit. By its own operations the reference pass runs at "
            f"{used['reference_share_pairline']:.2f} of the peak, the peer's at {used['reference_share_trl']:.2f}. "
        )
    return text + (
        f"Steps counted: {ours['steps_counted']} of ours, {theirs['steps_counted']} of theirs. Our checks "
        f"before the first step took {ours['checks_seconds']:.1f} s.\n\n"
    )


def _data(figures: dict) -> str:
    rows = []
    for workers in (key for key in figures if key.isdigit()):
        for peer, values in figures[workers].items():
            times = figures["times"][workers].get(peer)
            rows.append(
                (
                    workers,
                    peer,
                    f"{values['rows_per_second']:.0f}",
                    f"{values['cpu_seconds']:.1f}",
                    f"{times['wall']:.1f}" if times else "",
                    f"{times['cpu']:.1f}" if times else "",
                    _verdict(times["wall"], DATA_BARS[peer]) if times else "",
                )
            )
    title = f"{figures['rows']:,} rows; per_row is the seed workflow's mapping, one call a row.\n\n"
    table = _table(("processes", "who", "rows/s", "CPU s", "times (wall)", "times (CPU)", "bar"), rows)
    return title + table + figures.get("note", "")


MIXES = {"pairline": "", "deduplicated": ", duplicates dropped"}


def _memory(figures: dict) -> str:
    rows = [
        (
            f"{int(count):,}",
            f"pairline{MIXES[label]}" if label in MIXES else label,
            f"{values['peak_rss_mb']:.0f}",
            f"{values['peak_anon_mb']:.0f}",
            f"{int(count) / values['seconds']:.0f}" if label in MIXES else "",
            f"{values['cpu_seconds'] / int(count) * 1e6:.0f}" if label in MIXES else "",
        )
        for count, runs in figures.items()
        if count.isdigit()
        for label, values in runs.items()
    ]
    header = ("rows", "what", "resident, MB", "without mapped files, MB", "rows/s", "CPU us a row")
    readers = "Readers: the mixture, the reference values and the order, opened for training.\n\n"
    return (
        _table(header, rows)
        + "".join(_scaling(figures, label) for label in MIXES)
        + readers
        + figures.get("note", "")
    )


def _scaling(figures: dict, label: str) -> str:
    """What a mixture's run takes at the most rows beside the fewest."""
    if label not in figures["growth"]:
        return ""
    growth, speed = figures["growth"][label], figures["speed" if label == "pairline" else f"{label}_speed"]
    return (
        f"Mixing{MIXES[label]}: rows a second at the most rows are {speed['seconds']:.2f} of those at the fewest by the "
        f"clock, {speed['cpu_seconds']:.2f} by processor time ({_verdict(speed['cpu_seconds'], SPEED_BAR)}); memory grows "
        f"to {growth['rss']:.2f} times ({_verdict(growth['rss'], GROWTH_BAR, at_most=True)}; without mapped files "
        f"{growth['anon']:.2f}). "
    )
