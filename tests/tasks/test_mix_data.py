"""A private data set of a hub: fetched once by the step that has the token, mixed by one that has none."""

import io
import json
import logging
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.logging import disable_run_logger

import tasks.mix_data
from dpo_core.contract.chat_templates import OLMO_NOTE, named_in_plan
from dpo_core.contract.config import CheckpointConfig, DataConfig
from dpo_core.contract.errors import DataError
from dpo_core.contract.quality_config import QualityConfig
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.process import ProcessLauncher
from tasks.launch.workplace import Workplace
from tasks.mix_data import mix_data
from tests.tiny_stage import checkpoint_ref, make_rows

pytestmark = pytest.mark.integration


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture
def data(hub, monkeypatch) -> DataConfig:
    """Half of a private set of 60 rows, twice."""
    files = {"data/train-00000-of-00001.parquet": parquet(make_rows(60))}
    commit = hub.add_repo("org/prefs", files, "dataset", private=True)
    for name, value in {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": "hf_readtoken",
        "HF_HUB_DISABLE_XET": "1",
    }.items():
        monkeypatch.setenv(name, value)
    source = {"source": "org/prefs", "revision": commit}
    return DataConfig.model_validate(
        {
            "sources": [source | {"amount": "0.5"}, source | {"amount": "30"}],
            "held_out": "5",
            "num_workers": 1,
        }
    )


def test_rows_of_a_private_set_are_fetched_once_and_mixed_without_the_token(hub, data, checkpoint, tmp_path):
    store = tmp_path / "store"
    place = Workplace(store, ProcessLauncher(ComputeConfig(threads_per_process=1)))

    def mixed(**other):
        with disable_run_logger():
            return mix_data.fn(
                data.model_copy(update=other),
                QualityConfig(),
                CheckpointConfig(source="x"),
                checkpoint_ref(checkpoint),
                place,
            )

    first = mixed()
    assert [ledger.rows_in for ledger in first.per_source] == [30, 30]
    assert len(list(store.glob("fetch/*/result.json"))) == 1
    hub.read_tokens.clear()  # nobody may read it any more
    again = mixed(held_out="6")
    assert (again.held_out_rows, again.train_rows) != (first.held_out_rows, first.train_rows)
    assert Counter(path.parent.parent.name for path in store.glob("*/*/result.json")) == {
        "fetch": 1,
        "mix": 2,
    }


def test_a_set_that_the_token_may_not_read_stops_before_the_mixing(
    hub, data, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with (
        disable_run_logger(),
        pytest.raises(DataError, match="does not let this token read the data set org/prefs"),
    ):
        mix_data.fn(
            data,
            QualityConfig(),
            CheckpointConfig(source="x"),
            checkpoint_ref(checkpoint),
            Workplace(tmp_path / "store", ProcessLauncher(ComputeConfig(threads_per_process=1))),
        )
    assert not list((tmp_path / "store").glob("mix/[!.]*"))


@pytest.mark.parametrize("name", ["olmo", "tulu"])
def test_the_template_that_has_another_meaning_now_is_told_of(
    name, checkpoint, tmp_path, monkeypatch, caplog
):
    """In the run as in its plan."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)))
    data = DataConfig.model_validate({"sources": [{"source": str(tmp_path / "rows.jsonl")}], "held_out": "2"})
    monkeypatch.setattr(tasks.mix_data, "get_run_logger", lambda: logging.getLogger("pairline.run"))
    place = Workplace(tmp_path / "store", ProcessLauncher(ComputeConfig(threads_per_process=1)))
    chosen = CheckpointConfig(source="x", chat_template=name)
    with caplog.at_level(logging.WARNING, "pairline.run"), disable_run_logger():
        mix_data.fn(data, QualityConfig(), chosen, checkpoint_ref(checkpoint), place)
    assert (OLMO_NOTE in caplog.messages) == (OLMO_NOTE in named_in_plan(name)) == (name == "olmo")
