"""A log goes on where it was copied to, whatever its first reader wrote after the position was saved."""

import pytest

from dpo_core.contract.job import LOG_FILE
from tasks.launch.log_position import go_back_to_position, save_position
from tasks.launch.own_folder import make_own_folder


@pytest.fixture
def log(tmp_path):
    return make_own_folder(tmp_path / "job") / LOG_FILE


def test_lines_after_the_saved_position_are_copied_again_and_not_twice(log, tmp_path):
    log.write_text("one\n")
    save_position(tmp_path / "job", {"a": "time 1"})
    log.write_text("one\ntwo\nthr")  # killed here
    assert go_back_to_position(tmp_path / "job", ["a"]) == {"a": "time 1"}
    assert log.read_text() == "one\n"


def test_the_position_of_another_container_is_not_used(log, tmp_path):
    log.write_text("one\n")
    save_position(tmp_path / "job", {"a": "time 1"})
    log.write_text("one\ntwo\n")
    assert go_back_to_position(tmp_path / "job", ["b"]) == {}
    assert log.read_text() == "one\ntwo\n"


def test_without_a_position_everything_is_copied(tmp_path):
    assert go_back_to_position(tmp_path / "job", ["a"]) == {}
