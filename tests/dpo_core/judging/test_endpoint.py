"""An endpoint as the judge: both orders, faults of real servers, and nothing asked twice."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_core.contract.errors import ConfigError, DataError, RemoteError
from dpo_core.contract.jobs import AnswerPair
from dpo_core.contract.judge_config import JUDGE_KEY, JUDGE_KEY_FILE, QUESTION
from dpo_core.contract.judge_job import EndpointJudge, JudgeResult
from dpo_core.judging.endpoint import asked, opinion_of, verdict_of
from tests.loopback_judge import JudgeServer, judge_server
from tests.step_process import kill_when, run_child, start
from tests.tiny_judges import judge_job
from tests.tiny_stage import run_here

ANSWERS = tuple(
    AnswerPair(prompt=f"Question {number}?", before="sea " * (number % 3), after="list " * (number % 4))
    for number in range(6)
)
NUM_DIFFERENT = 5  # answers to the first question are both empty, and nobody is asked about them


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as found:
        yield found


def endpoint(server: JudgeServer, **fields: object) -> EndpointJudge:
    return EndpointJudge(url=server.url, model="judge-7b", question=QUESTION, **fields)


def judged(server: JudgeServer, folder: Path, **fields: object) -> JudgeResult:
    return run_here(judge_job(folder / "run", endpoint(server, **fields), ANSWERS))


def test_both_orders_are_asked_and_the_better_answer_wins(server, tmp_path):
    result = judged(server, tmp_path)
    expected = [
        0.5 if len(pair.after) == len(pair.before) else float(len(pair.after) > len(pair.before))
        for pair in ANSWERS
    ]
    assert [opinion.preference for opinion in result.opinions] == expected
    found = result.judgement
    assert (found.wins, found.ties, found.losses) == tuple(expected.count(value) for value in (1.0, 0.5, 0.0))
    assert found.win_rate == pytest.approx(sum(expected) / 6)
    assert (found.agreement, found.first_chosen) == (1.0, 0.5)
    assert result.asked == len(server.questions) == len(set(server.questions)) == 2 * NUM_DIFFERENT
    assert (found.prompt_tokens, found.completion_tokens) == (1000, 70)
    assert found.cost(3.0, 15.0) == pytest.approx((1000 * 3 + 70 * 15) / 1e6)
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.asked} == {
        ("judge-7b", 0.0, 1024)
    }
    rows = [json.loads(line) for line in (result.verdicts / "verdicts.jsonl").read_text().splitlines()]
    assert [row["preference"] for row in rows] == expected
    assert rows[1]["said"][0].startswith("Both are short.")


def test_a_judge_that_takes_what_stands_first_decides_nothing_and_it_shows(tmp_path):
    with judge_server(lambda prompt, first, second: "A") as server:
        found = judged(server, tmp_path).judgement
    assert (found.win_rate, found.ties, found.same) == (0.5, 6, 1)
    assert found.first_chosen == 1.0
    assert found.agreement == 0.0  # it was asked nothing about the answers that are the same


def test_of_answers_that_are_all_the_same_a_judge_agrees_with_nothing(server, tmp_path):
    same = tuple(AnswerPair(prompt=f"{number}?", before="sea", after="sea") for number in range(3))
    found = run_here(judge_job(tmp_path / "run", endpoint(server), same)).judgement
    assert (found.agreement, found.first_chosen, found.ties, found.same) == (None, None, 3, 3)
    assert server.questions == []


def test_faults_of_a_server_are_waited_for(server, tmp_path):
    now = {"Retry-After": "0"}
    server.faults = [
        (429, now),
        (503, now),
        b"<html>",
        b'{"choices": []}',
        b"[]",
        b'{"choices": [1]}',
        500,
        2.5,
    ]
    result = judged(server, tmp_path, concurrency=5, timeout_seconds=1)
    assert result.asked == 2 * NUM_DIFFERENT
    # The late reply came, too, to a question that was put again by then.
    assert len(set(server.questions)) == 2 * NUM_DIFFERENT
    assert server.requests == 2 * NUM_DIFFERENT + 8


def test_a_reply_that_says_nothing_is_asked_for_once_more(server, tmp_path):
    empty = b'{"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, \
"finish_reason": "length", "message": {"role": "assistant", "content": null}}]}'
    server.faults = [empty]
    assert judged(server, tmp_path / "once", concurrency=1).judgement.unreadable == 0
    server.faults = [empty, empty]
    assert judged(server, tmp_path / "twice", concurrency=1).judgement.unreadable == 1


def test_a_server_that_stays_away_is_an_error_that_is_worth_a_retry(server, tmp_path):
    server.faults = [None] * 3 + [(500, {"Retry-After": "0"})] * 50
    with pytest.raises(RemoteError, match="answers with 500, asked 2 times"):
        judged(server, tmp_path, concurrency=1, retries=1)
    server.faults, before = [], len(server.questions)
    assert (before, judged(server, tmp_path).asked) == (3, 2 * NUM_DIFFERENT - 3)
    assert len(server.questions) == len(set(server.questions))


@pytest.mark.parametrize(
    ("status", "advice"), [(400, "judge.parameters"), (404, "judge.endpoint"), (403, "may not do this")]
)
def test_what_a_server_refuses_is_asked_once_and_told(server, tmp_path, status: int, advice: str):
    server.faults = [status] * 50
    with pytest.raises(ConfigError, match=f"refuses the question with {status}.*{advice}"):
        judged(server, tmp_path, concurrency=1)
    assert server.requests == 1


def test_the_key_reaches_the_server_and_nothing_else(server, tmp_path, monkeypatch):
    server.key = "planted-key"
    monkeypatch.setenv(JUDGE_KEY, "planted-wrong\r\n")  # as a file of another system ends
    with pytest.raises(ConfigError, match="Give its key") as refused:
        judged(server, tmp_path / "a")
    assert "planted" not in str(refused.value)
    assert "<key>" in str(refused.value)
    (tmp_path / "key").write_text("planted-key\n")
    monkeypatch.setenv(JUDGE_KEY_FILE, str(tmp_path / "key"))
    judged(server, tmp_path / "a")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "key"]
    assert written
    assert not [path for path in written if b"planted" in path.read_bytes()]


def test_without_a_key_nobody_else_s_is_sent(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.delenv(JUDGE_KEY, raising=False)
    judged(server, tmp_path)
    assert server.keys == {"Bearer none"}


def test_a_hub_that_is_switched_off_is_no_judge_that_is(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert judged(server, tmp_path).asked == 2 * NUM_DIFFERENT


def test_as_many_questions_are_under_way_as_the_settings_say(server, tmp_path):
    server.seconds = 0.1
    judged(server, tmp_path, concurrency=3)
    assert 1 < server.most_at_once <= 3


def test_parameters_replace_and_leave_out(server, tmp_path):
    judged(
        server, tmp_path, parameters={"temperature": None, "max_tokens": None, "max_completion_tokens": 50}
    )
    assert all("temperature" not in body and "max_tokens" not in body for body in server.asked)
    assert {body["max_completion_tokens"] for body in server.asked} == {50}


def test_a_reply_without_a_verdict_is_no_opinion(tmp_path):
    def now_and_then(prompt: str, first: str, second: str) -> str:
        return "=I cannot say." if "2" in prompt and "list" in first else "B"

    with judge_server(now_and_then) as server:
        found = judged(server, tmp_path / "a").judgement
        assert (found.num_prompts, found.unreadable) == (5, 1)
    with judge_server(lambda *texts: "=Hm.") as server:
        different = ANSWERS[1:]
        job = judge_job(tmp_path / "b" / "run", endpoint(server), different)
        with pytest.raises(DataError, match=r"None of the judge's 5 opinions could be read. It said: 'Hm\.'"):
            run_here(job)


def test_a_killed_step_asks_what_is_left(server, tmp_path):
    server.seconds = 1.0
    job = judge_job(tmp_path / "run", endpoint(server, concurrency=2), ANSWERS)
    kill_when(start(job), lambda: len(server.questions) >= 4)
    server.seconds = 0.0
    assert run_child(job) == 0
    # What was under way when it was killed was not kept: two at most.
    assert len(set(server.questions)) == 2 * NUM_DIFFERENT
    assert len(server.questions) <= 2 * NUM_DIFFERENT + 2


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: A", "A"),
        ("... so I say\n**Verdict: B**", "B"),
        ("Verdict: [[A]].", "A"),
        ("verdict: Tie", "tie"),
        ("Verdict: A\nNo, on second thoughts:\nVerdict: B\n", "B"),
        ("B", "B"),
        ("Verdict: a longer answer", None),
        ("Verdict: A longer answer is worse", None),
        ("A is better", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_last_that_a_reply_gives(reply: str, verdict: str | None):
    assert verdict_of(reply) == verdict


@pytest.mark.parametrize(
    ("replies", "preference", "orders"),
    [
        (("Verdict: B", "Verdict: A"), 1.0, ("after", "after")),
        (("Verdict: A", "Verdict: B"), 0.0, ("before", "before")),
        (("Verdict: A", "Verdict: A"), 0.5, ("before", "after")),
        (("Verdict: tie", "Verdict: A"), 0.75, ("tie", "after")),
        (("Verdict: tie", "?"), None, ("tie", None)),
    ],
)
def test_a_preference_is_the_mean_of_both_orders(replies, preference, orders):
    opinion = opinion_of(replies)
    assert (opinion.preference, opinion.orders) == (preference, orders)


def test_an_answer_that_names_a_place_is_left_as_it_is():
    assert asked("{prompt}|{first}|{second}", "{second}", "{prompt}", "x") == "{second}|{prompt}|x"
