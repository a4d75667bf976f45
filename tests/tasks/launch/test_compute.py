"""The batch solver never changes the global batch, and says what would do where it cannot be met."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding
from tasks.launch.compute import (
    LARGEST_DEFAULT_PER_DEVICE,
    Machine,
    check_devices,
    divisors,
    sharding_of,
    solve_batch,
    this_machine,
    threads_per_process,
)
from tasks.launch.compute_config import ComputeConfig


@given(
    global_pairs=st.integers(1, 4096),
    num_processes=st.integers(1, 64),
    per_device=st.none() | st.integers(1, 64),
)
def test_a_solved_batch_multiplies_back_to_the_global_batch(global_pairs, num_processes, per_device):
    try:
        plan = solve_batch(global_pairs, per_device, num_processes)
    except ConfigError:
        assert global_pairs % num_processes or (global_pairs // num_processes) % per_device
        return
    assert plan.per_device_pairs * plan.accumulation * plan.num_processes == plan.global_pairs == global_pairs
    assert plan.per_device_pairs == per_device or (
        per_device is None and plan.per_device_pairs <= LARGEST_DEFAULT_PER_DEVICE
    )


@given(global_pairs=st.integers(1, 512), num_processes=st.integers(1, 32), per_device=st.integers(1, 32))
def test_every_choice_that_a_refusal_lists_is_valid(global_pairs, num_processes, per_device):
    try:
        solve_batch(global_pairs, per_device, num_processes)
    except ConfigError as error:
        advice = str(error).split("Set ", 1)[1]
        if global_pairs % num_processes:
            batches, processes = advice.split("compute.num_processes")
            for choice in map(int, re.findall(r"\d+", batches)):
                solve_batch(choice, None, num_processes)
            for choice in map(int, re.findall(r"\d+", processes)):
                solve_batch(global_pairs, None, choice)
        else:
            for choice in map(int, re.findall(r"\d+", advice)):
                solve_batch(global_pairs, choice, num_processes)


def test_published_batches_are_solved():
    plan = solve_batch(128, 1, 32)
    assert (plan.per_device_pairs, plan.accumulation) == (1, 4)
    assert solve_batch(128, 1, 8).accumulation == 16


def test_processes_that_compute_together_have_one_share():
    plan = solve_batch(128, None, 64, tensor_degree=8)
    assert (plan.num_processes, plan.per_device_pairs, plan.accumulation) == (8, 4, 4)
    compute = ComputeConfig(num_processes=64, sharding="fsdp2", shard_degree=16, tensor_degree=8)
    assert sharding_of(compute) == Sharding(kind="fsdp2", degree=16, tensor_degree=8)
    with pytest.raises(ConfigError, match=r"2 groups of 4 cannot share .* to 8 or 10, .* to one of 4\."):
        solve_batch(9, None, 8, tensor_degree=4)


def test_the_refusal_of_an_impossible_batch_names_the_setting():
    with pytest.raises(
        ConfigError,
        match=r"train\.global_batch_pairs is 10, which 4 processes cannot share "
        r"equally\. Set it to 8 or 12, or compute\.num_processes to one of 1, 2\.",
    ):
        solve_batch(10, None, 4)


@given(st.integers(1, 10_000))
def test_divisors_are_exactly_those(number):
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_more_processes_than_cards_are_refused_but_a_cpu_takes_any_number():
    with pytest.raises(
        ConfigError, match=r"shows 2 GPUs.*or spread them: compute.machines 2 with compute.launcher slurm"
    ):
        check_devices(ComputeConfig(num_processes=4), Machine(num_cores=8, num_gpus=2))
    with pytest.raises(ConfigError, match=r"to 2 or less\.$"):
        check_devices(ComputeConfig(num_processes=5), Machine(num_cores=8, num_gpus=2))
    check_devices(ComputeConfig(num_processes=4), Machine(num_cores=8, num_gpus=0))


def test_processes_are_counted_for_each_machine():
    nodes = {"launcher": "docker", "machines": 4}
    check_devices(ComputeConfig(num_processes=32, **nodes), Machine(num_cores=8, num_gpus=8))
    with pytest.raises(
        ConfigError, match=r"16 on each, but a machine shows 8 GPUs\. Set compute.num_processes to 32 or"
    ):
        check_devices(ComputeConfig(num_processes=64, **nodes), Machine(num_cores=8, num_gpus=8))


def test_cores_are_shared_out_unless_threads_are_set():
    machine = Machine(num_cores=8, num_gpus=0)
    assert threads_per_process(ComputeConfig(), machine, 3) == 2
    assert threads_per_process(ComputeConfig(), machine, 16) == 1
    assert threads_per_process(ComputeConfig(threads_per_process=5), machine, 3) == 5


def test_this_machine_has_a_core():
    assert this_machine().num_cores >= 1
