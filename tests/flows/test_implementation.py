"""``train.implementation: olmo_core`` is refused before the start where it cannot work, with what to do."""

import os
import re
import sys
from pathlib import Path

import pytest

from dpo_core.contract.config import TrainConfig
from dpo_core.contract.errors import ConfigError, PairlineError
from dpo_core.model.load import load_on_olmo_core
from flows import implementation as module
from flows.before_start import check_before_start
from flows.settings.overrides import validated
from flows.settings.stage_config import StageConfig
from flows.step_software import unchecked_software
from tasks.launch.compute import this_machine
from tasks.launch.process import ProcessLauncher, step_python
from tests.flows.test_benchmark_software import LM_EVAL, interpreter
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, tiny_values, write_inputs


@pytest.fixture
def inputs(tmp_path) -> Path:
    return write_inputs(tmp_path)


def config(inputs: Path, **sections: dict) -> StageConfig:
    """On OLMo-core, in an interpreter that has all of it unless a launcher or another is named."""
    sections["train"] = {"implementation": "olmo_core", **sections.get("train", {})}
    compute = sections.get("compute", {})
    if not {"launcher", "python"} & compute.keys():
        sections["compute"] = compute | {"python": str(interpreter(inputs))}
    return validated(tiny_values(inputs, inputs / "store", **sections), "recipe.yaml", StageConfig)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"adapter": {"kind": "lora"}}, "trains all weights"),
        ({"compute": {"sharding": "zero3"}}, "FSDP2 alone"),
        ({"compute": {"sharding": "fsdp2", "offload": "optimizer_and_parameters"}}, "offloads nothing"),
        ({"compute": {"python": "python3", "launcher": "docker"}}, "interpreter of the process launcher"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(inputs, sections, said):
    with pytest.raises(PairlineError, match=said):
        config(inputs, **sections)


def test_a_model_that_it_cannot_train_is_refused_with_the_list(inputs):
    other = inputs / "sft" / "config.json"
    other.write_text(other.read_text().replace('"model_type": "llama"', '"model_type": "mistral"'))
    with pytest.raises(ConfigError, match=r"its kind of model is mistral.*OLMo 2, OLMo 3, Llama, Qwen 3"):
        check_before_start(config(inputs))


def test_a_model_whose_heads_cannot_be_shared_out_is_refused(inputs):
    compute = {"num_processes": 2, "sharding": "fsdp2", "tensor_degree": 2}
    sections = {"compute": compute, "train": {"implementation": "transformers"}}
    check_before_start(config(inputs, **sections))
    file = inputs / "sft" / "config.json"
    file.write_text(file.read_text().replace('"num_key_value_heads": 2', '"num_key_value_heads": 1'))
    with pytest.raises(
        ConfigError, match=r"tensor_degree 2 does not go with .*: its num_key_value_heads is 1"
    ):
        check_before_start(config(inputs, **sections))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"implementation": "transformers"}}, ""),
        ({}, "its kind of model is mistral"),
        (
            {
                "train": {"implementation": "transformers"},
                "compute": {"num_processes": 4, "sharding": "fsdp2", "tensor_degree": 4},
            },
            "its num_key_value_heads is 2",
        ),
    ],
)
def test_a_model_is_looked_at_again_when_it_is_fetched(inputs, sections, said):
    """Of one from the Hub config.json is there only then."""
    fetched = checkpoint_ref(inputs / "sft")
    file = inputs / "sft" / "config.json"
    file.write_text(file.read_text().replace('"model_type": "llama"', '"model_type": "mistral"'))
    if said:
        with pytest.raises(ConfigError, match=said):
            module.check_fetched(config(inputs, **sections), fetched)
    else:
        module.check_fetched(config(inputs, **sections), fetched)


def test_an_environment_without_it_is_refused(inputs):
    lacking = {"python": str(interpreter(inputs, module.MODULE))}
    with pytest.raises(ConfigError, match=r"does not have OLMo-core.*make setup EXTRAS=olmo"):
        check_before_start(config(inputs, compute=lacking))
    check_before_start(config(inputs))
    with pytest.raises(ConfigError, match="which steps run in, cannot be started"):
        check_before_start(config(inputs, compute={"python": "/nowhere/python"}))


def test_float8_that_cannot_be_is_refused(inputs):
    on_it = {"train": {"precision": "bf16", "float8": "rowwise"}, "compute": {"sharding": "fsdp2"}}
    check_before_start(config(inputs, **on_it))
    assert (inputs / "starts").read_text().count("\n") == 1, "OLMo-core and torchao are looked for together"
    lacking = {"compute": {"sharding": "fsdp2", "python": str(interpreter(inputs, module.FLOAT8_MODULE))}}
    with pytest.raises(ConfigError, match=r"does not have torchao.*make setup EXTRAS=olmo.*float8 to none"):
        check_before_start(config(inputs, **on_it | lacking))
    check_before_start(config(inputs, **lacking))  # without float8 nobody asks for it
    for compute in ({"sharding": "none"}, {"num_processes": 2, "sharding": "fsdp2", "tensor_degree": 2}):
        with pytest.raises(
            PairlineError, match=r"compute\.sharding to fsdp2.*tensor_degree to 1, or train\.float8"
        ):
            config(inputs, **on_it | {"compute": compute})
    in_shares = {"compute": {"sharding": "fsdp2", "launcher": "slurm"}, "slurm": {"reference_array": 4}}
    with pytest.raises(PairlineError, match=r"Leave slurm\.reference_array empty"):
        config(inputs, **on_it | in_shares)
    file = inputs / "sft" / "config.json"
    file.write_text(file.read_text().replace('"intermediate_size": 64', '"intermediate_size": 72'))
    with pytest.raises(ConfigError, match="its intermediate_size is 72"):
        check_before_start(config(inputs, **on_it))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("8.0, NVIDIA A100-SXM4-80GB", r"NVIDIA A100-SXM4-80GB has 8\.0.*float8 to none"),
        ("8.0, NVIDIA A100-SXM4-80GB\n9.0, NVIDIA H100 80GB HBM3", ""),  # steps may be shown the second
        ("Field compute_cap is not a valid field", ""),  # an old driver's
        ("10.0, NVIDIA B200", ""),
    ],
)
def test_a_card_without_float8_units_is_refused_before_anything_is_computed(inputs, monkeypatch, told, said):
    smi = inputs / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\ncase "$*" in -L) echo "GPU 0: one";; *) echo "{told}";; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{inputs}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("tasks.launch.process.this_machine", this_machine.__wrapped__)
    on_it = {"train": {"precision": "bf16", "float8": "rowwise"}, "compute": {"sharding": "fsdp2"}}
    if said:
        with pytest.raises(ConfigError, match=said):
            check_before_start(config(inputs, **on_it))
    else:
        check_before_start(config(inputs, **on_it))


def test_on_a_cluster_the_interpreter_is_asked_where_it_is_seen_from_here(inputs):
    def on_cluster(**slurm: str) -> StageConfig:
        return config(inputs, compute={"launcher": "slurm"}, slurm=slurm)

    here = on_cluster(python=str(interpreter(inputs, module.MODULE)))
    with pytest.raises(ConfigError, match=r"does not have OLMo-core.*set slurm\.python to"):
        module.check_implementation(here)
    interpreter(inputs)
    module.check_implementation(here)
    assert unchecked_software(here) == ""
    for unseen, said in (
        ({"python": "/nowhere/python"}, r"Not checked: .* OLMo-core in slurm\.python \(/nowhere/python\)"),
        ({"python": "python3"}, r"slurm\.python \(python3\), and it is not on this machine"),
        ({"container": "pyxis", "image": "/images/a.sqsh"}, r"in slurm\.image \(/images/a\.sqsh\)"),
    ):
        module.check_implementation(on_cluster(**unseen))
        assert re.search(said, unchecked_software(on_cluster(**unseen)))


def test_with_benchmarks_one_environment_that_has_both_is_named(inputs):
    """Each check by itself sent to an environment that the other one refuses."""
    both = {"benchmarks": {"tasks": ["ifeval"]}}
    for lacks, said in (
        (module.MODULE, r"EXTRAS=olmo-benchmarks.* \.venv-olmo-benchmarks/bin/python"),
        (LM_EVAL, r"no lm-eval .* EXTRAS=olmo-benchmarks"),
    ):
        lacking = {"python": str(interpreter(inputs, lacks))}
        with pytest.raises(ConfigError, match=said):
            check_before_start(config(inputs, **both, compute=lacking))
    in_image = both | {"compute": {"launcher": "docker"}}
    for variant in ("cpu", "cpu-olmo", "cpu-benchmarks"):
        with pytest.raises(ConfigError, match=r"Set image\.variant to cpu-olmo-benchmarks"):
            check_before_start(config(inputs, **in_image, image={"variant": variant}))
    check_before_start(config(inputs, **in_image, image={"variant": "cpu-olmo-benchmarks"}))


def test_an_image_without_it_is_refused(inputs):
    with pytest.raises(ConfigError, match=r"Set image.variant to cpu-olmo"):
        check_before_start(config(inputs, compute={"launcher": "docker"}))
    check_before_start(config(inputs, compute={"launcher": "docker"}, image={"variant": "cpu-olmo"}))


@pytest.mark.parametrize(
    ("train", "variant"), [({"compile_regions": True}, "cuda"), ({"attention": "flex_attention"}, "cpu")]
)
def test_an_image_without_the_compiler_that_is_needed_is_refused(inputs, train, variant):
    train = {"implementation": "transformers", **train}

    def check(compute: dict, **image: object) -> None:
        module.check_implementation(config(inputs, train=train, compute=compute, image=image))

    docker = {"launcher": "docker"}
    needed = r"needs a C compiler.*image\.compiler to true.*base-image COMPILER=1"
    with pytest.raises(ConfigError, match=needed):
        check(docker, variant=variant)
    check(docker, variant=variant, compiler=True)
    check({})


def test_steps_run_in_the_interpreter_that_is_named(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    asked = config(inputs, compute={"python": "other/python"}).compute
    assert ProcessLauncher.of(asked, None, None).python == step_python(asked) == str(inputs / "other/python")
    assert step_python(asked.model_copy(update={"python": None})) == sys.executable


def test_a_step_that_lacks_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dpo_core.model.olmo_core", None)
    with pytest.raises(ConfigError, match="cannot be imported where this step runs"):
        load_on_olmo_core(checkpoint_ref(make_model(tmp_path)))
    assert TrainConfig().implementation == "transformers"  # which imports nothing of it
