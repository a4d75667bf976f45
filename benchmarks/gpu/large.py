"""Parts on eight layers of a model of 8B width: time, memory and kernels of a step, by number format, head and attention."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.workload import Bench, Figure, Training, free, peak_gib, seconds_of, synchronize
from dpo_core.contract.config import Precision
from dpo_core.data.pair_batch import PairBatch, collate
from dpo_core.data.pairs import TokenizedPair
from dpo_core.model import attention as attention_kernels
from dpo_core.model import logprobs
from dpo_core.model.attention import PAIRWISE, set_kernel
from dpo_core.model.forward import PairScorer, largest_difference, vocabulary_head

PAIRS = 16
WAYS: dict[str, tuple[Precision, bool]] = {  # number format, and whether norms and MLPs are compiled
    "bf16": ("bf16", False),
    "bf16_pure": ("bf16_pure", False),
    "bf16_pure, compiled": ("bf16_pure", True),
}
# Kernel names begin or contain these; the first that fits counts.
KINDS = (
    ("products", ("gemm", "nvjet", "cutlass_80", "cutlass_90", "xmma", "cublas")),
    ("flash attention", ("flash",)),
    ("masked attention", ("fmha", "attention")),
    ("AdamW", ("adam", "multi_tensor")),
    ("softmax", ("softmax", "nll")),
    ("copies and casts", ("memcpy", "copy", "catarray", "memset")),
    ("reductions", ("reduce",)),
    ("elementwise", ("elementwise", "triton")),
)


def card(bench: Bench) -> list[Figure]:
    """The ceilings: a large product of random bf16 matrices, and a copy within the card's memory."""
    size = 256 if bench.tiny else 8192
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = seconds_of(lambda: left @ right, bench.device, turns=10)
    source = torch.randn(size * size * (1 if bench.tiny else 8), device=bench.device)
    into = torch.empty_like(source)
    copied = seconds_of(lambda: into.copy_(source), bench.device, turns=10)
    return [
        Figure("product of bf16 matrices", 2 * size**3 / seconds / 1e12, "TFLOP/s"),
        Figure("copy, read and written", 2 * source.nbytes / copied / 1e12, "TB/s"),
    ]


def step(bench: Bench) -> list[Figure]:
    """A step of 1 and of 16 pairs in bf16 autocast and with bf16 weights, and what it holds at most."""
    figures = []
    for name, (precision, compiled) in WAYS.items():
        figures += [
            replace(figure, name=f"{name}: {figure.name}") for figure in _step(bench, precision, compiled)
        ]
        free(bench.device)
    return figures


def _step(bench: Bench, precision: Precision, compiled: bool) -> list[Figure]:
    training = Training.start(bench, bench.wide, precision, compiled=compiled)
    pairs = bench.pairs(PAIRS)
    one, many = training.batch([_typical(pairs)]), training.batch(pairs)
    figures = []
    # The bar of 0.067 s was set for 1,030 tokens.
    for name, batch, bar in (
        ("1 pair", one, 0.067 * one.ids_RT.numel() / 1030),
        (f"{PAIRS} pairs", many, 0.70),
    ):
        seconds = seconds_of(lambda batch=batch: training.backward(batch), bench.device, turns=3)
        tokens = batch.ids_RT.numel()
        figures.append(Figure(f"forward and backward of {name}, {tokens} tokens", seconds, "s", bar))
    figures.append(Figure("tokens a second", tokens / seconds, "", 20_000, at_most=False))
    with torch.no_grad():
        moved = many.to(bench.device)
        figures.append(
            Figure(
                "forward alone", seconds_of(lambda: training.engine.scores(moved), bench.device, turns=3), "s"
            )
        )
    figures.append(
        Figure(
            "the whole step, clip and AdamW included",
            seconds_of(lambda: training.step(many), bench.device, turns=2),
            "s",
        )
    )
    figures.append(
        Figure(
            f"most memory of a step of {PAIRS} pairs",
            peak_gib(bench.device, lambda: training.step(many)),
            "GiB",
        )
    )
    bar = 5e-2 if precision == "bf16_pure" else 1e-4  # bf16 weights are compared as they are
    figures.append(Figure("layout difference", training.engine.scorer.layout_difference, "nats", bar))
    return figures


def _typical(pairs: list[TokenizedPair]) -> TokenizedPair:
    """The pair of the median number of tokens."""
    by_length = sorted(pairs, key=lambda pair: len(pair.chosen_ids) + len(pair.rejected_ids))
    return by_length[len(by_length) // 2]


def memory(bench: Bench) -> list[Figure]:
    """What the forward holds beyond weights, with and without autocast's copies of them."""
    training = Training.start(bench, bench.wide, "bf16", compare=False)
    batch = training.batch(bench.pairs(PAIRS)).to(bench.device)
    figures = []
    for kept in (True, False):
        enabled = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(kept)
        try:
            base = torch.cuda.memory_allocated() / 2**30 if bench.device.type == "cuda" else 0.0
            held = peak_gib(bench.device, lambda: training.engine.scores(batch)) - base
            figures.append(
                Figure(f"forward beyond weights, casts {'kept' if kept else 'made anew'}", held, "GiB")
            )
        finally:
            torch.set_autocast_cache_enabled(enabled)
    return figures


def kernels(bench: Bench) -> list[Figure]:
    """Which kernels a step's forward and backward take their time in."""
    figures = []
    for way, (precision, compiled) in WAYS.items():
        training = Training.start(bench, bench.wide, precision, compiled=compiled)
        batch = training.batch(bench.pairs(PAIRS))
        figures += [Figure(f"{way}: {name}", value, unit) for name, value, unit in _kernels(training, batch)]
        del training
        free(bench.device)
    return figures


def _kernels(training: Training, batch: PairBatch) -> Iterator[tuple[str, float | str, str]]:
    on_card = training.device.type == "cuda"
    training.backward(batch)
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as profiler:
        training.backward(batch)
        if on_card:
            torch.cuda.synchronize()
    shares: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    count = 0
    for event in profiler.events():
        micros = event.device_time_total if on_card else event.self_cpu_time_total
        kind = next(
            (kind for kind, marks in KINDS if any(mark in event.name.lower() for mark in marks)), "others"
        )
        shares[kind] += micros
        names[event.name] += micros
        count += 1
    total = sum(shares.values()) or 1.0
    yield "kernels a microbatch", float(count), ""
    yield "seconds of kernels", total / 1e6, "s"
    for kind, micros in sorted(shares.items(), key=lambda item: -item[1]):
        yield f"share of {kind}", micros / total, ""
    for name, micros in sorted(names.items(), key=lambda item: -item[1])[:14]:
        yield f"`{name[:90]}`", micros / total, ""


def head(bench: Bench) -> list[Figure]:
    """The vocabulary head alone, forward and backward, by the size of its chunks of logits."""
    training = Training.start(bench, bench.wide | {"num_hidden_layers": 1}, "bf16", compare=False)
    model, batch = training.engine.scorer.model, training.batch(bench.pairs(PAIRS)).to(bench.device)
    tokens, width = len(batch.target_N), model.config.hidden_size
    hidden_NH = torch.randn(tokens, width, device=bench.device, requires_grad=True)
    figures, before = [], logprobs.CARD_CHUNK_LOGITS

    def there_and_back() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            logps_N = vocabulary_head(model).target_logps(hidden_NH, batch.target_N)
        logps_N.sum().backward()

    try:
        for power in (25, 26, 27, 28, 29):
            logprobs.CARD_CHUNK_LOGITS = 1 << power
            seconds = seconds_of(there_and_back, bench.device, turns=3)
            held = peak_gib(bench.device, there_and_back)
            figures.append(Figure(f"head of {tokens} tokens, chunks of 2^{power} logits", seconds, "s"))
            figures.append(Figure(f"most memory with 2^{power}", held, "GiB"))
    finally:
        logprobs.CARD_CHUNK_LOGITS = before
    return figures


def attention(bench: Bench) -> list[Figure]:
    """Forward and backward by attention kernel: of pairs seen before, and of new ones: in a run every batch has new
    shapes."""
    figures = []
    choices: tuple[str, ...] = ("one call a layer", "pair by pair", "flex_attention")
    for name in choices[: 1 if bench.device.type == "cpu" else None]:
        figures += _attention(bench, name)
        free(bench.device)
    return figures


def _attention(bench: Bench, name: str) -> Iterator[Figure]:
    flex = name == "flex_attention"
    training = Training.start(bench, bench.wide, "bf16", "flex_attention" if flex else "sdpa", compare=False)
    with without_varlen() if name.startswith("pair") else nullcontext():
        batch = training.batch(bench.pairs(PAIRS))
        started = time.perf_counter()
        training.backward(batch)
        synchronize(bench.device)
        yield Figure(f"{name}: the first time", time.perf_counter() - started, "s")
        yield Figure(
            f"{name}: seen before",
            seconds_of(lambda: training.backward(batch), bench.device, turns=3),
            "s",
            0.70,
        )
        new = iter([training.batch(bench.pairs(PAIRS, seed)) for seed in range(1, 4)])
        seconds = seconds_of(lambda: training.backward(next(new)), bench.device, turns=3, warm_up=0)
        yield Figure(f"{name}: new pairs", seconds, "s", 0.70)
        if flex:
            yield Figure(
                f"{name}: graphs", float(torch._dynamo.utils.counters["stats"]["unique_graphs"]), "", 4
            )


def layout(bench: Bench) -> list[Figure]:
    """How far packed rows are from each pair alone with stock logits, in fp32 without and with TF32, and in bf16; and the
    gradient of one call a layer from that of pair by pair."""
    model = bench.model(bench.wide)
    set_kernel(model, PAIRWISE["sdpa"])
    figures = []
    for name, precision, tf32 in (
        ("fp32", "fp32", False),
        ("fp32 with TF32", "fp32", True),
        ("bf16", "bf16", False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            difference = largest_difference(
                PairScorer(model, precision), bench.pairs(3), "packed", bench.device
            )
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        bar = {"fp32": 1e-4, "bf16": 5e-2}.get(name)
        figures.append(Figure(f"{name}: packed against plain", difference, "nats", bar))
    batch = collate(bench.pairs(3), range(3), "packed").to(bench.device)
    weight = model.model.layers[0].self_attn.k_proj.weight
    truth = _gradient(model, "fp32", batch, weight)
    one_call = _gradient(model, "bf16", batch, weight)
    with without_varlen():
        by_pair = _gradient(model, "bf16", batch, weight)
    ours, theirs = (float((gradient - truth).norm() / truth.norm()) for gradient in (one_call, by_pair))
    return [
        *figures,
        Figure("a key projection's gradient, from fp32's, relative: pair by pair", theirs),
        Figure("one call a layer, times that", ours / max(theirs, 1e-9), "", 1.1),
    ]


def _gradient(
    model: torch.nn.Module, precision: Precision, batch: PairBatch, weight: torch.Tensor
) -> torch.Tensor:
    scorer = PairScorer(model, precision)
    scorer.stock_logits = False
    return torch.autograd.grad(scorer(batch).sums_S.sum(), [weight])[0]


@contextmanager
def without_varlen() -> Iterator[None]:
    """Within it packed rows are attended to pair by pair."""
    before = attention_kernels.why_not_varlen
    attention_kernels.why_not_varlen = lambda query, dtype: "is left out here"
    try:
        yield
    finally:
        attention_kernels.why_not_varlen = before
