"""The form that is made of the settings."""

from flows.settings.stage_config import StageConfig


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
