"""What the last task says of a run, whatever became of the others."""

import pytest

from sigline.pipeline.run_report import NodeRun

pytestmark = pytest.mark.tfx


@pytest.fixture(scope="module")
def reasons():
    from sigline.pipeline.kubeflow import run_task, tfx_nodes

    assert run_task.tfx_nodes is tfx_nodes
    return tfx_nodes._reasons


def _task(name, state, error="", *, refused=False):
    return NodeRun(name, state, 1.0, {}, {}, error, refused)


@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "CACHED"])
def test_run_that_ended_well_has_no_reasons(reasons, state):
    assert reasons([_task("Trainer", "done")], {"state": state}) == ([], [])


def test_failed_task_says_why(reasons):
    failed = _task("Trainer", "failed", "no memory")
    assert reasons([failed], {"state": "FAILED"}) == (["Trainer: no memory"], [])


@pytest.mark.parametrize("state", ["FAILED", "RUNNING"])
def test_task_that_was_killed_is_named(reasons, state):
    found = reasons([_task("PlanRun", "done"), _task("Trainer", "running")], {"state": state})
    assert found == (["Trainer: ended without saying why"], [])


def test_refused_data_are_no_failure(reasons):
    refused = _task("CheckData", "failed", "too many copies", refused=True)
    assert reasons([refused], {"state": "FAILED"}) == ([], ["too many copies"])


def test_run_whose_tasks_never_began_says_what_the_backend_says(reasons):
    assert reasons([], {"state": "FAILED", "error": {"message": "no image"}}) == (["no image"], [])
    assert reasons([], {"state": "FAILED"}) == (
        ["the run ended as FAILED, and no task says why"],
        [],
    )
