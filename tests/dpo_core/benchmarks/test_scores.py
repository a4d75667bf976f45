"""What lm-evaluation-harness returns, read as scores: in its own shapes, written out."""

import numpy as np
import pytest

from dpo_core.benchmarks.scores import combined, parts_of, scores_of
from dpo_core.contract.benchmarks import mean_of


def sample(number: int, chosen: str = "none", **metrics: object) -> dict:
    return {
        "doc_id": number,
        "doc_hash": f"{number:064x}",
        "filter": chosen,
        "metrics": list(metrics),
        **metrics,
    }


def results(**changed: object) -> dict:
    """Two filters over three documents, as GSM8K has them; samples are logged filter by filter."""
    logged = [
        sample(number, "strict-match", exact_match=value) for number, value in ((2, 1.0), (0, 0.0), (1, 1.0))
    ]
    logged += [sample(number, "flexible-extract", exact_match=1.0) for number in range(3)]
    values = {
        "name": "gsm8k",
        "alias": "gsm8k",
        "sample_len": 3,
        "exact_match,strict-match": np.float64(2 / 3),
        "exact_match_stderr,strict-match": 1 / 3,
        "exact_match,flexible-extract": 1.0,
        "exact_match_stderr,flexible-extract": "N/A",
    }
    return {
        "results": {"gsm8k": values},
        "samples": {"gsm8k": logged},
        "versions": {"gsm8k": 3.0},
        "n-shot": {"gsm8k": 5},
        "higher_is_better": {"gsm8k": {"exact_match": True}},
        "group_subtasks": {},
    } | changed


def test_each_metric_and_filter_is_a_score_in_the_library_s_order():
    (scores,) = scores_of("gsm8k", results())
    assert (scores.task, scores.version, scores.num_fewshot, scores.part_of) == ("gsm8k", "3.0", 5, None)
    assert scores.documents == tuple(f"{number:064x}"[:16] for number in range(3))
    strict, flexible = scores.metrics
    assert (strict.name, strict.value, strict.stderr, strict.better) == (
        "exact_match,strict-match",
        2 / 3,
        1 / 3,
        1,
    )
    assert strict.parts == ((0.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    assert (flexible.stderr, flexible.parts) == (None, ((1.0, 1.0),) * 3)


def test_lists_count_each_of_their_items():
    """IFEval's accuracy of instructions: of all, whichever prompt they stand in."""
    samples = [
        sample(0, inst=[True, False]),
        sample(1, inst=[np.bool_(True)]),
        sample(2, inst=[True, True, False]),
    ]
    parts = parts_of(samples, "inst", "none")
    assert parts == ((1.0, 2.0), (1.0, 1.0), (2.0, 3.0))
    assert mean_of(parts) == pytest.approx(4 / 6)


def test_a_document_without_the_metric_counts_nothing():
    samples = [sample(0, acc=1.0), sample(1), sample(2, acc=0.0)]
    assert parts_of(samples, "acc", "none") == ((1.0, 1.0), (0.0, 0.0), (0.0, 1.0))


def test_what_is_no_mean_of_documents_has_no_parts():
    """Perplexity: each document gives a log-probability and a number of words, and the score is an exponential."""
    samples = [sample(0, perplexity=(-4.0, 2)), sample(1, perplexity=(-6.0, 4))]
    values = {"perplexity,none": 5.3, "perplexity_stderr,none": 0.1}
    (scores,) = scores_of(
        "text",
        results(
            results={"text": values},
            samples={"text": samples},
            higher_is_better={"text": {"perplexity": False}},
            versions={},
        ),
    )
    assert (scores.metrics[0].better, scores.metrics[0].parts, scores.metrics[0].stderr) == (-1, (), 0.1)
    assert parts_of([sample(0, text="a"), sample(1, text="b")], "text", "none") == ()


def test_a_group_is_made_of_its_tasks_documents_weighed_as_its_score_is():
    first, second = ((1.0, 1.0),), ((0.0, 1.0), (1.0, 1.0), (0.0, 1.0))
    assert combined([first, second], 2 / 4) == (*first, *second)
    each = combined([first, second], (1 + 1 / 3) / 2)  # the mean of both tasks
    assert mean_of(each) == pytest.approx(2 / 3)
    assert each[0] == (1.0, 1.0)
    assert combined([first, second], 0.9) == combined([first, ()], 1.0) == ()


def test_a_group_comes_first_and_its_tasks_say_whose_they_are():
    logged = {"one": [sample(0, acc=1.0)], "two": [sample(0, acc=0.0), sample(1, acc=0.0)]}
    values = {"acc,none": 1.0, "acc_stderr,none": "N/A"}
    whole = results(
        results={
            "one": values,
            "two": {**values, "acc,none": 0.0},
            "both": {"acc,none": 1 / 3},
            "outer": {"alias": "outer"},
        },
        samples=logged,
        higher_is_better={"both": {"acc": True}, "one": {"acc": None}},
        group_subtasks={"outer": ["both"], "both": ["one", "two"]},
    )
    scores = scores_of("both", whole)
    assert [(each.task, each.part_of, len(each.documents)) for each in scores] == [
        ("both", None, 3),
        ("one", "both", 1),
        ("two", "both", 2),
    ]
    assert [each.metrics[0].better for each in scores] == [1, 0, 0]
    assert scores[0].metrics[0].parts == ((1.0, 1.0), (0.0, 1.0), (0.0, 1.0))
