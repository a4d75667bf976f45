"""A log goes on where it was copied to, whatever its first reader wrote after the position was saved."""

from dpo_core.jobs import LOG_FILE
from tasks.launch.log_position import go_back_to_position, save_position


def test_lines_after_the_saved_position_are_copied_again_and_not_twice(tmp_path):
    log = tmp_path / LOG_FILE
    log.write_text("one\n")
    save_position(tmp_path, {"a": "time 1"})
    log.write_text("one\ntwo\nthr")  # killed here
    assert go_back_to_position(tmp_path, ["a"]) == {"a": "time 1"}
    assert log.read_text() == "one\n"


def test_the_position_of_another_container_is_not_used(tmp_path):
    log = tmp_path / LOG_FILE
    log.write_text("one\n")
    save_position(tmp_path, {"a": "time 1"})
    log.write_text("one\ntwo\n")
    assert go_back_to_position(tmp_path, ["b"]) == {}
    assert log.read_text() == "one\ntwo\n"


def test_without_a_position_everything_is_copied(tmp_path):
    assert go_back_to_position(tmp_path, ["a"]) == {}
