"""Rights of an upload are tried before there is anything to upload, and nothing is changed by it."""

import pytest

from dpo_core.contract.destination_config import UploadConfig
from dpo_core.contract.errors import ConfigError, RemoteError
from tasks.publish.upload_rights import check_upload_rights
from tests.hub_server import Hub

TOKEN, READER = "hf_writetoken", "hf_readtoken"


def account(role: str = "write", orgs: dict[str, str] | None = None, **access: object) -> dict:
    return {
        "name": "ada",
        "orgs": [{"name": name, "roleInOrg": role} for name, role in (orgs or {}).items()],
        "auth": {"accessToken": {"displayName": "laptop", "role": role} | access},
    }


def fine_grained(*entities: str, right: str = "repo.write") -> dict:
    scoped = [{"entity": {"type": "org", "name": name}, "permissions": [right]} for name in entities]
    return account("fineGrained", {"org": "admin"}, fineGrained={"scoped": scoped, "global": []})


@pytest.fixture
def asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add_repo("org/there", {}, private=True)
    hub.add_repo("org/open", {})
    return hub


def check(**fields: object) -> None:
    check_upload_rights(UploadConfig(**fields))


@pytest.mark.parametrize(
    ("repo_id", "who"),
    [
        ("org/there", account()),
        ("org/new", account(orgs={"org": "write"})),
        ("org/new", account(orgs={"org": "contributor"})),
        ("ada/new", account()),
        ("org/new", {"name": "ada"}),  # a server that tells nothing of tokens and organisations
        ("org/new", fine_grained("org")),
        ("org/there", fine_grained("Org/There")),
    ],
)
def test_what_an_upload_may_do_is_let_pass_and_nothing_is_made(asked: Hub, repo_id: str, who: dict) -> None:
    asked.accounts[TOKEN] = who
    check(repo_id=repo_id)
    assert set(asked.repos) == {("model", "org/there"), ("model", "org/open")}
    assert not asked.commits_made


@pytest.mark.parametrize(
    ("repo_id", "who", "message"),
    [
        ("org/there", account("read"), r"token `laptop` of ada can only read.*Make one that can write"),
        ("org/new", account(), r"ada is no member of org.*one of ada/\.\.\."),
        ("ada-too/new", account(orgs={"lab": "admin"}), r"one of ada/\.\.\., lab/\.\.\."),
        ("org/new", account(orgs={"org": "read"}), "role `read` in org.*Ask an admin"),
        ("org/new", fine_grained("lab"), "no right to write to org/new"),
        ("org/there", fine_grained("org", right="repo.content.read"), "no right to write to org/there"),
        ("org/open", account(), "is public, but upload.private is true"),
    ],
)
def test_what_would_be_refused_is_refused_with_what_to_do(
    asked: Hub, repo_id: str, who: dict, message: str
) -> None:
    asked.accounts[TOKEN] = who
    with pytest.raises(ConfigError, match=message):
        check(repo_id=repo_id)
    assert not asked.commits_made


def test_a_repository_of_another_says_no_itself(asked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(ConfigError, match=r"org/there exists, and the token may not write to it \(403\)"):
        check(repo_id="org/there")
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    with pytest.raises(ConfigError, match=r"\(401\).*org/there is allowed") as raised:
        check(repo_id="org/there")
    assert "hf_nobodys" not in str(raised.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="No Hub token to upload to org/there with"):
        check(repo_id="org/there")


def test_a_directory_is_asked_nothing_and_a_server_that_is_away_is_worth_a_retry(asked: Hub) -> None:
    check()
    assert not asked.requests
    with pytest.raises(RemoteError) as raised:
        check(repo_id="org/there", endpoint="http://127.0.0.1:1")
    assert raised.value.retryable
