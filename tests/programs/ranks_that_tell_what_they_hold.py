"""``python -m tests.programs.ranks_that_tell_what_they_hold train --job ...``: the step, and what each rank holds."""

import json
import sys

import torch
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor

from dpo_core import __main__ as program
from dpo_core.engine.engine import Engine
from dpo_core.steps import train
from dpo_core.training.trainer import Trainer
from tests.programs.small_chunks import cut_logits


def held(trainer: Trainer) -> dict:
    """Numbers of values that this rank holds of the weights and of AdamW's moments, and which back end says so."""
    engine, parameters = trainer.engine, list(trainer.engine.scorer.parameters())
    optimizer = getattr(engine, "optimizer", None) or engine.deepspeed.optimizer.optimizer
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    return {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "world": trainer.accelerator.num_processes,
        "weights": sum(local(p).numel() for p in parameters),
        "half_weights": sum(local(p).numel() for p in parameters if local(p).dtype == torch.bfloat16),
        "moments": sum(local(m).numel() for m in moments),
        "zero3_parameters": sum(hasattr(p, "ds_id") for p in parameters),
        "dtensors": sum(isinstance(p, DTensor) for p in parameters),
        "gradients_partitioned": getattr(
            getattr(getattr(engine, "deepspeed", None), "optimizer", None), "partition_gradients", None
        ),
        "offload": offload_of(engine),
    }


def offload_of(engine: Engine) -> str:
    """What the back end itself says that it keeps off the accelerator."""
    if hasattr(engine, "deepspeed"):
        optimizer = engine.deepspeed.optimizer
        if getattr(optimizer, "offload_param", False):  # stage 3 alone has it
            return "optimizer_and_parameters"
        return (
            "optimizer"
            if getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False)
            else "none"
        )
    layers = [module for module in engine.scorer.modules() if isinstance(module, FSDPModule)]
    policies = [layer._get_fsdp_state()._fsdp_param_group.offload_policy for layer in layers]
    offloaded = bool(policies) and all(isinstance(policy, CPUOffloadPolicy) for policy in policies)
    return "optimizer_and_parameters" if offloaded else "none"


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a tensor."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)


def main() -> int:
    """Record after set-up, before the first step."""
    cut_logits()
    set_up = train.set_up

    def recorded(job, progress, stop):
        trainer = set_up(job, progress, stop)
        path = job.out_dir / f"held-{trainer.accelerator.process_index}.json"
        path.write_text(json.dumps(held(trainer)))
        return trainer

    train.set_up = recorded
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
