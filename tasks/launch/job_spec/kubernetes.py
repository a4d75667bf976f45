"""A step as a JobSet of Kubernetes (jobset.x-k8s.io/v1alpha2), as pure data.

One Job of as many pods as the step has nodes, indexed; a pod that fails ends all, and the set is made again as a whole, as
the ranks of a step live and die together. What another start cannot mend, by the step's own exit code, ends the set.
"""

import os
from pathlib import Path
from typing import Any

from dpo_core.contract.errors import ConfigError, PairlineError, StoreBusy
from tasks.launch.command import NODE_PORT
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.docker.config import DockerConfig
from tasks.launch.docker.container import (
    FOLDER,
    JOB,
    LABEL,
    SCRATCH,
    SCRATCH_BYTES,
    SECRETS_FOLDER,
    STEP,
    Mount,
    container_user,
)
from tasks.launch.job_spec.config import KubernetesConfig
from tasks.launch.job_spec.step_description import (
    Asked,
    NodeWords,
    StepDescription,
    check_below,
    describe,
    require,
)
from tasks.launch.launcher import StepImage, job_name

JOB_NAME, CONTAINER = "nodes", "step"  # of the set's one replicated job, of its pods' one container
RANK_VARIABLE, LEADER_VARIABLE = "PAIRLINE_NODE", "PAIRLINE_LEADER"
INDEX = "batch.kubernetes.io/job-completion-index"
WORDS = NodeWords(f"$({RANK_VARIABLE})", f"$({LEADER_VARIABLE})")  # replaced by the kubelet
SECONDS_TO_REPORT = 10  # after the checkpoint: the end of the processes, and error.json
Spec = dict[str, Any]


def jobset(
    asked: Asked, compute: ComputeConfig, docker: DockerConfig, kubernetes: KubernetesConfig, image: StepImage
) -> Spec:
    """Return the JobSet of a step. Raises ``ConfigError`` for what the section lacks or does not reach."""
    require(
        kubernetes,
        {
            "namespace": "where it is made",
            "volume_claim": "the claim on the volume that holds store, checkpoints and data",
            "mount_path": "where this machine has that volume",
        },
    )
    step = describe(asked, compute, docker, kubernetes, WORDS, image)
    if step.command.secrets and not kubernetes.secret:
        raise ConfigError(
            f"Step {asked.step} needs {', '.join(step.command.secrets)}, and kubernetes.secret is empty.",
            "Make a Secret with that key (kubectl create secret generic NAME --from-file=KEY=FILE) and name it.",
        )
    name = job_name(asked.step, step.command.job_fingerprint, str(step.command.folder)).lower()
    labels = {LABEL: "1", STEP: asked.step}
    about = {JOB: step.command.job_fingerprint, FOLDER: str(step.command.folder)}
    queue = {"kueue.x-k8s.io/queue-name": kubernetes.queue} if kubernetes.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": kubernetes.namespace,
            "labels": {**labels, **queue},
            "annotations": about,
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "failurePolicy": {
                "maxRestarts": kubernetes.retries,
                "rules": [
                    {"name": "noRetry", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": [
                {
                    "name": JOB_NAME,
                    "replicas": 1,
                    "template": {
                        "spec": _job(step, _pod(step, kubernetes, f"{name}-{JOB_NAME}-0-0.{name}"), labels)
                    },
                }
            ],
        },
    }


def final_exit_codes() -> list[int]:
    """Return the exit codes of errors that another start would end in again. A folder that is busy is none: a pod of the
    start before may hold it yet."""
    waiting, codes = [PairlineError], set()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not kind.retryable:
            codes.add(kind.exit_code)
    return sorted(codes - {PairlineError.exit_code, StoreBusy.exit_code})


def pod_user(kubernetes: KubernetesConfig) -> tuple[int, int]:
    """Return user and group that pods run as, who has to own what a step writes."""
    if kubernetes.user is not None:
        return kubernetes.user, kubernetes.user
    return container_user(os.getuid(), os.getgid())


def _job(step: StepDescription, pod: Spec, labels: dict[str, str]) -> Spec:
    return {
        "completionMode": "Indexed",
        "parallelism": step.num_nodes,
        "completions": step.num_nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": final_exit_codes(),
                    },
                }
            ]
        },
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }


def _pod(step: StepDescription, kubernetes: KubernetesConfig, leader: str) -> Spec:
    user, group = pod_user(kubernetes)
    cards = {kubernetes.gpu_resource: str(step.num_cards)} if step.num_cards else {}
    pod: Spec = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": step.timeout_seconds,  # from when a node has it: a Job's own would count in the queue
        "terminationGracePeriodSeconds": step.container.stop_grace_seconds + SECONDS_TO_REPORT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(step, kubernetes, leader, cards)],
        "volumes": _volumes(step, kubernetes),
    }
    if cards:
        pod["tolerations"] = [{"key": kubernetes.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
    if kubernetes.node_selector:
        pod["nodeSelector"] = dict(kubernetes.node_selector)
    if kubernetes.priority_class:
        pod["priorityClassName"] = kubernetes.priority_class
    return pod


def _container(step: StepDescription, kubernetes: KubernetesConfig, leader: str, cards: Spec) -> Spec:
    mount_path = _mount_path(kubernetes)
    check_below(mount_path, [mount.path for mount in step.container.mounts], "kubernetes.mount_path")
    several: list[Spec] = []
    if step.num_nodes > 1:
        rank = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
        several = [{"name": RANK_VARIABLE, "valueFrom": rank}, {"name": LEADER_VARIABLE, "value": leader}]
    resources = {
        "cpu": str(step.num_cores),
        "memory": str(step.container.memory_bytes or step.memory_bytes),
        **cards,
    }
    container: Spec = {
        "name": CONTAINER,
        "image": step.container.image,
        "command": [
            word if word in (WORDS.rank, WORDS.leader) else _literal(word) for word in step.container.argv
        ],
        "workingDir": str(step.container.folder),
        "env": several
        + [{"name": name, "value": _literal(value)} for name, value in sorted(step.container.env.items())],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            *(_mount(mount, mount_path) for mount in step.container.mounts),
            {"name": "scratch", "mountPath": SCRATCH},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *(
                {
                    "name": "secrets",
                    "mountPath": str(SECRETS_FOLDER / name),
                    "subPath": name,
                    "readOnly": True,
                }
                for name in step.command.secrets
            ),
        ],
    }
    if step.num_nodes > 1:
        container["ports"] = [{"name": "rendezvous", "containerPort": NODE_PORT, "protocol": "TCP"}]
    return container


def _mount_path(kubernetes: KubernetesConfig) -> Path:
    assert kubernetes.mount_path is not None, "asked for before"
    return kubernetes.mount_path


def _literal(value: str) -> str:
    return value.replace("$(", "$$(")  # the kubelet would take it for a variable


def _mount(mount: Mount, mount_path: Path) -> Spec:
    place: Spec = {"name": "store", "mountPath": str(mount.path)}
    if mount.path != mount_path:
        place["subPath"] = str(mount.path.relative_to(mount_path))
    return place if mount.writable else {**place, "readOnly": True}


def _volumes(step: StepDescription, kubernetes: KubernetesConfig) -> list[Spec]:
    """The claim, and what else the container may write to: memory, which counts as its own."""
    volumes: list[Spec] = [
        {"name": "store", "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": str(SCRATCH_BYTES)}},
        {
            "name": "shared-memory",
            "emptyDir": {"medium": "Memory", "sizeLimit": str(step.container.shared_memory_bytes)},
        },
    ]
    if step.command.secrets:
        items = [{"key": name, "path": name} for name in step.command.secrets]
        volumes.append(
            # Of a pod with one container and one user, who is not root: whose files they are does not matter.
            {
                "name": "secrets",
                "secret": {"secretName": kubernetes.secret, "items": items, "defaultMode": 0o444},
            }
        )
    return volumes
