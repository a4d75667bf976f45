"""Which ranks share a copy of a model out with FSDP2, which hold replicas, which compute each forward together."""

import os

from accelerate import Accelerator, ParallelismConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.jobs import Sharding
from dpo_core.engine.distributed import TENSOR, tensor_degree
from dpo_core.model.tensor_ranks import TensorRanks


def replicas_of(sharding: Sharding) -> ParallelismConfig | None:
    """Return groups of ``degree`` ranks; nothing where one group is all. Raises ``ConfigError`` for a rest."""
    world, degree = int(os.environ.get("WORLD_SIZE", "1")), sharding.degree
    if degree is None or degree == world:
        return None
    if world % degree:
        raise ConfigError(
            f"compute.shard_degree is {degree}, but {world} processes were started, which cannot form groups of so many. "
            "Set it to a divisor of compute.num_processes."
        )
    return ParallelismConfig(
        dp_replicate_size=world // degree, dp_shard_size=degree // sharding.tensor_degree
    )


def mesh_of(sharding: Sharding, device_type: str) -> DeviceMesh:
    """Return copies of the model, what shares a copy out, neighbours that compute together; the first two by accelerate's
    names. Raises ``ConfigError`` for a rest, in all or of a node."""
    world, together = int(os.environ["WORLD_SIZE"]), sharding.tensor_degree
    degree = sharding.degree or world
    if world % degree or degree % together:
        raise ConfigError(
            f"compute.tensor_degree is {together}, but {world} processes were started, {degree} for a copy of the model, "
            "which cannot form groups of so many. Set it to a divisor of compute.num_processes and of shard_degree."
        )
    if (here := int(os.environ.get("LOCAL_WORLD_SIZE", world))) % together:
        raise ConfigError(
            f"compute.tensor_degree is {together}, but {here} processes of this node were started: a group would lie on two "
            "nodes, and its exchanges of every layer go over the network between them.",
            "Start a multiple of tensor_degree on each node.",
        )
    shape = (world // degree, degree // together, together)
    return init_device_mesh(device_type, shape, mesh_dim_names=("dp_replicate", "dp_shard_cp", TENSOR))


def share_within(accelerator: Accelerator, sharding: Sharding, degree: int) -> None:
    """Have models that are loaded from now on shared out by groups of so many neighbours. All ranks call it together."""
    within = sharding.model_copy(update={"degree": degree})
    if within.tensor_degree > 1:
        set_together(accelerator, within)
    elif replicas := replicas_of(within):
        set_replicas(accelerator, replicas)


def set_together(accelerator: Accelerator, sharding: Sharding) -> None:
    """Have the groups of this process be those of a sharding with neighbours that compute together."""
    accelerator.state.parallelism_config = replicas_of(sharding) or ParallelismConfig()
    accelerator.state.device_mesh = mesh_of(sharding, accelerator.device.type)


def set_replicas(accelerator: Accelerator, replicas: ParallelismConfig) -> None:
    """Have the groups of a configuration be those of this process."""
    accelerator.state.parallelism_config = replicas
    accelerator.state.device_mesh = replicas.get_device_mesh(accelerator.device.type)


def tensor_ranks(accelerator: Accelerator) -> TensorRanks | None:
    """Return the neighbours that compute with this process; None where it computes by itself."""
    if (size := tensor_degree(accelerator)) == 1:
        return None
    mesh = accelerator.torch_device_mesh[TENSOR]
    return TensorRanks(mesh.get_group(), mesh.get_local_rank(), size)


def sharing_groups(accelerator: Accelerator) -> DeviceMesh | None:
    """Return groups of ranks with a copy each; None where all share one."""
    mesh = getattr(accelerator, "torch_device_mesh", None)
    return None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
