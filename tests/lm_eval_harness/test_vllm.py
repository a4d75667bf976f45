"""vLLM as the back end: the library's own class for it, over an engine of vLLM's interface that computes with transformers.
vLLM itself has run on no machine of ours."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_core.contract.errors import ConfigError
from tests.benchmark_jobs import TASKS, benchmark_job
from tests.tiny_models import make_model
from tests.tiny_stage import checkpoint_ref, run_here


class EngineLike:
    """``vllm.LLM``: log-probabilities of a prompt's tokens, or a greedy answer."""

    started: list[dict] = []

    def __init__(self, model: str, **arguments: object) -> None:
        self.started.append({"model": model, **arguments})
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model)
        config = SimpleNamespace(max_model_len=arguments["max_model_len"])
        self.llm_engine = SimpleNamespace(model_config=config)

    @torch.no_grad()
    def generate(self, prompts: list[dict], sampling_params: list[SimpleNamespace], **_: object) -> list:
        return [
            self._answer(prompt["prompt_token_ids"], asked)
            for prompt, asked in zip(prompts, sampling_params, strict=True)
        ]

    def _answer(self, ids: list[int], asked: SimpleNamespace) -> SimpleNamespace:
        if hasattr(asked, "prompt_logprobs"):
            logps_SV = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            found = [
                {token: logps[token].item(), int(logps.argmax()): logps.max().item()}
                for token, logps in zip(ids[1:], logps_SV[:-1], strict=True)
            ]
            return SimpleNamespace(prompt_logprobs=[None, *found])
        assert asked.temperature == 0
        written = self.model.generate(torch.tensor([ids]), max_new_tokens=asked.max_tokens, do_sample=False)
        text = self.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)
        return SimpleNamespace(outputs=[SimpleNamespace(text=text)])


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    """The modules that the library imports of vLLM, and a version that it finds."""
    parts = {
        "vllm": {"LLM": EngineLike, "SamplingParams": SimpleNamespace, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": object},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda tokenizer, **_: tokenizer.chat_template},
        "vllm.tokenizers": {
            "get_tokenizer": lambda name, tokenizer_mode, **more: AutoTokenizer.from_pretrained(name, **more)
        },
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "vllm-0.11.0.dist-info").mkdir()
    (tmp_path / "vllm-0.11.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.11.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("lm_eval.models.vllm_causallms", None)


def test_the_library_s_own_class_asks_vllm_and_scores_are_kept_apart(tmp_path, vllm):
    checkpoint = checkpoint_ref(make_model(tmp_path / "model", seed=0))
    plain = run_here(benchmark_job(tmp_path / "plain", checkpoint))
    job = benchmark_job(tmp_path / "vllm", checkpoint, back_end="vllm")
    assert job.cache_dir == tmp_path / "benchmark-scores"
    result = run_here(job)
    assert result.tasks_computed == len(TASKS)
    (started,) = EngineLike.started
    assert (started["model"], started["max_model_len"]) == (str(checkpoint.path), 512)
    for ours, theirs in zip(result.scores, plain.scores, strict=True):
        assert ours.documents == theirs.documents
        assert [metric.parts for metric in ours.metrics] == [metric.parts for metric in theirs.metrics]
    again = benchmark_job(tmp_path / "again", checkpoint, back_end="vllm")
    assert run_here(again).tasks_computed == 0


def test_where_it_is_missing_the_step_says_so_before_a_model_is_loaded(tmp_path):
    checkpoint = checkpoint_ref(make_model(tmp_path / "model", seed=0))
    with pytest.raises(ConfigError, match="no vLLM is installed where this step runs"):
        run_here(benchmark_job(tmp_path / "run", checkpoint, back_end="vllm"))
