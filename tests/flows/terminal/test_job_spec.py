"""`pairline job-spec` with a recipe: what it prints around the description, and what it refuses."""

import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dpo_core.contract.data_jobs import ConvertJob
from dpo_core.contract.errors import ConfigError, StoreError
from flows.settings.overrides import read_recipe
from flows.terminal.cli import app
from flows.terminal.job_spec_command import make_ready, spec_text
from tasks.launch.job_spec.config import KubernetesConfig
from tasks.launch.job_spec.kubernetes import pod_user
from tests.tasks.launch.test_command import REFERENCE

QUICKSTART = Path(__file__).parents[3] / "recipes/quickstart.yaml"
NODE = {"cpus_per_node": 8, "memory_gib": 32, "mount_path": "/shared"}
BEAKER = {
    "workspace": "ai2/align",
    "budget": "ai2/adapt",
    "clusters": "[ai2/jupiter]",
    "image": "you/trainer",
    "weka": "bucket",
}
IMAGE = f"registry.example.org/trainer@sha256:{'ab' * 32}"


def settings(engine: str, **section: object) -> list[str]:
    values = {f"{engine}.{name}": value for name, value in (NODE | section).items()}
    return [f"{name}={value}" for name, value in (values | {"store.root": "/shared/store"}).items()]


def test_a_description_says_how_to_submit_it_and_what_is_open(tmp_path: Path):
    out = tmp_path / "spec.yaml"
    sets = [word for one in settings("beaker", **BEAKER) for word in ("--set", one)]
    done = CliRunner().invoke(app, ["job-spec", str(QUICKSTART), "--for", "beaker", "-o", str(out), *sets])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "#     beaker image create --workspace ai2/align --name trainer IMAGE" in text
    assert "# NOT YET: FINGERPRINT" in text
    assert yaml.safe_load(text)["tasks"][0]["name"] == "train"


def test_a_description_for_kubernetes_takes_the_image_by_its_digest():
    sets = settings("kubernetes", namespace="n", volume_claim="v")
    with pytest.raises(ConfigError, match=r"image\.use names none.*image\.push=true"):
        spec_text(read_recipe(QUICKSTART, sets), "kubernetes", "reference", None)
    config = read_recipe(QUICKSTART, [*sets, f"image.use={IMAGE}"])
    spec = yaml.safe_load(spec_text(config, "kubernetes", "reference", None))
    (job,) = spec["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


def test_the_image_is_one_that_holds_what_the_recipe_needs():
    """Not one in which the first step ends, as OLMo-core is not there."""
    needs = ["train.implementation=olmo_core", "benchmarks.tasks=[ifeval]"]
    config = read_recipe(QUICKSTART, [*settings("beaker", **BEAKER, gpus_per_node=8), *needs])
    assert "--set image.variant=cuda-olmo-benchmarks` printed" in spec_text(config, "beaker", "train", None)
    config = read_recipe(QUICKSTART, [*settings("beaker", **BEAKER), needs[0]])
    assert "--set image.variant=cpu-olmo` printed" in spec_text(config, "beaker", "train", None)
    sets = settings("kubernetes", namespace="n", volume_claim="v", gpus_per_node=8)
    for more, variant in (([needs[0]], "cuda-olmo"), ([], "cuda")):
        with pytest.raises(
            ConfigError, match=rf"image RECIPE --set image\.variant={variant} --set image\.push"
        ):
            spec_text(read_recipe(QUICKSTART, [*sets, *more]), "kubernetes", "train", None)


def test_a_pod_may_write_the_folder_that_root_has_made(tmp_path: Path):
    job = ConvertJob(source_dir="/models", source_sha256="abc").at(tmp_path / "store/convert/ab")
    job.write()
    make_ready(job, True, pod_user(KubernetesConfig(user=2000)))
    assert (job.out_dir / "accelerate.json").is_file()
    owner = 2000 if os.geteuid() == 0 else os.geteuid()
    assert {path.stat().st_uid for path in (job.out_dir, *job.out_dir.iterdir())} == {owner}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["reference.tokens_per_batch=512"], "tokens_per_batch"),
        (["train.precision=bf16"], "precision"),
        (["compute.num_processes=2", "compute.sharding=fsdp2"], "sharding"),
        (["compute.num_processes=2", "compute.sharding=fsdp2", "compute.launcher=slurm"], "sharding"),
    ],
)
def test_a_reference_pass_of_other_settings_is_refused_by_their_names(
    tmp_path: Path, changed: list[str], said: str
):
    """Its folder is that of an earlier job whose result would be the same, which began with its own settings."""
    config = read_recipe(QUICKSTART, settings("beaker", **BEAKER))
    train, reference = config.train, config.reference
    job = REFERENCE.model_copy(
        update={
            "precision": train.precision,
            "implementation": train.implementation,
            "forward": train.forward,
            "attention": train.attention,
            "tokens_per_batch": reference.tokens_per_batch,
            "rows_per_shard": reference.rows_per_shard,
        }
    ).at(tmp_path / "reference/ab")
    job.write()
    other = read_recipe(QUICKSTART, [*settings("beaker", **BEAKER), *changed])
    with pytest.raises(
        ConfigError, match=f"is a job of step reference with another {said} than the recipe's"
    ):
        spec_text(other, "beaker", "reference", job.out_dir)


def test_what_is_no_step_and_no_job_is_refused(tmp_path: Path):
    config = read_recipe(QUICKSTART, settings("beaker", **BEAKER))
    with pytest.raises(ConfigError, match=r"--step upload is no step; use one of .*reference"):
        spec_text(config, "beaker", "upload", None)
    with pytest.raises(StoreError, match="is not a job file"):
        spec_text(config, "beaker", "train", tmp_path)
