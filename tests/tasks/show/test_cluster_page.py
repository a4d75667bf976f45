"""The page of a job on a cluster: what it says, and on a real server that it is one artifact, changed in place."""

import threading
from dataclasses import replace
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client

from tasks.launch.cluster_job import ClusterJob, JobStart
from tasks.show.cluster_page import ClusterPage, cluster_markdown

JOB = ClusterJob(
    step="train",
    id="48",
    name="pairline-train-42b9",
    state="PENDING",
    partition="gpu",
    reason="Resources",
    submitted="2026-03-01T14:28:00",
    expected="2026-03-01T17:40:00",
    log="/shared/log",
    commands=("squeue -j 48", "scancel 48"),
)
LOST = JobStart("47", "n[1-2]", 1000.0, 3900.0, None, "lost: nothing more was heard of n2")


def test_a_job_that_waits_says_why_and_until_when():
    page = cluster_markdown(JOB)
    assert page.startswith("Job 48 of step train: PENDING, waits for Resources.")
    for shown in ("| expected to start | 2026-03-01T17:40:00 |", "| partition | gpu |", "squeue -j 48"):
        assert shown in page
    assert "Starts so far" not in page


def test_every_start_says_where_why_it_ended_and_what_it_went_on_from():
    job = replace(JOB, state="RUNNING", nodes="n[3-4]", reason="", expected="")
    job = replace(job, starts=(LOST, JobStart("48", "n[3-4]", 5000.0, 60.0, 20)))
    page = cluster_markdown(job)
    assert job.in_words == "Job 48 of step train: RUNNING on n[3-4], start 2"
    first, second = (line.split(" | ") for line in page.splitlines() if line.startswith(("| 1 ", "| 2 ")))
    assert (first[1], first[4:6]) == ("47", ["1 h 05 min", "the beginning"])
    assert first[6].startswith("lost: nothing more was heard of n2")
    assert second[4:6] == ["runs", "20"]
    assert "expected" not in page


def test_what_slurm_says_is_text_wherever_it_is_shown():
    page = cluster_markdown(replace(JOB, reason="<img src=x>|[a](b)", nodes="n1 | x"))
    assert "<img" not in page
    assert "[a]" not in page
    assert r"n1 \| x" in page


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_server")
def test_the_page_of_a_run_is_changed_in_place_by_any_of_its_threads():
    page = ClusterPage("tiny")

    @task
    def waits() -> None:
        page(JOB)
        page(replace(JOB, state="RUNNING", nodes="n[3-4]", reason=""))
        thread = threading.Thread(target=page, args=(replace(JOB, state="ENDED", starts=(LOST,)),))
        thread.start()
        thread.join()

    @flow
    def run() -> UUID:
        waits()
        (artifact,) = page.artifacts.values()
        return artifact

    made = run()
    with get_client(sync_client=True) as client:
        (read,) = (one for one in client.read_artifacts(limit=200) if one.id == made)
    assert (read.key, read.type) == ("tiny-job-train", "markdown")
    assert read.task_run_id
    assert read.flow_run_id
    assert read.description.startswith("Job 48 of step train: ENDED")
    assert "nothing more was heard of n2" in read.data


def test_a_page_that_cannot_be_made_stops_nothing(monkeypatch, caplog):
    def no_server(*_, **__):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr("tasks.show.artifacts.create_markdown_artifact", no_server)
    ClusterPage("tiny")(JOB)
    assert "nobody listens" in caplog.text
