"""The form that is made of the settings, and the objective that they name."""

import pytest

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.loss_config import LossConfig, LossSum
from flows.settings.overrides import validated
from flows.settings.stage_config import StageConfig


def config(**sections: object) -> StageConfig:
    """A recipe with these sections."""
    needed = {"checkpoint": {"source": "org/sft"}, "data": {"sources": [{"source": "org/set"}]}}
    return validated(needed | sections, "recipe.yaml", StageConfig)


def test_a_form_spells_settings_as_the_field_does_and_explains_all_of_them():
    sections = StageConfig.model_json_schema()["$defs"]
    labels = {
        (section["title"], name): field["title"]
        for section in sections.values()
        for name, field in section.get("properties", {}).items()
        if "title" in field
    }
    assert labels["Checkpoint", "gguf_file"] == "GGUF file"
    assert labels["Gate", "kl_at_most"] == "KL at most"
    assert labels["Optim", "learning_rate"] == "Learning rate"
    silent = [
        (section["title"], name)
        for section in sections.values()
        for name, field in section.get("properties", {}).items()
        if not field.get("description")
    ]
    assert silent == []


SUM = [{"name": "dpo", "weight": 0.8}, {"name": "sft", "weight": 0.2}]


def test_losses_take_the_place_of_loss():
    objective = config(losses=SUM).objective
    assert isinstance(objective, LossSum)
    assert [(weight, part.name, part.beta) for weight, part in objective.parts] == [
        (0.8, "dpo", 0.1),
        (0.2, "sft", 1.0),
    ]
    assert config(loss={"name": "hinge"}).objective == LossConfig(name="hinge")


def test_one_beta_is_that_of_the_terms_that_name_none():
    both = config(loss={"beta": 0.3}, losses=[{"name": "dpo"}, {"name": "ipo", "beta": 0.7}])
    assert [part.beta for _, part in both.objective.parts] == [0.3, 0.7]
    again = StageConfig.model_validate_json(both.model_dump_json())  # as a server hands it on
    assert again.objective == both.objective


def weighing(name: str, column: str) -> dict:
    """Sections with an objective and a source that names a column of numbers."""
    return {"loss": {"name": name}, "data": {"sources": [{"source": "org/set", "columns": {column: "x"}}]}}


def test_columns_of_numbers_go_with_objectives_that_use_them():
    for name, column in (("dpo", "margin"), ("ipo", "margin"), ("bco_pair", "weight"), ("sft", "weight")):
        config(**weighing(name, column))
    config(**weighing("dpo_norm", "margin") | {"loss": {}, "losses": SUM})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"loss": {"name": "hinge", "rpo_alpha": 0.1}, "losses": SUM},
            "so loss.name, loss.rpo_alpha would mean nothing",
        ),
        ({"losses": [{"name": "dpo", "weight": 0}]}, "losses.0.weight is 0"),
        ({"losses": [{"name": "dpo", "weight": "nan"}]}, "losses.0.weight"),
        ({"losses": [{"name": "bco_pair"}] * 2}, "names bco_pair twice"),
        ({"losses": [{"name": "sft"}], "reference": {"source": "org/other"}}, "sft uses no reference"),
        (weighing("aot", "weight"), "sources.0.columns names weight, and aot sorts a batch"),
        (
            weighing("aot_pair", "margin"),
            "sources.0.columns names margin, and aot_pair takes no margin .*dpo, dpo_norm",
        ),
        (weighing("apo_zero", "margin"), "apo_zero takes no margin of a pair's own"),
        ({"loss": {"name": "tr_dpo"}}, "TR-DPO moves the reference"),
        ({"losses": [{"name": "tr_dpo"}]}, "TR-DPO moves the reference"),
        ({"reference": {"sync_ref_model": True}}, "sync_ref_model: TR-DPO moves the reference"),
    ],
)
def test_what_is_no_objective_is_refused_with_a_sentence(sections, message):
    with pytest.raises(ConfigError, match=message):
        config(**sections)


def test_what_is_measured_while_training_needs_pairs_that_are_held_out():
    data = {"sources": [{"source": "org/set"}], "held_out": "0"}
    with pytest.raises(
        ConfigError, match=r"evaluation\.every measures the held-out pairs; set data\.held_out"
    ):
        config(data=data, evaluation={"every": 5})
    assert config(data=data | {"held_out": "8"}, evaluation={"every": "epoch"}).evaluation.every == "epoch"
    sets = [{"name": "safety", "source": "org/safety"}]
    alone = {"every": 5, "sets": sets}
    assert config(data=data, evaluation=alone).evaluation.sets[0].name == "safety"
    best = {"keep_best": {"metric": "held_out/safety/loss"}}
    assert config(data=data, evaluation=alone, train=best).train.keep_best.direction == "min"
    with pytest.raises(ConfigError, match=r"one of evaluation\.sets, such as held_out/safety/rewards/accur"):
        config(data=data, evaluation=alone, train={"keep_best": {}})
    for metric in ("held_out/maths/loss", "held_out/safety/pairs"):
        with pytest.raises(ConfigError, match=r"It measures: .*held_out/safety/rewards/accuracies"):
            config(evaluation=alone, train={"keep_best": {"metric": metric}})
    with pytest.raises(ConfigError, match=r"the name safety twice"):
        config(evaluation={"sets": sets * 2})
    margin = {"sets": [sets[0] | {"columns": {"margin": "gap"}}]}
    with pytest.raises(ConfigError, match=r"evaluation\.sets\.0\.columns names margin"):
        config(loss={"name": "aot_pair"}, evaluation=margin)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"answers_every": 1}, r"at evaluations while training; set evaluation\.every or every_minutes"),
        ({"every": 5, "answers_every": 1, "num_prompts": 0}, r"set num_prompts above 0"),
    ],
)
def test_prompts_are_answered_at_evaluations_that_there_are(evaluation, message):
    with pytest.raises(ConfigError, match=message):
        config(evaluation=evaluation)


def test_the_best_step_is_none_of_the_machine_s_speed_and_may_be_chosen_by_answers():
    with pytest.raises(ConfigError, match=r"steps that depend on the machine's speed"):
        config(evaluation={"every": 5, "every_minutes": 30}, train={"keep_best": {}})
    best = {"keep_best": {"metric": "checker/pass_rate"}}
    assert config(evaluation={"every": 5, "answers_every": 2}, train=best).train.keep_best.direction == "max"
    with pytest.raises(ConfigError, match=r"checker/pass_rate, which evaluation\.every does not measure"):
        config(evaluation={"every": 5}, train=best)
    with pytest.raises(ConfigError, match=r"kl/per_token, which evaluation\.every does not measure"):
        config(
            evaluation={"every": 5, "answers_every": 2},
            train={"keep_best": {"metric": "kl/per_token", "mode": "min"}},
        )


@pytest.mark.parametrize(
    ("keep", "evaluation", "message"),
    [
        ({}, {}, r"set evaluation\.every to epoch, or to a number"),
        (
            {"metric": "accuracy"},
            {"every": 5},
            r"It measures: loss, rewards/accuracies, .*by_source/<source>",
        ),
        ({"metric": "logps/chosen"}, {"every": 5}, r"Say which by train\.keep_best\.mode: max or min"),
    ],
)
def test_a_best_checkpoint_needs_evaluations_and_a_metric_that_they_measure(keep, evaluation, message):
    with pytest.raises(ConfigError, match=message):
        config(train={"keep_best": keep}, evaluation=evaluation)
    assert config(train={"keep_best": {}}, evaluation={"every": 5}).train.keep_best.direction == "max"
