"""A step as an experiment of Beaker (spec v2), as pure data: one task, of as many replicas as the step has nodes."""

import shlex
from typing import Any

from dpo_core.contract.job import JOB_FILE
from dpo_core.contract.metrics_file import METRICS_FILE
from dpo_core.contract.results import ENVIRONMENT_FILE, ERROR_FILE, RESULT_FILE
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import SECRETS_FOLDER
from tasks.launch.job_spec.config import BeakerConfig
from tasks.launch.job_spec.step_description import (
    GIB,
    Asked,
    NodeWords,
    StepDescription,
    check_below,
    describe,
    require,
)
from tasks.launch.launcher import StepImage

OUTPUT = "/output"  # Beaker keeps what lies there as the task's result dataset
REPORTS = (JOB_FILE, RESULT_FILE, ERROR_FILE, ENVIRONMENT_FILE, METRICS_FILE)
WORDS = NodeWords("PAIRLINE_RANK_WORD", "PAIRLINE_LEADER_WORD")
VARIABLES = {WORDS.rank: '"$BEAKER_REPLICA_RANK"', WORDS.leader: '"$BEAKER_LEADER_REPLICA_HOSTNAME"'}
OF_DOCKER_NETWORK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # a container's own; a host's are its site's
Spec = dict[str, Any]


def experiment(
    asked: Asked, compute: ComputeConfig, docker: DockerConfig, beaker: BeakerConfig, image: StepImage
) -> Spec:
    """Return the experiment of a step. Raises ``ConfigError`` for what the section lacks or does not reach."""
    require(
        beaker,
        {
            "workspace": "where experiment and image are made",
            "budget": "who is charged",
            "clusters": "where it may run",
            "image": "the name that `beaker image create` gave the trainer image",
            "weka": "the bucket that holds store, checkpoints and data",
            "mount_path": "where this machine has that bucket",
        },
    )
    step = describe(asked, compute, docker, beaker, WORDS, image)
    assert beaker.mount_path is not None, "asked for above"
    check_below(beaker.mount_path, [mount.path for mount in step.container.mounts], "beaker.mount_path")
    return {
        "version": "v2",
        "description": f"Pairline step {asked.step}, job {step.command.job_fingerprint[:16]}",
        "budget": beaker.budget,
        "tasks": [_task(step, compute, beaker)],
        "retry": {"allowedTaskRetries": beaker.retries},
    }


def _task(step: StepDescription, compute: ComputeConfig, beaker: BeakerConfig) -> Spec:
    resources: Spec = {
        "cpuCount": float(step.num_cores),
        "memory": f"{step.memory_bytes / GIB:g}GiB",
        "sharedMemory": f"{step.container.shared_memory_bytes / GIB:g}GiB",
    }
    if step.num_cards:
        resources["gpuCount"] = step.num_cards
    task: Spec = {
        "name": step.command.step,
        "image": {"beaker": beaker.image},
        "command": ["/bin/sh", "-c"],
        "arguments": [script(step)],
        "envVars": _environment(step, compute),
        "datasets": _datasets(step, beaker),
        "result": {"path": OUTPUT},
        "resources": resources,
        "context": _context(beaker),
        "constraints": {"cluster": list(beaker.clusters)},
        "timeout": f"{step.timeout_seconds}s",
    }
    if step.num_nodes > 1:
        task |= {
            "replicas": step.num_nodes,
            "leaderSelection": True,
            "hostNetworking": True,  # how replicas reach the leader, and the InfiniBand below
            "propagateFailure": True,
            "propagatePreemption": True,
            "synchronizedStartTimeout": f"{compute.join_timeout_seconds}s",
        }
    return task


def script(step: StepDescription) -> str:
    """Return what a shell runs: the step, which is told of SIGTERM; then its reports go to the result dataset."""
    line = shlex.join(step.container.argv)
    for word, variable in VARIABLES.items():
        line = line.replace(word, variable)
    reports = shlex.join(str(step.container.folder / name) for name in REPORTS)
    return f"""cd {shlex.join([str(step.container.folder)])} || exit 13
{line} &
step=$!
trap 'kill -TERM "$step"' TERM
while :; do
    wait "$step"; code=$?
    kill -0 "$step" 2>/dev/null || break
done
if [ "${{BEAKER_REPLICA_RANK:-0}}" = 0 ]; then
    for file in {reports}; do [ ! -f "$file" ] || cp "$file" {OUTPUT}/; done
fi
exit "$code"
"""


def _environment(step: StepDescription, compute: ComputeConfig) -> list[Spec]:
    kept = {
        name: value
        for name, value in step.container.env.items()
        if name not in OF_DOCKER_NETWORK or name in compute.env
    }
    return [{"name": name, "value": value} for name, value in sorted(kept.items())]


def _datasets(step: StepDescription, beaker: BeakerConfig) -> list[Spec]:
    """The bucket, and each secret as a file, named and never told."""
    return [
        {"mountPath": str(beaker.mount_path), "source": {"weka": beaker.weka}},
        *(
            {"mountPath": str(SECRETS_FOLDER / name), "source": {"secret": beaker.secrets.get(name, name)}}
            for name in step.command.secrets
        ),
    ]


def _context(beaker: BeakerConfig) -> Spec:
    """``minRuntime`` and ``autoResume`` took the place of ``preemptible`` (beaker-py 2.8); both together are refused."""
    context: Spec = {"priority": beaker.priority}
    return context | ({"minRuntime": "0s", "autoResume": True} if beaker.preemptible else {})
