"""What a recipe may give as a chat template and as its variables, and what of it counts in fingerprints."""

import pytest
from pydantic import ValidationError

from dpo_core.contract.chat_templates import RESERVED_ARGUMENTS
from dpo_core.contract.config import CheckpointConfig
from dpo_core.contract.data_jobs import MixJob
from dpo_core.contract.jobs import ExportJob
from dpo_core.contract.source_config import DataSource
from tests.dpo_core.contract.test_job_fingerprints import JOBS, SOURCE


@pytest.mark.parametrize(
    "value", ["olmo2", "{{ messages }}", "{% for m in messages %}x{% endfor %}", "./a", "a.jinja"]
)
def test_a_name_a_text_and_a_path_are_taken(value):
    assert CheckpointConfig(source="a", chat_template=value).chat_template == value


def test_an_empty_template_is_none():
    assert CheckpointConfig(source="a", chat_template="").chat_template is None


def test_another_word_is_refused_with_the_names():
    with pytest.raises(ValidationError, match=r"no chat template named `vicuna`.*olmo2.*zephyr"):
        CheckpointConfig(source="a", chat_template="vicuna")


@pytest.mark.parametrize("name", [*sorted(RESERVED_ARGUMENTS), "no name", ""])
def test_what_every_rendering_is_told_is_refused(name):
    with pytest.raises(ValidationError, match="chat_template_kwargs cannot name"):
        DataSource(source="a", chat_template_kwargs={name: 1})


@pytest.mark.parametrize(("kind", "name"), [(MixJob, "mix"), (ExportJob, "export")])
def test_the_renamed_template_is_found_again_and_no_other(kind, name):
    fields = JOBS[name][1]
    made = {
        chosen: kind(**{**fields, "chat_template": chosen}).fingerprint
        for chosen in ("olmo", "olmo2", "tulu", None)
    }
    assert len(set(made.values())) == 4
    # As a job of that name was written when `olmo` was OLMo 2's template.
    before = {
        "mix": "928da05fd3030073214b82695671e1ad361e582f100180f336e4d38ddcf9e2df",
        "export": "c0b9095ad6ca79fda55b4e833af550a5d6915eabf39d01095230deb120b5b62b",
    }
    assert made["olmo2"] == before[name]


def test_bos_and_variables_are_content():
    fields = JOBS["mix"][1]
    thinking = SOURCE.model_copy(update={"chat_template_kwargs": {"enable_thinking": True}})
    jobs = (MixJob(**fields), MixJob(**fields, add_bos=True), MixJob(**{**fields, "sources": (thinking,)}))
    assert len({job.fingerprint for job in jobs}) == 3
