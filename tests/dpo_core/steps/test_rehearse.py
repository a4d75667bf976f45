"""What an export, an upload or a hand-off would refuse is said of the SFT checkpoint, before anything is trained."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dpo_core.contract.errors import CheckpointError
from dpo_core.contract.jobs import ExportJob, RehearseJob, RehearseResult
from tasks.handoff.rlvr_rules import check_before_training, failed_rules
from tests.tiny_architectures import ONE_PAIR_A_ROW, PACKED, PADDED_ONLY, tiny
from tests.tiny_models import make_model, make_tokenizer
from tests.tiny_stage import checkpoint_ref, run_here

Change = Callable[[Path], None]
CONFIGS = PACKED | {name: config for name, (config, _) in (ONE_PAIR_A_ROW | PADDED_ONLY).items()}


def rehearsed(folder: Path, *changes: Change) -> RehearseResult:
    """The step on a tiny model that was changed."""
    model = make_model(folder / "sft")
    for change in changes:
        change(model)
    return run_here(RehearseJob(checkpoint=checkpoint_ref(model)).at(folder / "rehearsed"))


def rules_that_fail(result: RehearseResult) -> str:
    return failed_rules(check_before_training(result.path, result.files, result.loaded))


def with_json(file: str, **values: object) -> Change:
    def change(model: Path) -> None:
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def with_token(in_template: bool, token: str = "<|turn|>", of_answers: bool = False) -> Change:
    def change(model: Path) -> None:
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        if in_template:
            assert isinstance(tokenizer.chat_template, str)
            begun = "{% if add_generation_prompt %}" if of_answers else ""
            replaced = tokenizer.chat_template.replace(f"{begun}<|im_start|>", f"{begun}{token}")
            assert replaced != tokenizer.chat_template
            tokenizer.chat_template = replaced
        tokenizer.save_pretrained(model)

    return change


def with_weights(changed: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def change(model: Path) -> None:
        file = model / "model.safetensors"
        save_file(changed(load_file(file)), file, metadata={"format": "pt"})

    return change


def _spoilt(name: str, value: torch.Tensor) -> torch.Tensor:
    """NaN in the last row of the embedding, an infinity in the last norm."""
    if name in ("model.embed_tokens.weight", "model.norm.weight"):
        value[-1:].fill_(float("nan" if "embed" in name else "-inf"))
    return value


def exported(folder: Path, checkpoint: Path, trained: Path | None = None) -> Path:
    """The export of the checkpoint's own weights, as if nothing had been learnt, or of those in ``trained``."""
    weights = folder / "weights"
    weights.mkdir()
    tensors = load_file((trained or checkpoint) / "model.safetensors")
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    job = ExportJob(
        weights_path=weights, weights_fingerprint="w", checkpoint=checkpoint_ref(checkpoint), precision="fp32"
    )
    return run_here(job.at(folder / "export")).path


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_of_every_known_architecture_come_back_by_their_names(name: str, tmp_path: Path):
    config = copy.deepcopy(CONFIGS[name])
    config.get_text_config().vocab_size = 360  # a row for each of the tokenizer's tokens
    model = tiny(config)
    model.save_pretrained(tmp_path / "sft")
    make_tokenizer().save_pretrained(tmp_path / "sft")
    result = run_here(RehearseJob(checkpoint=checkpoint_ref(tmp_path / "sft")).at(tmp_path / "rehearsed"))
    assert result.loaded.num_parameters >= model.num_parameters()
    assert not [file for file in result.files if file.endswith(".safetensors")]


UNWRITABLE = {
    "as Llama 2's": (
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"do_sample": True, "top_p": 0.6},
    ),
    "sampling without its flag": ({"temperature": 0.7, "top_k": 20}, {"do_sample": True, "top_k": 20}),
    "for beams": ({"early_stopping": True, "length_penalty": 0.8}, {"do_sample": None}),
    "scores that go nowhere": (
        {"output_scores": True, "temperature": 0.5},
        {"do_sample": True, "temperature": 0.5},
    ),
    "several answers": ({"num_return_sequences": 4}, {"do_sample": True, "num_return_sequences": 4}),
}


@pytest.mark.parametrize(("settings", "kept"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_settings_that_the_library_reads_but_does_not_write_are_made_fit(
    settings: dict, kept: dict, tmp_path: Path
):
    with pytest.raises(ValueError, match=r"invalid|num_return_sequences"):
        GenerationConfig(**settings).validate(strict=True)
    change = with_json("generation_config.json", **settings)
    result = rehearsed(tmp_path, change)
    assert rules_that_fail(result) == ""
    for folder in (result.path, exported(tmp_path, tmp_path / "sft")):
        config = GenerationConfig.from_pretrained(folder)
        assert {name: getattr(config, name) for name in kept} == kept
        GenerationConfig.from_dict(config.to_dict()).save_pretrained(
            tmp_path / "again"
        )  # as an RLVR run will


@pytest.mark.parametrize(
    ("change", "sentence"),
    {
        "an end that is no token": (
            with_json("generation_config.json", eos_token_id="x"),
            "eos_token_id 'x'",
        ),
        "an architecture of its own": (with_json("config.json", model_type="brandnew"), "model type"),
        "another vocabulary": (with_json("config.json", vocab_size=380), "embed_tokens.weight"),
        "another width": (with_json("config.json", intermediate_size=48), "of another shape"),
        "another layer": (with_json("config.json", num_hidden_layers=3), "lacks weights"),
        "a layer more than it is said to have": (
            with_json("config.json", num_hidden_layers=1),
            "left out.*layers.1",
        ),
        "an adapter among the weights": (
            with_weights(
                lambda tensors: {
                    **tensors,
                    "model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32),
                }
            ),
            "left out.*lora_A",
        ),
        "two matrices that are said to be one": (
            with_weights(
                lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2}
            ),
            "embed_tokens.weight and lm_head.weight are one matrix",
        ),
        "a reward model": (
            with_json("config.json", architectures=["LlamaForSequenceClassification"]),
            "LlamaForSequenceClassification, which is no language model",
        ),
        "a reward model by another name": (
            with_json("config.json", architectures=["LlamaForRewardModelWithGating"]),
            "RewardModelWithGating, which is no language model",
        ),
        "a pad token beyond the vocabulary": (
            with_json("config.json", pad_token_id=99_999),
            "pad_token_id 99999, and vocab_size",
        ),
        "a number format by a name of its own": (
            with_json("config.json", dtype="bf16"),
            "config.json of sft is none that transformers can read.*Correct it",
        ),
        "sizes as text": (
            with_json("config.json", hidden_size="32"),
            "config.json of sft is none that transformers can read.*hidden_size",
        ),
        "biases that the config leaves out": (
            with_weights(
                lambda tensors: {
                    **tensors,
                    **{f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(32) for i in (0, 1)},
                }
            ),
            "left out.*q_proj.bias",
        ),
        "norms of another architecture": (
            with_weights(
                lambda tensors: {**tensors, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}
            ),
            "left out.*q_norm",
        ),
        "a tokenizer of a class that is none": (
            with_json("tokenizer_config.json", tokenizer_class=5),
            "cannot be loaded: AttributeError.*checkpoint.tokenizer",
        ),
        "a token without a row where an answer begins": (
            with_token(in_template=True, of_answers=True),
            r"writes <\|turn\|> \(id \d+\)",
        ),
        "a template that fails": (
            lambda model: (model / "chat_template.jinja").write_text("{{ raise_exception('not today') }}"),
            "fails on a plain prompt: TemplateError: not today",
        ),
        "weights that are no numbers": (
            with_weights(lambda tensors: {name: _spoilt(name, value) for name, value in tensors.items()}),
            "2 of the 20 tensors of sft hold NaN or infinities: model.embed_tokens.weight, model.norm.weight. The",
        ),
        "names of another class": (
            with_weights(
                lambda tensors: {f"base_model.model.{name}": value for name, value in tensors.items()}
            ),
            "base_model.model.model",
        ),
        "a token of the template without a row": (
            with_token(in_template=True),
            r"writes <\|turn\|> \(id \d+\)",
        ),
    }.values(),
)
def test_what_would_end_a_run_after_its_training_is_said_before(
    change: Change, sentence: str, tmp_path: Path
):
    with pytest.raises(CheckpointError, match=sentence):
        rehearsed(tmp_path, change)


def test_one_matrix_that_the_files_hold_twice_is_one(tmp_path: Path):
    """Many checkpoints hold a tied head, too: what is trained holds it once, and is exported."""
    plain = rehearsed(tmp_path / "plain")
    change = with_weights(
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    )
    result = rehearsed(tmp_path, change)
    assert rules_that_fail(result) == ""
    assert result.loaded.num_parameters == plain.loaded.num_parameters
    folder = exported(tmp_path, tmp_path / "sft", trained=tmp_path / "plain" / "sft")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "v_head.summary.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.k_scale",
        "vision_tower.encoder.layers.0.mlp.fc1.weight",
        "mtp.layers.0.mlp.up_proj.weight",
    ],
)
def test_what_is_none_of_the_model_s_own_weights_is_left_behind(name: str, tmp_path: Path):
    change = with_weights(lambda tensors: {**tensors, name: torch.zeros(1, 32)})
    assert rules_that_fail(rehearsed(tmp_path, change)) == ""


def test_the_attention_kernel_that_a_checkpoint_was_saved_with_is_not_asked_for(tmp_path: Path):
    """flash_attention_2 is not installed here, and which kernel computes is train.attention's to say."""
    change = with_json("config.json", attn_implementation="flash_attention_2", architectures=7)
    assert rules_that_fail(rehearsed(tmp_path, change)) == ""


def test_a_token_of_the_vocabulary_alone_gets_a_row_so_that_the_hand_off_covers_it(tmp_path: Path):
    result = rehearsed(tmp_path, with_token(in_template=False))
    assert result.loaded.vocab_size >= result.loaded.tokenizer_size == len(make_tokenizer()) + 1
    assert rules_that_fail(result) == ""
    folder = exported(tmp_path, tmp_path / "sft")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer) == result.loaded.tokenizer_size


def test_an_export_writes_what_was_rehearsed(tmp_path: Path):
    result = rehearsed(tmp_path)
    folder = exported(tmp_path, tmp_path / "sft")
    written = {path.name for path in folder.iterdir()}
    assert written == set(result.files) | {"model.safetensors"}
    for name in result.files:
        mine, its = (_content(place / name) for place in (result.path, folder))
        assert mine == its, name


def _content(file: Path) -> object:
    """What a file says, but for the number format, which is another in the two jobs here."""
    if file.suffix != ".json":
        return file.read_text()
    return {name: value for name, value in json.loads(file.read_text()).items() if name != "dtype"}


def test_a_checkpoint_without_the_files_that_a_hand_off_needs_fails_its_rules(tmp_path: Path):
    result = rehearsed(tmp_path)
    files = {name: sha for name, sha in result.files.items() if name != "tokenizer.json"}
    assert "tokenizer.json" in failed_rules(check_before_training(result.path, files, result.loaded))
