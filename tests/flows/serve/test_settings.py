"""Who gets which settings: the database's password is the server's alone."""

from pathlib import Path

import pytest

from flows.serve.database import WITHOUT_MIGRATIONS, remember_database
from flows.serve.settings import DATABASE_PATIENCE, ServeSettings, settings_from_environment

PASSWORD = "s3cret-of-the-database"
URL = f"postgresql+asyncpg://prefect:{PASSWORD}@host/prefect"


@pytest.mark.parametrize(
    "name",
    [
        "PAIRLINE_DATABASE_URL",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_API_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_DATABASE_PASSWORD",
    ],
)
def test_only_the_server_is_told_the_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str):
    monkeypatch.setattr("os.environ", {"PAIRLINE_HOME": str(tmp_path), "HOME": "/home/ann", name: URL})
    settings = settings_from_environment()
    assert PASSWORD not in repr(settings.environment())
    assert settings.environment()["HOME"] == "/home/ann"
    server = settings.server_environment()
    told = "PREFECT_SERVER_DATABASE_CONNECTION_URL" if name == "PAIRLINE_DATABASE_URL" else name
    assert server[told] == URL
    assert server["HOME"] == "/home/ann"


def test_without_a_database_url_prefect_keeps_its_own_and_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("os.environ", {})
    settings = ServeSettings(home=tmp_path)
    assert settings.server_environment() == settings.environment() | DATABASE_PATIENCE | {
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": settings.ui_url
    }


def test_the_server_gets_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Names that nobody thought of, too: it gets what it is known to need."""
    monkeypatch.setattr(
        "os.environ",
        {
            name: "planted"
            for name in (
                "HF_TOKEN",
                "WANDB_API_KEY",
                "AWS_SECRET_ACCESS_KEY",
                "OPENAI_KEY",
                "DB_PASS",
                "SSH_AUTH_SOCK",
                "DATABASE_URL",
                "PREFECT_API_KEY",
                "DOCKER_CONFIG",
                "PIP_INDEX_URL",
            )
        }
        | {"LC_ALL": "C.UTF-8", "PREFECT_LOGGING_LEVEL": "DEBUG"},
    )
    settings = ServeSettings(home=tmp_path)
    told = settings.server_environment()
    assert "planted" not in told.values()
    assert (told["LC_ALL"], told["PREFECT_LOGGING_LEVEL"]) == ("C.UTF-8", "DEBUG")
    assert settings.environment()["HF_TOKEN"] == "planted"  # runs need it


@pytest.mark.parametrize("other", [{}, {"PREFECT_SERVER_DATABASE_CONNECTION_URL": URL}])
def test_a_database_of_its_own_is_not_looked_through_at_each_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other
):
    """Another one, which this folder knows nothing of, is."""
    monkeypatch.setattr("os.environ", other)
    settings = ServeSettings(home=tmp_path)
    settings.prefect_home.mkdir(parents=True)
    (settings.prefect_home / "prefect.db").touch()
    remember_database(settings.prefect_home)
    assert (WITHOUT_MIGRATIONS.items() <= settings.server_environment().items()) is (not other)
    (settings.prefect_home / "prefect.db").unlink()
    assert not WITHOUT_MIGRATIONS.items() <= settings.server_environment().items()
