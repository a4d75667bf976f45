"""What Prefect's page of a training shows: the curves of its steps, and what was measured of held-out pairs meanwhile."""

import json

from dpo_core.contract.metrics_file import EVALUATIONS_FILE
from tasks.run.files import read_run_files
from tasks.show import artifacts
from tests.tasks.report.made_run import make_run


def test_held_out_curves_are_drawn_beside_those_of_training(tmp_path, monkeypatch):
    trained = read_run_files(make_run(tmp_path, steps=6)).trained
    made = []
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, **_: made.append(text))
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda *_, **__: None)
    artifacts.show_training(trained, "demo")
    rows = [{"step": step, "loss": 0.7 - step / 20, "logps_per_token/chosen": -2.0} for step in (2, 4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    trained.metrics_path.with_name(EVALUATIONS_FILE).write_text(lines)
    artifacts.show_training(trained, "demo")
    without, measured = made
    assert "held out" not in without
    assert "held out from 0.6 to 0.5 " in measured
    assert "Log-probability per token, held out" in measured
