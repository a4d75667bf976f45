"""What a registry says in the stream of a push, and what a block with its credentials may hold."""

import pytest

from dpo_core.contract.errors import ConfigError, RemoteError
from tasks.image.push import Login, digest_of, parse_login

REPOSITORY = "127.0.0.1:5000/trainer"


def test_the_digest_stands_in_the_stream():
    said = []
    events = [
        {"status": "The push refers to repository [x]"},
        {"status": "Pushing", "progressDetail": {"current": 1}, "id": "a"},
        {"status": "tag: digest: sha256:1 size: 2"},
        {"progressDetail": {}, "aux": {"Tag": "t", "Digest": "sha256:1"}},
    ]
    assert digest_of(events, REPOSITORY, None, said.append) == "sha256:1"
    assert said == ["The push refers to repository [x]", "tag: digest: sha256:1 size: 2"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("unauthorized: authentication required", ConfigError),
        ("no basic auth credentials", ConfigError),
        ("denied: requested access to the resource is denied", ConfigError),
        ('Get "https://127.0.0.1:5000/v2/": dial tcp: connect: connection refused', RemoteError),
    ],
)
def test_a_refusal_hidden_in_the_stream_is_an_error(text, kind):
    with pytest.raises(kind, match=REPOSITORY):
        digest_of(
            [{"status": "Preparing"}, {"errorDetail": {"message": text}, "error": text}],
            REPOSITORY,
            None,
            print,
        )


def test_no_digest_is_an_error_and_no_password_is_told():
    with pytest.raises(RemoteError, match="without a digest"):
        digest_of([{"status": "done"}], REPOSITORY, None, print)
    said = []
    with pytest.raises(RemoteError) as caught:
        digest_of([{"status": "hello hunter2"}, {"error": "bad hunter2"}], REPOSITORY, "hunter2", said.append)
    assert "hunter2" not in str(caught.value) + "".join(said)


@pytest.mark.parametrize(
    "secret",
    [
        "ada:love:lace",
        {"username": "ada", "password": "love:lace"},
        '{"username": "ada", "password": "love:lace"}',
    ],
)
def test_a_block_holds_a_name_and_a_password(secret):
    assert parse_login(secret, "registry") == Login("ada", "love:lace")
    assert "love" not in repr(parse_login(secret, "registry"))


@pytest.mark.parametrize(
    "secret", ["", None, "no-colon", ":", "{broken", {"username": "ada"}, {"username": 1, "password": 2}]
)
def test_anything_else_is_refused_by_the_blocks_name(secret):
    with pytest.raises(ConfigError, match="`registry`"):
        parse_login(secret, "registry")
