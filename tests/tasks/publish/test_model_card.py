"""The model card: valid YAML for the Hub, every promise of it kept, the same bytes for the same run."""

import yaml

from dpo_core.contract.config import AdapterConfig, OptimConfig, TrainConfig
from dpo_core.contract.data_jobs import SourceLedger
from dpo_core.contract.keep_best import BestStep
from dpo_core.contract.loss_config import LossConfig, LossSum, LossTerm
from dpo_core.contract.refs import CheckpointRef
from tasks.publish.model_card import CardInputs, render_card
from tests.tasks.made_scores import benchmarks

PARENT = CheckpointRef(
    path="/store/x", fingerprint="f" * 64, tokenizer_fingerprint="t", source="org/sft: v2", revision="c" * 40
)
LEDGER = SourceLedger(
    label="org/prefs|a",
    content="9" * 64,
    format={"messages": 10},
    available_rows=20,
    rows_in=10,
    kept=7,
    truncated=1,
    dropped={"identical pair": 2, "empty answer": 1},
    offenders={},
)
CARD = CardInputs(
    name="tiny",
    parent=PARENT,
    sources=(LEDGER,),
    train_rows=6,
    held_out_rows=1,
    data_fingerprint="d" * 64,
    loss=LossConfig(name="dpo", beta=0.25),
    optim=OptimConfig(learning_rate=3e-7),
    steps=12,
    metrics_before={"loss": 0.6931, "rewards/accuracies": 0.0},
    metrics_after={"loss": 0.5123, "rewards/accuracies": 0.75},
)


def test_it_tells_data_settings_metrics_and_parent() -> None:
    text = render_card(CARD)
    for line in (
        "| org/prefs\\|a | 9999999999999999 | 10 | 7 | 1 | 3 |",
        "| beta | 0.25 |",
        "| learning rate | 3e-07 |",
        "| optimizer steps | 12 |",
        "| loss | 0.6931 | 0.5123 |",
        "| rewards/accuracies | 0 | 0.75 |",
        f"`org/sft: v2`, commit `{'c' * 40}`; weights `{'f' * 64}`.",
    ):
        assert line in text


def test_the_header_is_yaml_and_names_a_hub_parent_only() -> None:
    header = yaml.safe_load(
        render_card(
            CARD.model_copy(update={"parent": PARENT.model_copy(update={"source": "org/sft"})})
        ).split("---")[1]
    )
    assert header["base_model"] == "org/sft"
    assert "dpo" in header["tags"]
    local = PARENT.model_copy(update={"source": "/home/someone/sft", "revision": None})
    text = render_card(CARD.model_copy(update={"parent": local}))
    assert "base_model" not in text
    assert "`sft`, pinned by its contents" in text
    assert "/home/someone" not in text  # a published card tells nothing of the machine


def test_it_says_which_step_was_chosen_and_by_which_figures() -> None:
    best = BestStep(
        metric="rewards/accuracies",
        mode="max",
        step=8,
        value=0.75,
        last_step=12,
        last_value=0.5,
        planned_steps=20,
        num_evaluations=3,
    )
    text = render_card(CARD.model_copy(update={"best": best}))
    assert (
        "The weights are of step 8, the best of 3 evaluations by held-out rewards/accuracies (highest: 0.75"
        in text
    )
    assert "stopped early, after 12 of 20 steps" in text
    assert "The weights are" not in render_card(CARD)


def test_nothing_measured_says_so() -> None:
    assert "No evaluation was run." in render_card(CardInputs(name="tiny", parent=PARENT))


def test_what_is_added_to_the_objective_is_told() -> None:
    assert "loss." not in render_card(CARD)
    text = render_card(
        CARD.model_copy(update={"loss": LossConfig(name="dpo", f_divergence="js_divergence", rpo_alpha=0.2)})
    )
    assert "| loss.f_divergence | js_divergence |" in text
    assert "| loss.rpo_alpha | 0.2 |" in text


def test_every_term_of_a_sum_is_told() -> None:
    terms = (LossTerm(name="dpo", weight=0.8), LossTerm(name="sft", weight=0.2, rpo_alpha=0.5))
    text = render_card(CARD.model_copy(update={"loss": LossSum(terms=terms)}))
    assert "| loss | 0.8 dpo + 0.2 sft |" in text.replace("\\", "")
    assert "| loss, term 2: sft | beta 1.0, rpo_alpha 0.5 |" in text.replace("\\", "")


def test_an_adapter_is_told_with_its_size() -> None:
    plain = render_card(CARD)
    assert not any(word in plain for word in ("adapter", "router", "optimizer |"))
    more = {"train": TrainConfig(router_aux_loss_weight=0.01), "optim": OptimConfig(optimizer="adamw_8bit")}
    assert "| optimizer | adamw_8bit |\n| router loss weight | 0.01 |" in render_card(
        CARD.model_copy(update=more)
    )
    adapter = AdapterConfig(kind="lora", rank=8, alpha=16, target_modules=("q_proj", "v_proj"))
    text = render_card(
        CARD.model_copy(update={"adapter": adapter, "trained_parameters": 1_024, "all_parameters": 1_025_024})
    )
    for line in (
        "| adapter | lora, merged into these weights; by itself in `adapter/` |",
        "| adapter rank | 8 |",
        "| adapter alpha | 16 |",
        "| adapter targets | q_proj, v_proj |",
        "| trained parameters | 1,024 of 1,025,024 |",
    ):
        assert line in text


def test_scores_of_tasks_stand_with_their_errors() -> None:
    text = render_card(CARD.model_copy(update={"benchmarks": benchmarks(gsm8k=(60, 40))}))
    assert "## Benchmarks" in text
    assert "0.6000 ± 0.0500 | 0.4000 ± 0.0500 | -0.2000 ± 0.0402" in text.replace("\\", "")
    assert "Benchmarks" not in render_card(CARD)
