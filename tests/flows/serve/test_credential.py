"""The server's password: made once, kept for one user, chosen by the operator, found by the server's address alone."""

import os
import sys
from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError
from flows.serve.background import Background
from flows.serve.credential import (
    API_URL_FILE,
    CREDENTIAL_FILE,
    kept_credential,
    prepare_credential,
    use_credential,
)
from flows.serve.private_folder import make_private
from flows.serve.run_processes import CLIENT_VARIABLE, SERVER_VARIABLE
from tests.waiting import wait_until

URL = "http://127.0.0.1:4999/api"
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process's, without Prefect's names."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PAIRLINE_"))
    }
    monkeypatch.setattr("os.environ", kept)
    return kept


def test_it_is_made_once_for_one_user(environment, tmp_path: Path):
    make_private(tmp_path)
    made = prepare_credential(tmp_path)
    assert len(made) > 50
    assert prepare_credential(tmp_path) == made == kept_credential(tmp_path)
    assert (tmp_path / CREDENTIAL_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / CREDENTIAL_FILE).unlink()
    assert prepare_credential(tmp_path) != made


@pytest.mark.parametrize("variable", [CLIENT_VARIABLE, SERVER_VARIABLE])
def test_the_operators_own_wins_and_is_kept(environment, tmp_path: Path, variable: str):
    prepare_credential(tmp_path)
    environment[variable] = "ann:chosen"
    assert prepare_credential(tmp_path) == "ann:chosen"
    del environment[variable]
    assert prepare_credential(tmp_path) == "ann:chosen"


def test_two_different_ones_are_refused(environment, tmp_path: Path):
    environment |= {CLIENT_VARIABLE: "ann:one", SERVER_VARIABLE: "ann:two"}
    with pytest.raises(ConfigError, match="different values"):
        prepare_credential(tmp_path)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (URL, True),
        (f"{URL}/", True),
        ("http://localhost:4999/api", True),
        ("http://127.0.0.1:4998/api", False),
        ("https://127.0.0.1:4999/api", False),
        ("http://127.0.0.1:4999/api/../other", False),
        ("http://evil.example/http://127.0.0.1:4999/api", False),
        ("http://127.0.0.1:4999@evil.example/api", False),
    ],
)
def test_only_its_own_server_hears_it(environment, tmp_path: Path, asked: str, told: bool):
    made = prepare_credential(tmp_path)
    (tmp_path / API_URL_FILE).write_text(URL)
    environment["PREFECT_API_URL"] = asked
    use_credential(asked, tmp_path)
    assert environment.get(CLIENT_VARIABLE) == (made if told else None)
    assert environment["PREFECT_API_URL"] == (
        URL if told else asked
    )  # what is called localhost may be another's


def test_it_is_found_without_the_folder_while_the_server_lives(environment, tmp_path: Path):
    server = Background("server", tmp_path / "serve")
    server.start(SLEEP, environment | {"PREFECT_API_URL": URL, SERVER_VARIABLE: "ann:hers"}, tmp_path)
    try:
        # The kernel shows a new program's environment a moment after it has told that it runs.
        wait_until(
            lambda: (use_credential(URL, tmp_path / "elsewhere"), environment.get(CLIENT_VARIABLE))[1],
            "the server's environment",
        )
        assert environment[CLIENT_VARIABLE] == "ann:hers"
    finally:
        server.stop(grace_seconds=5)


def test_what_is_set_already_stays(environment, tmp_path: Path):
    prepare_credential(tmp_path)
    (tmp_path / API_URL_FILE).write_text(URL)
    environment[CLIENT_VARIABLE] = "ann:given"
    use_credential(URL, tmp_path)
    assert environment[CLIENT_VARIABLE] == "ann:given"


def test_a_folder_from_before_is_closed_and_a_link_in_it_is_not_followed(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_text("not ours to change")
    outside.chmod(0o644)
    folder = tmp_path / "serve"
    (folder / "prefect").mkdir(parents=True)
    (folder / "server.log").touch(mode=0o644)
    (folder / "link").symlink_to(outside)
    folder.chmod(0o755)
    make_private(folder)
    assert {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())} == {
        "serve": 0o700,
        "prefect": 0o700,
        "server.log": 0o600,
        "link": 0o644,
    }


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"belongs to the user {owner}"):
        make_private(tmp_path)


def test_a_log_is_its_users_alone_and_no_link(tmp_path: Path):
    part = Background("server", tmp_path / "serve")
    assert part.start([sys.executable, "-c", ""], dict(os.environ), tmp_path)
    assert part.log.stat().st_mode & 0o777 == 0o600
    other = Background("worker", tmp_path / "serve")
    other.log.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        other.start([sys.executable, "-c", ""], dict(os.environ), tmp_path)
