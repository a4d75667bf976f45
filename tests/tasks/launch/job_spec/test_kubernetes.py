"""A step as a JobSet: read by the client models that Kubeflow makes of Kubernetes' and JobSet's own API descriptions.

Those models drop what they do not know, so what they write back is compared with what was given.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set_spec import JobsetV1alpha2JobSetSpec

from dpo_core.contract.errors import ConfigError
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.docker.config import DockerConfig
from tasks.launch.job_spec.config import KubernetesConfig
from tasks.launch.job_spec.kubernetes import final_exit_codes, jobset
from tasks.launch.job_spec.step_description import Asked
from tests.tasks.launch.job_spec.conftest import COMPUTE, IMAGE

Spec = dict[str, Any]


@pytest.fixture
def section(volume: Path) -> Callable[..., KubernetesConfig]:
    def made(**changed: object) -> KubernetesConfig:
        values = {
            "namespace": "align",
            "volume_claim": "shared",
            "mount_path": volume,
            "nodes": 2,
            "gpus_per_node": 8,
            "cpus_per_node": 96,
            "memory_gib": 900,
            "secret": "pairline",
        }
        return KubernetesConfig.model_validate(values | changed)

    return made


@pytest.fixture
def spec(training: Asked, section: Callable[..., KubernetesConfig]) -> Spec:
    return jobset(training, COMPUTE, DockerConfig(shared_memory_gib=16), section(), IMAGE)


def job_of(spec: Spec) -> Spec:
    return spec["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(spec: Spec) -> Spec:
    return job_of(spec)["template"]["spec"]


def container_of(spec: Spec) -> Spec:
    return pod_of(spec)["containers"][0]


def test_the_projects_own_models_read_all_of_it(spec: Spec, training: Asked, section):
    everything = jobset(
        training,
        COMPUTE,
        DockerConfig(),
        section(queue="llm", priority_class="high", node_selector={"gpu": "h100"}, user=2000),
        IMAGE,
    )
    for one in (spec, everything):
        assert JobsetV1alpha2JobSet.from_dict(one).to_dict() == one
    wrong = spec["spec"] | {"nodes": 2}
    assert JobsetV1alpha2JobSetSpec.from_dict(wrong).to_dict() != wrong  # what they do not know would show


def test_a_pod_is_the_container_of_the_docker_launcher(spec: Spec, training: Asked):
    pod, container = pod_of(spec), container_of(spec)
    assert container["image"] == IMAGE.reference
    assert container["command"][:3] == [IMAGE.python, "-m", "dpo_core.in_container"]
    assert container["command"][-2:] == ["--job", str(training.job.out_dir / "job.json")]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["automountServiceAccountToken"], pod["securityContext"]["runAsNonRoot"]) == (False, True)
    assert pod["securityContext"]["runAsUser"] == (os.getuid() or 10001)
    assert pod["terminationGracePeriodSeconds"] == 90 + 10
    assert container["resources"]["limits"] == {
        "cpu": "96",
        "memory": str(900 * 2**30),
        "nvidia.com/gpu": "8",
    }
    sizes = {one["name"]: one["emptyDir"]["sizeLimit"] for one in pod["volumes"] if "emptyDir" in one}
    assert sizes == {"scratch": str(4 << 30), "shared-memory": str(16 << 30)}


def test_the_store_is_seen_in_parts_and_written_to_in_the_jobs_folder_alone(spec: Spec, training: Asked):
    mounts = {one["mountPath"]: one for one in container_of(spec)["volumeMounts"] if one["name"] == "store"}
    writable = [path for path, one in mounts.items() if not one.get("readOnly")]
    assert writable == [str(training.job.out_dir)]
    assert len(mounts) == 3
    for path, one in mounts.items():
        assert path.endswith("/it's shared/" + one["subPath"])


def test_a_node_learns_its_rank_and_the_leader_when_it_starts(spec: Spec):
    command, env = container_of(spec)["command"], container_of(spec)["env"]
    assert command[command.index("--num_machines") + 1] == "2"
    assert command[command.index("--num_processes") + 1] == "16"
    assert command[command.index("--machine_rank") + 1] == "$(PAIRLINE_NODE)"
    assert command[command.index("--main_process_ip") + 1] == "$(PAIRLINE_LEADER)"
    values = {one["name"]: one for one in env}
    name = spec["metadata"]["name"]
    assert values["PAIRLINE_LEADER"]["value"] == f"{name}-nodes-0-0.{name}"
    assert spec["spec"]["network"]["subdomain"] == name
    assert len(f"{name}-nodes-0-99999-abcde") <= 63
    assert "completion-index" in values["PAIRLINE_NODE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert values["NCCL_DEBUG"]["value"] == "costs $$(1) or $2"  # no reference of the kubelet's
    job = job_of(spec)
    assert (job["completionMode"], job["parallelism"], job["completions"]) == ("Indexed", 2, 2)


def test_ranks_live_and_die_together_and_what_cannot_be_mended_ends_it(spec: Spec):
    assert spec["spec"]["failurePolicy"]["maxRestarts"] == 6
    assert job_of(spec)["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in job_of(spec)  # a day in the queue would end it for good
    assert pod_of(spec)["activeDeadlineSeconds"] == COMPUTE.step_timeout_seconds
    codes = job_of(spec)["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert codes == final_exit_codes()
    assert {10, 16, 17} <= set(codes)
    assert not {0, 1, 14, 20, 21, 22} & set(codes)


def test_secrets_are_files_by_name_and_nothing_of_this_machine_is_told(monkeypatch, training, section):
    monkeypatch.setenv("WANDB_API_KEY", "k3y")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:passw0rd@proxy")
    text = str(made := jobset(training, COMPUTE, DockerConfig(), section(), IMAGE))
    assert "k3y" not in text
    assert "passw0rd" not in text
    (secret,) = [one["secret"] for one in pod_of(made)["volumes"] if "secret" in one]
    assert secret["secretName"] == "pairline"
    assert secret["items"] == [{"key": "WANDB_API_KEY", "path": "WANDB_API_KEY"}]
    values = {one["name"]: one.get("value") for one in container_of(made)["env"]}
    assert values["PAIRLINE_WANDB_KEY_FILE"] == "/run/secrets/WANDB_API_KEY"
    with pytest.raises(ConfigError, match=r"WANDB_API_KEY, and kubernetes\.secret is empty"):
        jobset(training, COMPUTE, DockerConfig(), section(secret=""), IMAGE)


def test_one_process_has_one_pod_and_no_rendezvous(training: Asked, section):
    made = jobset(
        replace(training, step="mix", job=None), ComputeConfig(), DockerConfig(), section(nodes=1), IMAGE
    )
    assert JobsetV1alpha2JobSet.from_dict(made).to_dict() == made
    assert job_of(made)["parallelism"] == 1
    assert "--machine_rank" not in container_of(made)["command"]
    assert "ports" not in container_of(made)
    assert "nvidia.com/gpu" not in container_of(made)["resources"]["limits"]  # it computes with no model


def test_a_step_whose_job_is_not_known_yet_has_the_same_command_but_for_its_places(training: Asked, section):
    known, left_open = (
        container_of(jobset(asked, COMPUTE, DockerConfig(), section(), IMAGE))["command"]
        for asked in (training, replace(training, job=None))
    )
    folder, opened = str(training.job.out_dir), str(training.store / "train/FINGERPRINT")
    assert [word.replace(folder, opened) for word in known] == left_open


def test_what_is_missing_is_named_at_once(training: Asked, section, tmp_path: Path):
    with pytest.raises(
        ConfigError,
        match=r"needs kubernetes\.namespace, .*volume_claim, .*mount_path, .*cpus_per_node, .*memory_gib",
    ):
        jobset(training, COMPUTE, DockerConfig(), KubernetesConfig(), IMAGE)
    with pytest.raises(ConfigError, match=r"does not lie below kubernetes\.mount_path"):
        jobset(training, COMPUTE, DockerConfig(), section(mount_path=tmp_path / "other"), IMAGE)
    for wrong in ({"nodes": 1}, {"nodes": 3}):  # 16 processes on 8 cards, and on three nodes
        with pytest.raises(ConfigError, match=r"Set kubernetes\.nodes"):
            jobset(training, COMPUTE, DockerConfig(), section(**wrong), IMAGE)


def test_processes_that_compute_together_are_of_one_node(training: Asked, section):
    """Six nodes of four: a group of eight would be of two nodes; a step of one process has no groups."""
    compute = ComputeConfig(num_processes=24, sharding="fsdp2", tensor_degree=8)
    jobset(training, compute, DockerConfig(), section(nodes=3), IMAGE)
    torn = r"tensor_degree 8 cannot form groups of the 4 processes of a node; .* Or set kubernetes\.nodes"
    with pytest.raises(ConfigError, match=torn):
        jobset(training, compute, DockerConfig(), section(nodes=6), IMAGE)
    jobset(replace(training, step="export", job=None), compute, DockerConfig(), section(nodes=6), IMAGE)
