"""Gradients that ranks sum in buckets: bit for bit what each of them would be summed by itself, begun in the backward."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo_core.engine import gradient_buckets
from dpo_core.engine.gradient_buckets import ALIGNED, GradientBuckets
from dpo_core.engine.tensor_gradients import sum_together
from tests.together import together

SIZES = ((7, 5), (5,), (3, 5), (1,), (300, 3), (300,))  # the fifth is larger than a bucket


def weights() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(size)) for size in SIZES]


def collected(parameters: list[nn.Parameter], into: GradientBuckets, sent: list[int]) -> None:
    """As the engine has it: copies in bf16 are what a backward sees, and their gradients are added to those of these."""
    for parameter in parameters:
        parameter.rounded = parameter.detach().bfloat16().requires_grad_()

        def add(half: Tensor, parameter: nn.Parameter = parameter) -> None:
            parameter.grad.add_(half.grad)
            half.grad = None
            into.added(parameter)
            sent.append(into.num_sent)

        parameter.rounded.register_post_accumulate_grad_hook(add)


def loss_of(parameters: list[nn.Parameter], rank: int, microbatch: int) -> Tensor:
    """Rank 1's last backward does not reach the first bucket's first parameter, as an expert that no token chose."""
    left_out = len(parameters) - 1 if (rank, microbatch) == (1, 1) else len(parameters)
    return sum(
        (parameter.rounded * torch.randn(parameter.shape)).sum() for parameter in parameters[:left_out]
    )


def test_two_ranks_have_the_bits_of_sums_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_buckets, "BUCKET_BYTES", 4 * ALIGNED * 3)

    def compare(rank: int) -> None:
        parameters, sent = weights(), []
        buckets = GradientBuckets(parameters)
        collected(parameters, buckets, sent)
        assert [len(bucket) // ALIGNED for bucket in buckets.buckets] == [5, 15, 3, 1]
        for _ in range(2):  # two steps
            expected = [torch.zeros(size) for size in SIZES]
            for microbatch in range(2):
                torch.manual_seed(10 * rank + microbatch)
                slopes = torch.autograd.grad(
                    loss_of(parameters, rank, microbatch),
                    [parameter.rounded for parameter in parameters],
                    allow_unused=True,
                )
                for total, slope in zip(expected, slopes, strict=True):
                    total.add_(0 if slope is None else slope)
            for total in expected:
                dist.all_reduce(total)
            sent.clear()
            torch.manual_seed(10 * rank)
            loss_of(parameters, rank, 0).backward()
            assert set(sent) == {0}, "the first microbatch exchanges nothing"
            with buckets.exchanging():
                torch.manual_seed(10 * rank + 1)
                loss_of(parameters, rank, 1).backward()
                # Rank 1 waits for what does not come, with all behind it: others would send what it has not begun to.
                assert buckets.num_sent == (4 if rank == 0 else 0)
            assert buckets.num_sent == 4
            buckets.wait()
            for parameter, total in zip(parameters, expected, strict=True):
                assert parameter.grad.equal(total)
            buckets.forget()
            assert not any(parameter.grad.any() for parameter in parameters)

    together(compare, tmp_path)


def test_a_gradient_that_comes_twice_in_a_backward_is_an_error_and_not_a_wrong_sum(tmp_path):
    def twice(rank: int) -> None:
        (parameter,) = parameters = weights()[:1]
        buckets = GradientBuckets(parameters)
        buckets.added(parameter)  # of a microbatch that is not the last
        with buckets.exchanging():
            buckets.added(parameter)
            with pytest.raises(KeyError):
                buckets.added(parameter)

    together(twice, tmp_path, size=1)


def test_what_processes_that_compute_together_hold_whole_is_summed_in_one_exchange(tmp_path):
    """Norms' gradients, of which FSDP2 has left this process some rows, or none."""

    def sums(rank: int) -> None:
        sizes = ((4,), (0,), (2, 3), ())
        slopes = [torch.full(size, float(10**rank)) for size in sizes]
        counted, all_reduce = [], dist.all_reduce
        dist.all_reduce = lambda *given, **named: (counted.append(1), all_reduce(*given, **named))
        sum_together(slopes, dist.group.WORLD)
        assert [slope.tolist() for slope in slopes] == [torch.full(size, 11.0).tolist() for size in sizes]
        sum_together([], dist.group.WORLD)
        assert len(counted) == 1

    together(sums, tmp_path)
