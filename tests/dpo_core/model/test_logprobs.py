"""Log-probabilities by chunks of logits against their slow twin, stock logits of all tokens at once."""

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpo_core.model import logprobs
from dpo_core.model.logprobs import LogitRule, VocabularyHead, logps_from_logits, squares_from_logits

TOKENS, HIDDEN, VOCABULARY = 23, 6, 40
RULES = {
    "plain": LogitRule(),
    "capped": LogitRule(cap=1.5),
    "scaled": LogitRule(factor=0.4),
    "both": LogitRule(factor=3.0, cap=2.0),
}


@pytest.fixture
def chunks_of(monkeypatch):
    """Logits are made for so many tokens at a time."""
    return lambda tokens: monkeypatch.setattr(logprobs, "CHUNK_LOGITS", tokens * VOCABULARY + 1)


def head_of(rule: LogitRule, bias: bool = True, dtype: torch.dtype = torch.float32) -> VocabularyHead:
    torch.manual_seed(0)
    return VocabularyHead(nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype), rule)


def some_tokens(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets, and what flows back to each token's log-probability."""
    torch.manual_seed(1)
    hidden_NH = (3 * torch.randn(TOKENS, HIDDEN, dtype=dtype)).requires_grad_()
    slope_N = torch.randn(TOKENS, dtype=torch.promote_types(dtype, torch.float32))
    return hidden_NH, torch.randint(VOCABULARY, (TOKENS,)), slope_N


def slow_twin(head: VocabularyHead, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Through autograd, all logits at once."""
    logits_NV = head.projection(hidden_NH) * head.rule.factor
    cap = head.rule.cap
    return logps_from_logits(logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap, targets_N)


def slopes(head: VocabularyHead, logps_N: Tensor, hidden_NH: Tensor, slope_N: Tensor) -> list[Tensor]:
    """In hidden states and the head's parameters."""
    return list(torch.autograd.grad(logps_N, [hidden_NH, *head.projection.parameters()], slope_N))


@pytest.mark.parametrize("chunk", [1, 5, TOKENS])
@pytest.mark.parametrize("name", RULES)
def test_slopes_are_those_of_finite_differences(chunks_of, name, chunk):
    chunks_of(chunk)
    head, (hidden_NH, targets_N, _) = head_of(RULES[name], dtype=torch.float64), some_tokens(torch.float64)
    hidden_NH, targets_N = hidden_NH[:7].detach().requires_grad_(), targets_N[:7]
    weight, bias = (parameter.detach() for parameter in head.projection.parameters())

    def logps(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
        how = logprobs._How(RULES[name], torch.float64, chunk, keep=True)
        return logprobs._TargetLogps.apply(hidden_NH, weight_VH, bias_V, targets_N, how)[0]

    assert torch.autograd.gradcheck(logps, (hidden_NH, weight.requires_grad_(), bias.requires_grad_()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, TOKENS])
@pytest.mark.parametrize("name", RULES)
def test_chunks_equal_the_slow_twin(chunks_of, name, chunk, bias):
    chunks_of(chunk)
    head, (hidden_NH, targets_N, slope_N) = head_of(RULES[name], bias), some_tokens()
    fast, slow = head.target_logps(hidden_NH, targets_N), slow_twin(head, hidden_NH, targets_N)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-5)
    ours, theirs = (slopes(head, logps, hidden_NH, slope_N) for logps in (fast, slow))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["autocast", "pure"])
@pytest.mark.parametrize("name", RULES)
def test_in_bf16_chunks_are_as_near_the_truth_as_the_slow_twin(chunks_of, name, weights):
    """The truth is fp64 over the same weights; chunks of one token make 23 sums of what flows to the weight."""
    chunks_of(1)
    dtype = torch.bfloat16 if weights == "pure" else torch.float32
    head, (hidden_NH, targets_N, slope_N) = head_of(RULES[name], dtype=dtype), some_tokens(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == "autocast"):
        fast, slow = head.target_logps(hidden_NH, targets_N), slow_twin(head, hidden_NH, targets_N)
    found = [[logps_N, *slopes(head, logps_N, hidden_NH, slope_N)] for logps_N in (fast, slow)]
    exact, hidden = head_of(RULES[name], dtype=dtype), hidden_NH.detach().double().requires_grad_()
    exact.projection.double()
    truth_N = slow_twin(exact, hidden, targets_N)
    truth = [truth_N, *slopes(exact, truth_N, hidden, slope_N.double())]
    for values, twin, wanted in zip(*found, truth, strict=True):
        error, allowed = ((part.double() - wanted).norm() for part in (values, twin))
        assert error <= 1.3 * allowed + 2e-3 * wanted.norm()
        assert error <= 0.03 * wanted.norm()


def test_squares_by_hand():
    """p = 1/2, 1/4, 1/4: squares add up to 3/8; a sure token's to 1, of however large logits; four equal ones' to 1/4."""
    logits_NV = torch.tensor([[2.0, 1.0, 1.0, 0.0], [9e4, -9e4, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    logits_NV[0] = torch.log(torch.tensor([0.5, 0.25, 0.25, 0.0]))
    torch.testing.assert_close(
        squares_from_logits(logits_NV.to(torch.float32)), torch.log(torch.tensor([0.375, 1.0, 0.25]))
    )


@pytest.mark.parametrize("chunk", [1, 5, TOKENS])
@pytest.mark.parametrize("name", RULES)
def test_squares_by_chunks_equal_the_slow_twin_and_change_no_slope(chunks_of, name, chunk):
    """The twin squares the probabilities of all tokens at once, in float64."""
    chunks_of(chunk)
    head, (hidden_NH, targets_N, slope_N) = head_of(RULES[name]), some_tokens()
    scores = head.token_scores(hidden_NH, targets_N, squares=True)
    logits_NV = head.projection(hidden_NH) * head.rule.factor
    if head.rule.cap is not None:
        logits_NV = torch.tanh(logits_NV / head.rule.cap) * head.rule.cap
    twin_N = logits_NV.double().softmax(dim=-1).square().sum(dim=-1).log()
    torch.testing.assert_close(scores.squares_N.double(), twin_N, rtol=1e-6, atol=1e-6)
    assert not scores.squares_N.requires_grad
    plain_N = head.target_logps(hidden_NH, targets_N)
    assert torch.equal(scores.logps_N, plain_N)
    found, expected = (slopes(head, logps_N, hidden_NH, slope_N) for logps_N in (scores.logps_N, plain_N))
    assert all(map(torch.equal, found, expected))


def test_a_target_that_is_nearly_certain_has_the_slope_of_what_is_missing():
    """1 - p of p = 0.9997 is nothing in bf16, but not to the gradient."""
    head = VocabularyHead(nn.Linear(1, 2, bias=False, dtype=torch.bfloat16), LogitRule())
    with torch.no_grad():
        head.projection.weight.copy_(torch.tensor([[8.0], [0.0]]))
    hidden_NH = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    head.target_logps(hidden_NH, torch.tensor([0])).sum().backward()
    assert head.projection.weight.grad[0].item() == pytest.approx(1 / (1 + 2.718281828**8), rel=0.01)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_the_head_is_entered_once_whatever_the_number_of_chunks(chunks_of, with_gradient):
    """Back ends gather its weight in hooks: each entrance is an exchange between ranks."""
    chunks_of(1)
    head, (hidden_NH, targets_N, _) = head_of(LogitRule()), some_tokens()
    entered: list[str] = []
    head.projection.register_forward_pre_hook(lambda *_: entered.append("forward"))
    head.projection.register_full_backward_hook(lambda *_: entered.append("backward"))
    with torch.set_grad_enabled(with_gradient):
        logps_N = head.target_logps(hidden_NH, targets_N)
    if with_gradient:
        logps_N.sum().backward()
    assert entered == ["forward", "backward"][: 1 + with_gradient]
    assert "forward" not in vars(head.projection)


def test_frozen_weights_get_no_slope_and_a_head_of_another_kind_its_own_forward(chunks_of):
    chunks_of(2)
    head, (hidden_NH, targets_N, slope_N) = head_of(LogitRule()), some_tokens()
    expected = slopes(head, slow_twin(head, hidden_NH, targets_N), hidden_NH, slope_N)[0]
    head.projection.requires_grad_(False)
    (of_hidden,) = torch.autograd.grad(head.target_logps(hidden_NH, targets_N), [hidden_NH], slope_N)
    torch.testing.assert_close(of_hidden, expected, rtol=1e-5, atol=1e-5)

    class Doubling(nn.Linear):
        def forward(self, hidden_NH: Tensor) -> Tensor:
            return 2 * super().forward(hidden_NH)

    other = VocabularyHead(Doubling(HIDDEN, VOCABULARY), LogitRule())
    torch.testing.assert_close(
        other.target_logps(hidden_NH, targets_N), slow_twin(other, hidden_NH, targets_N)
    )


class Memory(TorchDispatchMode):
    """Counts values that operations make while this is on, in the backward as well: of the largest tensor, and the most that
    lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.peak = 0, 0
        self.living: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        made = operation(*arguments, **(keywords or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)):
            self.largest = max(self.largest, tensor.numel())
            self.living[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes() // 4
        self.living = {storage: values for storage, values in self.living.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.living.values()))
        return made


@pytest.mark.parametrize("with_gradient", [True, False])
def test_no_more_than_a_chunk_of_logits_is_made_and_held_at_once(monkeypatch, with_gradient):
    """100 tokens of 50 words in 15 chunks of 7: neither forward nor backward has the 5000 logits, whole or in pieces."""
    tokens, hidden, vocabulary, chunk = 100, 2, 50, 7 * 50

    def memory() -> Memory:
        hidden_NH = torch.randn(tokens, hidden, requires_grad=with_gradient)
        head = torch.nn.Linear(hidden, vocabulary, bias=False)
        with Memory() as seen, torch.set_grad_enabled(with_gradient):
            logps_N = VocabularyHead(head, LogitRule()).target_logps(
                hidden_NH, torch.arange(tokens) % vocabulary
            )
            if with_gradient:
                logps_N.sum().backward()
        assert logps_N.shape == (tokens,)
        return seen

    assert memory().largest == tokens * vocabulary  # what one piece takes is seen
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", chunk + 3)
    chunked = memory()
    assert chunked.largest == chunk
    others = (
        2 * hidden * (tokens + vocabulary) + 3 * tokens
    )  # hidden states, weight, both gradients; values per token
    assert (
        chunked.peak <= 4 * chunk + others
    )  # a chunk's logits and log-probabilities, and the gradient of each
