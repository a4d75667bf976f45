"""A Secret block that is not there: one sentence, whoever asks for it."""

import pytest
from prefect.blocks.system import Secret

from dpo_core.contract.errors import ConfigError
from tasks.hub.token import load_secret, load_token
from tasks.image.push import Login, load_login


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with two blocks."""
    held = {"login": {"username": "ada", "password": "love"}, "token": " hf_1 "}

    def load(name: str) -> Secret:
        if name not in held:
            raise ValueError(f"Unable to find block document named {name}")
        return Secret(value=held[name])

    monkeypatch.setattr(Secret, "load", load)


@pytest.mark.parametrize(
    ("load", "setting", "instead"),
    [
        (load_token, "upload.token_block", "set HF_TOKEN"),
        (load_login, "image.registry_block", "use `docker login`"),
        (
            lambda name: load_secret(name, "handoff.signing_key_block", "handoff.signing_key_file"),
            "handoff.signing_key_block",
            "set handoff.signing_key_file",
        ),
    ],
)
def test_a_block_that_is_not_there_is_refused_in_the_same_words(load, setting, instead):
    with pytest.raises(ConfigError) as caught:
        load("none")
    assert str(caught.value) == (
        f"{setting} names `none`, but there is no such Prefect Secret block. Create it in the UI "
        f"(Blocks, Secret), or leave {setting} empty and {instead}."
    )


def test_what_a_block_holds_is_read():
    assert load_token("token") == "hf_1"
    assert load_login("login") == Login("ada", "love")
    with pytest.raises(ConfigError, match="holds no text"):
        load_token("login")
