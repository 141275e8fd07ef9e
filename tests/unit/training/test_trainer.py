"""Why a training failed, said in one line."""

from ray.train import ControllerError, WorkerGroupError

from steper_ray.training.trainer import reason


def test_the_worker_of_the_lowest_rank_says_why():
    failures = {1: RuntimeError("the connection was closed"), 0: ValueError("rows of\nno tokens")}
    assert reason(WorkerGroupError("[Rank 0 Error Snippet]:\nTraceback ...", failures)) == (
        "ValueError in a worker: rows of no tokens"
    )


def test_a_failure_outside_of_the_workers_says_why_itself():
    assert reason(ControllerError(TimeoutError("no worker\nstarted"))) == "no worker started"
