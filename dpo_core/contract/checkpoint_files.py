"""Which files make a checkpoint, and its two fingerprints: one formula for what is fetched and for what is exported."""

from dpo_core.contract.store import fingerprint

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
# Any one of these carries a vocabulary; tokenizer_config.json alone does not.
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
TEMPLATE_FILES, EXTRA_TEMPLATES = ("chat_template.jinja", "chat_template.json"), "additional_chat_templates"
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *TEMPLATE_FILES,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
# Notes that a library writes about itself; they change with its version and mean nothing to the model.
VOLATILE_CONFIG_KEYS = frozenset({"_name_or_path", "transformers_version"})


def weights_fingerprint(config: dict, files: dict[str, str]) -> str:
    """Return the fingerprint of weight contents, architecture and remote code; of no name. ``config``: what config.json
    holds; ``files``: relative path -> sha256. What lies in folders (an adapter by itself) is none of the model's
    weights."""
    kept = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG_KEYS}
    contents = sorted(
        sha for name, sha in files.items() if name.endswith((".safetensors", ".py")) and "/" not in name
    )
    return fingerprint({"weights": contents, "config": kept})


def tokenizer_fingerprint(files: dict[str, str]) -> str:
    """Return the fingerprint of the tokenizer's files, chat template included. ``files``: relative path -> sha256."""
    return fingerprint(
        {
            name: sha
            for name, sha in files.items()
            if name in TOKENIZER_FILES or name.startswith(f"{EXTRA_TEMPLATES}/")
        }
    )
