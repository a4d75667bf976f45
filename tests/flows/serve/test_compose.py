"""The deployments as images/compose.yaml brings them to its server."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from dpo_core.contract.errors import ConfigError
from flows.serve.compose import AFTER_DPO, deployments_with_containers
from flows.serve.settings import PROJECT, RUN_SETTINGS, ServeSettings
from flows.settings.overrides import apply_overrides, validated
from flows.settings.stage_config import StageConfig
from flows.settings.sweep_config import SweepConfig

FOLDER, IMAGE = "/srv/somewhere", "sha256:" + "7" * 64


@pytest.fixture(scope="module")
def deployments() -> list[dict]:
    return deployments_with_containers(yaml.safe_load((PROJECT / "prefect.yaml").read_text()), FOLDER, IMAGE)[
        "deployments"
    ]


def test_all_runs_start_in_the_folder_from_installed_code(deployments):
    assert len(deployments) >= 9
    for deployment in deployments:
        module, _, name = deployment["entrypoint"].rpartition(".")
        assert hasattr(import_module(module), name)
        assert deployment["pull"] == [
            {"prefect.deployments.steps.set_working_directory": {"directory": FOLDER}}
        ]


def test_all_steps_are_containers_of_the_named_image(deployments):
    launched = []
    for deployment in deployments:
        parameters = deployment["parameters"]
        if "config" in parameters:
            config = (SweepConfig if "sweep" in parameters["config"] else StageConfig).model_validate(
                parameters["config"]
            )
        elif "recipe" in parameters:
            values = yaml.safe_load((PROJECT / parameters["recipe"]).read_text())
            config = validated(apply_overrides(values, parameters["overrides"]), "recipe")
        elif deployment["entrypoint"] == AFTER_DPO:
            assert (parameters["compute"], parameters["image"]) == ({"launcher": "docker"}, {"use": IMAGE})
            continue
        else:
            continue
        launched.append(deployment["name"])
        assert (config.compute.launcher, config.image.use) == ("docker", IMAGE)
    assert launched == ["manual", "quick", "nightly", "after-sft", "manual"]


def environment_within(command: str, variables: dict[str, str]) -> dict[str, str]:
    """What a service's command hands on to Prefect: its environment where the program that it starts begins."""
    script = (
        "import os, json, sys; from flows.serve import compose; "
        "compose.COMMANDS[sys.argv[1]] = lambda: print(json.dumps(dict(os.environ)), "
        "'prefect' in sys.modules) or 0; sys.exit(compose.main(['', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, command],
        cwd=PROJECT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    environment, _, imported = done.stdout.strip().rpartition(" ")
    assert imported == "False", "Prefect would have read its settings already"
    return json.loads(environment)


def test_server_worker_and_runs_have_the_settings_of_make_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("os.environ", {})
    kinds = ("PREFECT_SERVER_", "PREFECT_WORKER_", "PREFECT_FLOWS_", "PREFECT_CLIENT_", "DO_NOT_TRACK")
    of_make_up = {
        name: value
        for name, value in ServeSettings(home=tmp_path).server_environment().items()
        if name.startswith(kinds)
    }
    services = yaml.safe_load((PROJECT / "images/compose.yaml").read_text())["services"]
    cors = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
    own_page = of_make_up.pop(cors)
    assert services["server"]["environment"][cors] == f"${{PAIRLINE_PUBLIC_URL:-{own_page}}}"
    for name, service in services.items():
        # Stands there what is set here as well, the two may say different things.
        assert not of_make_up.keys() & service.get("environment", {}).keys(), name
    commands = {name: services[name]["command"][-1] for name in ("server", "deploy", "worker")}
    assert commands == {"server": "serve", "deploy": "deploy", "worker": "work"}
    held = {name: environment_within(command, {}) for name, command in commands.items()}
    assert {name: (held["server"] | held["worker"]).get(name) for name in of_make_up} == of_make_up
    assert len(of_make_up) > 10
    for name in RUN_SETTINGS:
        assert held["deploy"][name] == held["worker"][name] == of_make_up[name]


def test_what_the_file_says_wins_over_the_settings_of_make_up():
    name = "PREFECT_SERVER_DATABASE_TIMEOUT"
    assert environment_within("serve", {name: "20"})[name] == "20"


def test_every_service_of_the_file_is_locked_in_and_has_limits():
    file = yaml.safe_load((PROJECT / "images/compose.yaml").read_text())
    services = file["services"]
    for service in services.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert all("size=" in place for place in service["tmpfs"])
        assert service["pids_limit"] <= 8192
        assert service["mem_limit"]
        assert not {"privileged", "devices", "pid", "ipc", "userns_mode"} & service.keys()
        assert service.get("network_mode", "none") == "none"
        assert service["image"].startswith("${PAIRLINE_")
    assert {name: service["cap_add"] for name, service in services.items() if "cap_add" in service} == {
        "database": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"],
        "folder": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
    }
    assert [name for name, service in services.items() if "/var/run/docker.sock" in str(service)] == [
        "worker"
    ]
    assert all(
        port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ())
    )


def test_only_the_server_reaches_the_database_and_a_network_has_no_way_out():
    file = yaml.safe_load((PROJECT / "images/compose.yaml").read_text())
    networks = {name: service.get("networks") for name, service in file["services"].items()}
    assert networks == {
        "database": ["database"],
        "server": ["api", "database"],
        "folder": None,
        "deploy": ["api"],
        "worker": ["api"],
    }
    assert file["networks"] == {"api": None, "database": {"internal": True}}


def test_the_database_is_named_by_its_digest():
    image = yaml.safe_load((PROJECT / "images/compose.yaml").read_text())["services"]["database"]["image"]
    assert re.fullmatch(r"\$\{PAIRLINE_POSTGRES_IMAGE:-postgres@sha256:[0-9a-f]{64}\}", image)


def test_what_starts_by_an_event_still_does(deployments):
    assert {deployment["name"] for deployment in deployments if deployment.get("triggers")} == {
        "after-sft",
        "after-dpo",
        "failed-trigger",
        "resume-crashed",
    }


def test_an_image_by_its_tag_is_refused():
    with pytest.raises(ConfigError, match=r"PAIRLINE_TRAINER_IMAGE is trainer:latest, expected an id"):
        deployments_with_containers({"deployments": []}, FOLDER, "trainer:latest")


def test_the_worker_s_command_line_has_one_owner():
    """`pairline up` and the worker's service start the same; no other module spells it out."""
    program = ["flows.serve.worker", "--pool", "pairline", "--name", "w", "--limit", "3"]
    assert ServeSettings(max_runs=3).worker_argv("w")[-7:] == program
    spelt = [
        path.name
        for path in (PROJECT / "flows/serve").glob("*.py")
        if '"flows.serve.worker"' in path.read_text()
    ]
    assert spelt == ["settings.py"]
