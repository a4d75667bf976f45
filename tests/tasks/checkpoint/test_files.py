"""Broken and dangerous checkpoints: each refused by name before anything is trained."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_core.contract.checkpoint_files import files_of
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.errors import CheckpointError
from tasks.checkpoint.files import checked_files, in_its_format, named_by_index, weight_source
from tasks.checkpoint.safetensors_header import read_header

WEIGHTS = ("model.safetensors",)


def config(**fields: object) -> CheckpointConfig:
    return CheckpointConfig(source="org/model", **fields)


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_header_of_a_whole_file_names_every_tensor(made_checkpoint: Path) -> None:
    header = read_header(made_checkpoint / "model.safetensors")
    weights = load_file(made_checkpoint / "model.safetensors")
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == {
        k: tuple(v.shape) for k, v in weights.items()
    }


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0.5, "is cut off: expected {size} bytes, got {got}"),
        (0.001, "cut off within its header"),
        (0.0, "is not a safetensors file"),
    ],
)
def test_a_cut_file_says_what_was_expected_and_got(checkpoint: Path, keep: float, message: str) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError) as caught:
        checked_files(checkpoint, WEIGHTS, config())
    assert message.format(size=len(whole), got=path.stat().st_size) in str(caught.value)
    assert str(path) in str(caught.value)


def test_bytes_after_the_end_and_other_formats_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"?")
    with pytest.raises(CheckpointError, match="has bytes after its end"):
        read_header(path)
    path.write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )  # a pointer instead of the file
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_header(path)
    path.write_bytes((4).to_bytes(8, "little") + b"{{{{")
    with pytest.raises(CheckpointError, match="no valid safetensors header"):
        read_header(path)


def write_header(path: Path, header: object, num_bytes: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
    return path


def tensor(begin: int, end: int, shape: list | None = None) -> dict:
    return {"dtype": "U8", "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, 8),
        ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12),
        ({"a": tensor(4, 8)}, 8),
        ({"a": tensor(8, 0, [0]), "b": tensor(0, 8)}, 8),
        ({"a": tensor(0, 8, [9])}, 8),
        ({"a": tensor(0, 8, [2**62] * 100_000)}, 8),
        ({"a": tensor(0, 8, [-2, -4])}, 8),
        ({"a": [0, 8]}, 8),
        ({"a": {"dtype": "U8", "shape": 8, "data_offsets": [0, 8]}}, 8),
        ({"a": {**tensor(0, 0, [2**62] * 64), "dtype": "F4"}}, 0),
        ({"a": {**tensor(0, 8, [65]), "dtype": "F4"}}, 8),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", 0),
    ],
)
def test_a_header_whose_tensors_overlap_or_leave_gaps_is_refused(
    tmp_path: Path, header: object, num_bytes: int
) -> None:
    with pytest.raises(CheckpointError, match="no valid safetensors header"):
        read_header(write_header(tmp_path / "x.safetensors", header, num_bytes))


def test_a_header_of_no_sane_size_is_not_parsed(tmp_path: Path) -> None:
    names = b", ".join(
        b'"%d": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}' % number for number in range(300_000)
    )
    with pytest.raises(CheckpointError, match="header of at most 16 MiB"):
        read_header(write_header(tmp_path / "x.safetensors", b"{" + names + b"}", 0))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    make = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind]
    make(path)
    with pytest.raises(CheckpointError, match="no regular file"):
        read_header(path)


def test_types_that_are_not_known_here_are_sane(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}}
    assert read_header(write_header(tmp_path / "x.safetensors", header, 8)) == header


def test_empty_tensors_and_scalars_are_sane(tmp_path: Path) -> None:
    header = {
        "a": tensor(0, 0),
        "b": tensor(0, 1, []),
        "c": tensor(1, 1, [3, 0]),
        "__metadata__": {"format": "pt"},
    }
    assert set(read_header(write_header(tmp_path / "x.safetensors", header, 1))) == {"a", "b", "c"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("depth", [40, 200_000])
def test_json_without_bottom_is_refused(checkpoint: Path, name: str, depth: int) -> None:
    (checkpoint / name).write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(CheckpointError, match=rf"{name} is nested more than 32 levels deep"):
        checked_files(checkpoint, WEIGHTS, config())


@pytest.mark.parametrize("weight_map", [["a"], {"a": ["b"]}, "a", {"a": None}, {}])
def test_an_index_of_another_shape_is_refused(checkpoint: Path, weight_map: object) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="holds no weight_map"):
        checked_files(checkpoint, WEIGHTS, config())


@pytest.mark.parametrize(
    "auto_map", [["modeling_x.X"], "modeling_x.X", {"AutoModel": {"deep": [["modeling_x.X"], None]}}]
)
def test_an_auto_map_of_any_shape_is_understood(checkpoint: Path, auto_map: object) -> None:
    edit_json(checkpoint / "config.json", auto_map=auto_map)
    (checkpoint / "modeling_x.py").write_text("")
    with pytest.raises(CheckpointError, match=r"own Python code: modeling_x\.py \("):
        checked_files(checkpoint, WEIGHTS, config())
    checked_files(checkpoint, WEIGHTS, config(allow_remote_code=("modeling_x.py",)))


def make_shards(folder: Path) -> tuple[str, ...]:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    keys = sorted(weights)
    weight_map = {}
    for number, name in enumerate(names):
        save_file({key: weights[key] for key in keys[number::2]}, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(keys[number::2], name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return names


def test_shards_are_taken_with_their_index(checkpoint: Path) -> None:
    names = make_shards(checkpoint)
    assert {*names, "model.safetensors.index.json"} <= set(checked_files(checkpoint, names, config()))


def test_a_shard_that_the_index_does_not_name_is_left_behind(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an earlier save, say: no loader opens it, so it is none of the checkpoint's, nor of its fingerprint."""
    named = make_shards(checkpoint)
    save_file({"x": torch.zeros(1)}, checkpoint / "model-00003-of-00003.safetensors")
    names = [path.name for path in checkpoint.iterdir()]
    assert named_by_index(checkpoint, weight_source(names, config())).names == tuple(named)
    assert "model-00003-of-00003.safetensors left behind" in caplog.text


def test_a_variant_beside_the_whole_file_is_left_behind(checkpoint: Path) -> None:
    save_file({"x": torch.zeros(1)}, checkpoint / "model.fp16.safetensors")
    names = [path.name for path in checkpoint.iterdir()]
    assert named_by_index(checkpoint, weight_source(names, config())).names == WEIGHTS


def test_a_whole_file_beside_an_index_of_others_is_of_two_saves(checkpoint: Path) -> None:
    """Loaders open the whole file, and a check of the index would have looked at the shards."""
    make_shards(checkpoint)
    save_file({"x": torch.zeros(1)}, checkpoint / "model.safetensors")
    names = [path.name for path in checkpoint.iterdir()]
    with pytest.raises(CheckpointError, match=r"the weights of two saves.*Remove"):
        named_by_index(checkpoint, weight_source(names, config()))


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    names = make_shards(checkpoint)
    (checkpoint / names[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"names 2 weight files, of which {names[1]} are missing"):
        checked_files(checkpoint, names[:1], config())


def test_a_shard_of_another_checkpoint_is_told(checkpoint: Path) -> None:
    names = make_shards(checkpoint)
    save_file({"other": next(iter(load_file(checkpoint / names[0]).values()))}, checkpoint / names[1])
    with pytest.raises(CheckpointError, match="promises tensors that the files lack"):
        checked_files(checkpoint, names, config())


def test_a_missing_config_or_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        checked_files(checkpoint, WEIGHTS, config())
    (checkpoint / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        checked_files(checkpoint, WEIGHTS, config())
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checked_files(checkpoint, WEIGHTS, config())


def test_a_template_may_be_in_either_place_or_be_named(checkpoint: Path) -> None:
    template = (checkpoint / "chat_template.jinja").read_text()
    assert "chat_template.jinja" in checked_files(checkpoint, WEIGHTS, config())
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"no chat template.*checkpoint\.chat_template: chatml"):
        checked_files(checkpoint, WEIGHTS, config())
    checked_files(checkpoint, WEIGHTS, config(chat_template="chatml"))
    edit_json(checkpoint / "tokenizer_config.json", chat_template=template)
    checked_files(checkpoint, WEIGHTS, config())


def test_remote_code_is_refused_unless_allowed_by_name(checkpoint: Path) -> None:
    edit_json(
        checkpoint / "config.json",
        auto_map={"AutoModelForCausalLM": "modeling_x.XModel", "AutoConfig": "conf_x.X"},
    )
    (checkpoint / "modeling_x.py").write_text("")
    (checkpoint / "conf_x.py").write_text("")
    with pytest.raises(CheckpointError, match=r"conf_x\.py, modeling_x\.py"):
        checked_files(checkpoint, WEIGHTS, config())
    with pytest.raises(CheckpointError, match=r"own Python code: modeling_x\.py \("):
        checked_files(checkpoint, WEIGHTS, config(allow_remote_code=("conf_x.py",)))
    allowed = checked_files(checkpoint, WEIGHTS, config(allow_remote_code=("conf_x.py", "modeling_x.py")))
    assert {"conf_x.py", "modeling_x.py"} <= set(allowed)


def test_code_of_another_repository_is_refused_even_if_a_file_has_its_name(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": ["else/where--tok.Tok", None]})
    (checkpoint / "tok.py").write_text("")
    with pytest.raises(CheckpointError, match="else/where--tok"):
        checked_files(checkpoint, WEIGHTS, config(allow_remote_code=("tok.py",)))


def test_code_that_nothing_calls_stays_behind(checkpoint: Path) -> None:
    (checkpoint / "convert_weights.py").write_text("")
    (checkpoint / "training_args.bin").write_text("")
    files = checked_files(checkpoint, WEIGHTS, config())
    assert "convert_weights.py" not in files
    assert "training_args.bin" not in files


def test_weights_are_chosen_safetensors_first() -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "a.gguf", "consolidated.safetensors"]
    assert weight_source(names, config()).names == ("model.safetensors",)
    assert weight_source(names, config(gguf_file="a.gguf")).kind == "gguf"
    assert weight_source(["a.gguf"], config()).names == ("a.gguf",)


def test_pickle_is_refused_unless_every_file_is_allowed_by_name() -> None:
    names = ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    with pytest.raises(
        CheckpointError, match=r"only as pickle .*checkpoint\.allow_pickle: \[pytorch_model-00001"
    ):
        weight_source(names, config())
    with pytest.raises(CheckpointError, match=r"as pickle \(pytorch_model-00002-of-00002\.bin\)"):
        weight_source(names, config(allow_pickle=(names[1],)))
    assert weight_source(names, config(allow_pickle=tuple(names[1:]))).names == tuple(names[1:])


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        (["a.gguf", "b.gguf"], {}, "several GGUF files: a.gguf, b.gguf"),
        (["a.gguf"], {"gguf_file": "c.gguf"}, "gguf_file is c.gguf, but org/model holds a.gguf"),
        (["config.json", "README.md"], {}, "holds no weights"),
        (["adapter_config.json", "adapter_model.safetensors"], {}, "is an adapter"),
        (["adapter_config.json", "model.safetensors"], {}, "full weights and, beside them, an adapter"),
    ],
)
def test_weights_that_cannot_be_chosen(names: list[str], fields: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        weight_source(names, config(**fields))


QUANTISED = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4},
        {"qweight": torch.int32, "scales": torch.float16},
        "packed integers",
    ),
    "awq": ({"quant_method": "awq"}, {"qweight": torch.int32, "qzeros": torch.int32}, r"quantised \(awq\)"),
    "bitsandbytes, 4 bits": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"weight": torch.uint8, "weight.absmax": torch.float32},
        r"quantised \(bitsandbytes\)",
    ),
    "bitsandbytes, 8 bits": (
        {"quant_method": "bitsandbytes"},
        {"weight": torch.int8, "SCB": torch.float32},
        "packed",
    ),
    "mxfp4": ({"quant_method": "mxfp4"}, {"down_proj_blocks": torch.uint8}, r"quantised \(mxfp4\)"),
    "packed without a mark": (None, {"qweight": torch.int32}, "no method that its config names"),
    "8-bit floats without scales": (
        {"quant_method": "fp8"},
        {"weight": torch.float8_e4m3fn},
        "without a scale",
    ),
    "8-bit floats with exponents for scales": (
        {"quant_method": "modelopt"},
        {"weight": torch.float8_e4m3fn, "weight_scale": torch.uint8},
        "whose scales are no floats .*weight_scale: U8",
    ),
    "a mark on full weights": (
        {"quant_method": "gptq"},
        {"weight": torch.float16},
        "remove `quantization_config`",
    ),
    "an 8-bit mark on full weights": (
        {"quant_method": "fp8"},
        {"weight": torch.bfloat16},
        "the mark is wrong",
    ),
}


@pytest.mark.parametrize(("mark", "tensors", "sentence"), QUANTISED.values(), ids=QUANTISED)
def test_weights_that_cannot_be_trained_are_told_by_their_headers(
    checkpoint: Path, mark: dict | None, tensors: dict[str, torch.dtype], sentence: str
) -> None:
    for place in ({"quantization_config": mark}, {"text_config": {"quantization_config": mark}}):
        edit_json(checkpoint / "config.json", **(place if mark else {}))
        layer = "model.layers.0.mlp.up_proj"
        save_file(
            {f"{layer}.{name}": torch.zeros(4, 4, dtype=dtype) for name, dtype in tensors.items()},
            checkpoint / "model.safetensors",
        )
        with pytest.raises(CheckpointError, match=sentence):
            checked_files(checkpoint, WEIGHTS, config())


def test_a_mark_alone_is_refused_before_the_weights_are_downloaded(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\)"):
        checked_files(checkpoint, (), config())
    edit_json(checkpoint / "config.json", quantization_config={"quant_method": "fp8"})
    assert "config.json" in checked_files(checkpoint, (), config())


def test_8_bit_floats_with_scales_are_weights_to_convert(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", quantization_config={"quant_method": "fp8"})
    weight = {
        "a.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn),
        "a.weight_scale_inv": torch.ones(1, 1),
    }
    save_file(weight, checkpoint / "model.safetensors")
    found = in_its_format(checkpoint, weight_source(["model.safetensors"], config()))
    assert (found.kind, found.names) == ("fp8", WEIGHTS)


@pytest.mark.parametrize(("shards", "missing"), [((1, 2), ""), ((1, 3), "of 3 shards 2 are missing, too")])
def test_shards_that_no_index_tells_of_are_refused(
    checkpoint: Path, shards: tuple[int, ...], missing: str
) -> None:
    (checkpoint / "model.safetensors").unlink()
    names = tuple(f"model-{number:05}-of-{shards[-1]:05}.safetensors" for number in shards)
    for name in names:
        save_file({name: torch.zeros(1)}, checkpoint / name)
    with pytest.raises(CheckpointError, match=rf"no model\.safetensors\.index\.json.*{missing}"):
        checked_files(checkpoint, names, config())


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (torch.complex64, "in the number format C64"),
        (torch.float8_e4m3fnuz, "in the number format F8_E4M3FNUZ"),
        (torch.uint32, "packed integers"),
        (torch.bool, "packed integers"),
    ],
    ids=str,
)
def test_number_formats_that_loaders_would_turn_into_others_are_refused(
    checkpoint: Path, kind: torch.dtype, sentence: str
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: torch.zeros(64, 32).to(kind)}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        checked_files(checkpoint, WEIGHTS, config())


@pytest.mark.parametrize("notes", ["pt", {"format": 5}, ["pt"]])
def test_notes_of_a_file_that_its_own_reader_refuses_are_told(tmp_path: Path, notes: object) -> None:
    path = write_header(tmp_path / "x.safetensors", {"__metadata__": notes, "a": tensor(0, 8)}, 8)
    with pytest.raises(CheckpointError, match="no valid safetensors header"):
        read_header(path)


def renamed(folder: Path, pattern: str) -> tuple[str, ...]:
    """Shards under other names, with an index that says so."""
    made, index = make_shards(folder), folder / "model.safetensors.index.json"
    text = index.read_text()
    others = tuple(pattern.format(number) for number in (1, 2))
    for name, other in zip(made, others, strict=True):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / name).rename(folder / other)
        text = text.replace(name, other)
    index.write_text(text)
    return others


def test_six_digits_are_a_shard_s_number_too(checkpoint: Path) -> None:
    """DeepSeek-V3's are called so; what reads weights later must find them."""
    names = renamed(checkpoint, "model-{:05}-of-000002.safetensors")
    assert set(names) <= set(checked_files(checkpoint, names, config()))
    assert [path.name for path in files_of(checkpoint, "model.safetensors")] == sorted(names)


@pytest.mark.parametrize(
    "pattern", ["model_{}.safetensors", "part{}.safetensors", "below/model-{}.safetensors"]
)
def test_shards_under_names_that_nothing_reads_are_refused(checkpoint: Path, pattern: str) -> None:
    renamed(checkpoint, pattern)
    names = [path.name for path in checkpoint.iterdir()]
    with pytest.raises(CheckpointError, match=r"weights are read from model-00001-of-0000N\.safetensors"):
        checked_files(checkpoint, weight_source(names, config()).names, config())


@pytest.mark.parametrize("notes", [{}, {"metadata": "x"}, {"metadata": None}])
def test_an_index_that_transformers_does_not_read_is_told(checkpoint: Path, notes: dict) -> None:
    names = make_shards(checkpoint)
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]} | notes))
    with pytest.raises(CheckpointError, match="has no `metadata`"):
        checked_files(checkpoint, names, config())


@pytest.mark.parametrize("number", [0, -1, 10**9])
@pytest.mark.parametrize("place", ["", "text_config"])
def test_a_config_of_no_layers_or_of_more_than_there_are_is_refused(
    checkpoint: Path, number: int, place: str
) -> None:
    """Of none all weights would be passed by; a thousand million fill the memory before anything is compared."""
    layers = {"num_hidden_layers": number}
    edit_json(checkpoint / "config.json", **({place: layers} if place else layers))
    with pytest.raises(CheckpointError, match=f"says num_hidden_layers {number}, and the files hold"):
        checked_files(checkpoint, WEIGHTS, config())


@pytest.mark.parametrize(
    "content", [b"", b'{"eos_token_id": [2, ', b"[1, 2]", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0"]
)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "tokenizer_config.json"])
def test_small_files_that_others_would_not_read_are_refused(
    checkpoint: Path, name: str, content: bytes
) -> None:
    """A generation_config.json that is cut off would be passed by without a word, and the ends of answers with it."""
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} (cannot be read as JSON in UTF-8|holds a JSON list)"):
        checked_files(checkpoint, WEIGHTS, config())
