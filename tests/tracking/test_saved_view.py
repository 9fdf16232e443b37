"""What the tag of a view says to MLflow's pages, old and new, and the addresses that open it."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from llava_mini.tracking.saved_view import View, charts_address, created_ms, parent_of, runs_address, tag_key, tag_value

VIEW = View(
    "sweep mine",
    [["tokens", "word_accuracy.test.dense"], ["prefill_flops", "word_accuracy.test.dense"]],
    ["compressor", "C"],
    ["tokens", "word_accuracy.test.dense"],
    order_by="tokens",
)
PARENT = "0f99d74cf42848169299167e2db2de0d"


def test_a_view_shows_the_runs_of_one_parent_with_columns_and_charts() -> None:
    content = json.loads(tag_value(VIEW, PARENT, 1_700_000_000_000))
    assert (content["name"], content["createdAt"]) == ("sweep mine", 1_700_000_000_000)
    state = json.loads(content["state"])
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{PARENT}'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`tokens`", True)
    assert state["selectedColumns"] == [
        "attributes.`Source`", "attributes.`Dataset`", "params.`compressor`", "params.`C`",
        "metrics.`tokens`", "metrics.`word_accuracy.test.dense`",
    ]  # fmt: skip
    (section,) = state["compareRunSections"]
    charts = state["compareRunCharts"]
    assert {(chart["type"], chart["metricSectionId"]) for chart in charts} == {("SCATTER", section["uuid"])}
    axes = [[chart["xaxis"]["key"], chart["yaxis"]["key"]] for chart in charts]
    assert axes == VIEW.charts
    assert len({chart["uuid"] for chart in charts}) == 2


def test_older_pages_read_the_same_state_at_the_top() -> None:
    content = json.loads(tag_value(VIEW, PARENT, 5))
    assert {**content, **json.loads(content["state"])} == content


def test_without_charts_mlflow_draws_its_own() -> None:
    content = json.loads(tag_value(View("sweep mine", [], ["C"], ["tokens"], "tokens"), PARENT, 5))
    assert not [key for key in (*content, *json.loads(content["state"])) if key.startswith("compareRun")]


def test_a_tag_fits_and_is_found_again() -> None:
    figures = [f"word_accuracy_by_kind.test.{number:02}" for number in range(10)]
    value = tag_value(
        View("sweep mine", [["tokens", y] for y in figures[:4]], figures[:4], figures, "tokens"), PARENT, 7
    )
    assert len(value) < 5000, "what MLflow 3.10 takes"
    assert created_ms(value) == 7
    assert parent_of(tag_key(PARENT)) == PARENT
    assert tag_key(PARENT).startswith("mlflow.sharedViewState.")


@pytest.mark.parametrize("tag", ["mlflow.sharedViewState.0a1b2c", "mlflow.experimentKind", "note"])
def test_other_tags_are_no_views_of_a_sweep(tag: str) -> None:
    assert parent_of(tag) is None


def test_addresses_open_the_pages_for_model_training() -> None:
    address = urlsplit(charts_address("http://127.0.0.1:5000", "3", PARENT))
    assert address.geturl().startswith(runs_address("http://127.0.0.1:5000", "3") + "&")
    page, _, query = address.fragment.partition("?")
    assert (address.netloc, page) == ("127.0.0.1:5000", "/experiments/3/runs")
    key = tag_key(PARENT).removeprefix("mlflow.sharedViewState.")
    expected = {"workflowType": "machine_learning", "viewStateShareKey": key, "compareRunsMode": "CHART"}
    assert parse_qs(query) == {name: [value] for name, value in expected.items()}
