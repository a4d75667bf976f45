"""A build's event stream, as the engine sends it, to lines and one error."""

import contextlib
import socket

import docker
import pytest

from dpo_core.contract.errors import ConfigError, DiskFull
from tasks.image.build import NUM_LAST_LINES, BuildLog, remove_build_stages

STEP = "Step 3/9 : RUN make wheels"


def read(*events: dict) -> tuple[BuildLog, list[str]]:
    said: list[str] = []
    log = BuildLog(said.append)
    for event in events:
        log.read(event)
    return log, said


def test_lines_come_whole_and_without_progress_bars():
    log, said = read(
        {"stream": f"{STEP}\n"},
        {"stream": " ---> Running in 0123456789ab\n"},
        {"stream": "half"},
        {"stream": " a line\n10%\r50%\r\x1b[91mdone\n\x1b[0m\n"},
        {"status": "x"},
        {"aux": {"ID": "sha256:1"}},
        {"aux": {"ID": "sha256:2"}},
        {"stream": "\n"},
    )
    assert said == [STEP, "half a line", "done"]
    assert log.image_id == "sha256:2"


def test_a_failing_step_is_one_error_with_its_own_last_lines():
    long_before = [{"stream": f"earlier {number}\n"} for number in range(5)]
    lines = [{"stream": f"line {number}\n"} for number in range(NUM_LAST_LINES + 5)]
    with pytest.raises(ConfigError) as caught:
        read(
            {"stream": "Step 2/9 : COPY a b\n"},
            *long_before,
            {"stream": f"{STEP}\n"},
            *lines,
            {"stream": "no newline at the end"},
            {
                "error": "The command '/bin/sh -c make wheels' returned a non-zero code: 3",
                "errorDetail": {"code": 3},
            },
        )
    text = str(caught.value)
    assert f"{STEP} failed: The command '/bin/sh -c make wheels' returned a non-zero code: 3" in text
    assert text.count("  | ") == NUM_LAST_LINES
    assert text.endswith("  | line 24\n  | no newline at the end")
    assert "earlier" not in text


def test_a_full_disk_is_told_as_one():
    with pytest.raises(DiskFull, match="docker system df"):
        read({"stream": f"{STEP}\n"}, {"error": "write /layer: no space left on device"})


def test_an_engine_that_is_slow_to_remove_what_served_a_build_does_not_fail_it():
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as slow:  # takes the request and never answers
        address = f"tcp://127.0.0.1:{slow.getsockname()[1]}"
        with contextlib.closing(docker.DockerClient(base_url=address, version="1.41", timeout=0.1)) as client:
            remove_build_stages(client, "key", said.append)
    assert len(said) == 1
    assert "`docker image prune` does that, too (" in said[0]
    assert "timed out" in said[0]
