"""A decoder's sizes, as its config.json tells them: what memory and time follow from. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

LARGEST = 10**9
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
NORMED_QUERIES = ("olmo2", "olmo3", "qwen3", "gemma3_text")  # model types with norms on queries and keys
# Of model types that learn a vector for each place of a sequence, or make a table of them once: where their number stands.
OF_POSITIONS = {
    "gpt2": "n_positions",
    "gpt_bigcode": "n_positions",
    "gptj": "n_positions",
    "codegen": "n_positions",
    "openai-gpt": "n_positions",
    "gpt_neo": "max_position_embeddings",
    "opt": "max_position_embeddings",
    "biogpt": "max_position_embeddings",
}
USUAL_HEAD = 64  # of a config that does not say how many heads it has: the usual size of one


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder with gated MLPs, as Llama, OLMo, Qwen, Mistral and Gemma have them."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    query_size: int  # heads x head size
    key_size: int  # key heads x head size
    vocab_size: int
    is_tied: bool = False  # whether head and embedding are one matrix
    norms_queries: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelShape | None":
        """Return the shape that a config.json (its text part) describes; None where it does not, or lies, or is a mixture
        of experts, whose layers are others.
        """

        def size(name: str, usual: int | None = None) -> int:
            value = config.get(name)
            if value is None and usual is not None:
                return usual
            if type(value) is not int or not 0 < value <= LARGEST:
                raise ValueError(name)
            return value

        try:
            hidden = size("hidden_size")
            heads = size("num_attention_heads", max(1, hidden // USUAL_HEAD))
            head = size("head_dim", max(1, hidden // heads))
            if any(config.get(name) for name in EXPERTS):
                return None
            return cls(
                num_layers=size("num_hidden_layers"),
                hidden_size=hidden,
                intermediate_size=size("intermediate_size", 4 * hidden),
                query_size=heads * head,
                key_size=size("num_key_value_heads", heads) * head,
                vocab_size=size("vocab_size"),
                is_tied=bool(config.get("tie_word_embeddings", False)),
                norms_queries=config.get("model_type") in NORMED_QUERIES,
            )
        except ValueError:
            return None

    def shared_by(self, tensor_degree: int) -> "ModelShape":
        """Return the shape of what each of so many processes computes that share every layer's matrices out."""
        sizes = ("intermediate_size", "query_size", "key_size", "vocab_size")
        return replace(self, **{name: -(-getattr(self, name) // tensor_degree) for name in sizes})

    @property
    def linear_sides(self) -> dict[str, int]:
        """Return name of a layer's linear -> its inputs + outputs, over all layers."""
        hidden, wide, query, key = self.hidden_size, self.intermediate_size, self.query_size, self.key_size
        sides = {
            "q_proj": hidden + query,
            "k_proj": hidden + key,
            "v_proj": hidden + key,
            "o_proj": query + hidden,
            "gate_proj": hidden + wide,
            "up_proj": hidden + wide,
            "down_proj": wide + hidden,
        }
        return {name: self.num_layers * both for name, both in sides.items()}

    @property
    def linear_parameters(self) -> int:
        """Weights of one layer's linears."""
        return self.hidden_size * (2 * self.query_size + 2 * self.key_size + 3 * self.intermediate_size)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer; biases, which a few architectures have, are left out."""
        norms = 2 * self.hidden_size + (self.query_size + self.key_size if self.norms_queries else 0)
        return self.linear_parameters + norms

    @property
    def head_parameters(self) -> int:
        """Weights of the vocabulary head, and of the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model."""
        ends = self.head_parameters * (1 if self.is_tied else 2) + self.hidden_size
        return self.num_layers * self.layer_parameters + ends


def learned_positions(config: Mapping[str, Any]) -> int | None:
    """Return how many places of a sequence a model has a vector for, where it has a table of them; a token beyond ends a
    forward with an index error. None for one that computes them (rotary, ALiBi). ``config``: what config.json holds."""
    positions = config.get(OF_POSITIONS.get(str(config.get("model_type")), ""))
    return positions if type(positions) is int and positions > 0 else None
