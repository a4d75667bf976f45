"""What a person can get wrong: each ends in one sentence of the right kind before anything is trained."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_core.contract.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskFull,
    PairlineError,
    StoreError,
)
from flows.dpo_stage import dpo_stage
from flows.settings.stage_config import StageConfig
from tests.flows.conftest import tiny_config
from tests.tiny_models import make_model, make_tokenizer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

ROW = {"prompt": "Hi", "chosen": "Hello there.", "rejected": "No."}
Case = Callable[[Path, Path], StageConfig]  # (tiny inputs, scratch folder) -> configuration


def data_file(folder: Path, text: str) -> dict:
    (folder / "rows.jsonl").write_text(text)
    return {"sources": [{"source": str(folder / "rows.jsonl")}], "held_out": "0"}


def with_data(text: str, **source: object) -> Case:
    def config(inputs: Path, scratch: Path) -> StageConfig:
        data = data_file(scratch, text)
        data["sources"][0].update(source)
        return tiny_config(inputs, scratch / "store", data=data)

    return config


def missing_file(inputs: Path, scratch: Path) -> StageConfig:
    return tiny_config(inputs, scratch / "store", data={"sources": [{"source": "./nowhere.jsonl"}]})


def no_template(inputs: Path, scratch: Path) -> StageConfig:
    model = make_model(scratch / "sft", make_tokenizer(chat_template=None))
    return tiny_config(inputs, scratch / "store", checkpoint={"source": str(model)})


def truncated_weights(inputs: Path, scratch: Path) -> StageConfig:
    weights = make_model(scratch / "sft") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return tiny_config(inputs, scratch / "store", checkpoint={"source": str(scratch / "sft")})


def settings_that_no_export_could_write(inputs: Path, scratch: Path) -> StageConfig:
    """Read without a word, so the training would go well, and end where its result is saved."""
    file = make_model(scratch / "sft") / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": "x"}))
    return tiny_config(inputs, scratch / "store", checkpoint={"source": str(scratch / "sft")})


def batch_that_cannot_be_met(inputs: Path, scratch: Path) -> StageConfig:
    return tiny_config(
        inputs, scratch / "store", train={"global_batch_pairs": 8, "per_device_batch_pairs": 3}
    )


def attention_that_is_not_here(inputs: Path, scratch: Path) -> StageConfig:
    return tiny_config(
        inputs, scratch / "store", train={"attention": "flash_attention_2", "precision": "bf16"}
    )


def four_bits_without_cuda(inputs: Path, scratch: Path) -> StageConfig:
    return tiny_config(inputs, scratch / "store", adapter={"kind": "qlora"}, train={"precision": "bf16"})


def eight_bits_without_cuda(inputs: Path, scratch: Path) -> StageConfig:
    return tiny_config(inputs, scratch / "store", optim={"optimizer": "adamw_8bit"})


def token_that_is_nowhere(inputs: Path, scratch: Path) -> StageConfig:
    upload = {"repo_id": "org/dpo", "token_block": "no-such-block"}
    return tiny_config(inputs, scratch / "store", upload=upload)


GOOD = json.dumps(ROW) + "\n"
CASES: dict[str, tuple[Case, type[PairlineError], str]] = {
    "missing file": (missing_file, DataError, r"nowhere\.jsonl"),
    "unknown column": (
        with_data(GOOD, columns={"chosen": "winner"}),
        DataError,
        r"winner.*prompt, chosen, rejected",
    ),
    "line cut in half": (with_data(GOOD * 3 + GOOD[:20]), DataError, r"rows\.jsonl.*line 4"),
    "empty data set": (with_data(""), DataError, r"rows\.jsonl.*(empty|no rows)"),
    "all rows dropped": (
        with_data(json.dumps(ROW | {"rejected": ROW["chosen"]}) + "\n"),
        DataError,
        "identical_pair",
    ),
    "no chat template": (no_template, CheckpointError, r"checkpoint\.chat_template"),
    "settings that no export could write": (
        settings_that_no_export_could_write,
        CheckpointError,
        r"generation_config\.json .*eos_token_id 'x'.*Correct it in the checkpoint",
    ),
    "truncated weights": (truncated_weights, CheckpointError, r"model\.safetensors.*\d+ bytes"),
    "impossible batch": (batch_that_cannot_be_met, ConfigError, r"per_device_batch_pairs is 3.*1, 2, 4, 8"),
    "a token that is nowhere": (token_that_is_nowhere, ConfigError, "no such Prefect Secret block"),
    "4-bit weights without CUDA": (
        four_bits_without_cuda,
        ConfigError,
        "qlora needs a CUDA GPU.*Use adapter.kind lora",
    ),
    "8-bit moments without CUDA": (
        eight_bits_without_cuda,
        ConfigError,
        "adamw_8bit needs.*Use optim.optimizer adamw",
    ),
    "attention of another machine": (
        attention_that_is_not_here,
        ConfigError,
        r"flash_attention_2 needs .*(Use|install)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_before_anything_is_trained(name, tiny_inputs, tmp_path):
    config, kind, message = CASES[name]
    with pytest.raises(kind) as caught:
        dpo_stage(config(tiny_inputs, tmp_path))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert not (tmp_path / "store" / "train").exists()


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("loss", {"name": "dpoo"}, r"loss\.name.*dpo_norm"),
        ("loss", {"beta": 0}, r"loss\.beta.*greater than 0"),
        ("loss", {"beta": -1}, r"loss\.beta"),
        ("train", {"global_batch_pairs": 0}, r"train\.global_batch_pairs"),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_what_is_allowed(
    section, value, message, tiny_inputs, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tiny_inputs, tmp_path, **{section: value})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 1 MiB; mounting takes root, which CI has."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_told_as_such(tiny_inputs, small_disk):
    (small_disk / "ballast").write_bytes(bytes(900_000))
    with pytest.raises(DiskFull, match=r"[Nn]o space left"):
        dpo_stage(tiny_config(tiny_inputs, small_disk / "store"))
    assert not (small_disk / "store" / "train").exists()


def test_a_store_that_cannot_be_written_is_told_as_such(tiny_inputs, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match=r"store\.root"):
        dpo_stage(tiny_config(tiny_inputs, small_disk / "store"))
