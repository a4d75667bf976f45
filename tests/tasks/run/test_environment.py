"""What a run was started with: the commit, what was set, the machine."""

import subprocess

from tasks.run.environment import changed_settings, run_environment, source_commit
from tests.tasks.report.made_run import config_of


def test_only_what_is_not_a_default_is_told(tmp_path):
    config = config_of(
        tmp_path, loss={"beta": 0.1}, data={"sources": [{"source": "o/d", "amount": 100}], "seed": 8}
    )
    assert changed_settings(config) == [
        ("name", "demo", "dpo"),
        ("checkpoint.source", "org/sft", "(none)"),
        ("data.sources", "[{source: o/d, amount: 100}]", "(none)"),
        ("loss.beta", "0.1", "5.0"),
        ("store.root", str(tmp_path), ".pairline"),
    ]


def test_the_commit_and_local_changes_are_told(tmp_path):
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert source_commit(tmp_path) == (None, False)
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    (tmp_path / "untracked").write_text("")
    assert source_commit(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    assert source_commit(tmp_path) == (git("rev-parse", "HEAD"), True)


def test_the_environment_names_machine_and_versions(tmp_path):
    environment = run_environment(config_of(tmp_path))
    assert environment.packages["prefect"]
    assert environment.num_cores >= 1
    assert environment.memory_gib > 0.1
