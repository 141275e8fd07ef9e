"""TensorBoard, MLflow and Weights & Biases behind one protocol. Each is imported when it is opened.

Where they are and who may write there is theirs to say: their own environment variables and files. What is sent are
numbers by step and the settings of the training: no code, no output of the program, nothing of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Run:
    """One training as a tracker knows it. `id` is the same after a restart; steps up to `after` are there already."""

    id: str
    name: str
    project: str
    folder: Path
    params: Mapping[str, str | int | float | bool]
    after: int


class Tracker(Protocol):
    """One run of one tool. Any call may raise anything; it is not called again then."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name. A later call may be of an earlier step, with other names."""

    def close(self, *, well: bool) -> None:
        """Sends what is left; `well` is whether the training ended without an error."""


class TensorBoard:
    """Event files below training/<name>/tensorboard."""

    def __init__(self, run: Run) -> None:
        from tensorboardX import SummaryWriter

        folder = run.folder / "tensorboard" / run.id
        # A step that was written before a kill and not noted is hidden.
        again = run.after + 1 if run.after else None
        # The suffix, because two files of one second would have one name.
        self._writer = SummaryWriter(str(folder), purge_step=again, filename_suffix=f".{run.after:08}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, well: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `project`, found again by a tag."""

    _TAG = "steper.run"
    _PARAM = 500  # characters of a parameter that every store takes

    def __init__(self, run: Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(run.project)
        experiment = self._client.create_experiment(run.project) if found is None else found.experiment_id
        runs = self._client.search_runs([experiment], f"tags.`{self._TAG}` = '{run.id}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(
            experiment, tags={self._TAG: run.id}, run_name=run.name
        ).info.run_id
        params = [Param(name, str(value)[: self._PARAM]) for name, value in run.params.items()]
        self._client.log_batch(self._id, params=params)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, well: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if well else "FAILED")


class WeightsAndBiases:
    """A run of `project` with an id of our own. The step is a separate value, since scores come late."""

    def __init__(self, run: Run) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run: Any = wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            dir=run.folder,
            config=dict(run.params),
            resume="allow",
            reinit="create_new",
            settings=quiet,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


#: By the name in `train.tracking`: the package and the adapter.
TRACKERS: dict[str, tuple[str, type[Any]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "mlflow": ("mlflow", MLflow),
    "wandb": ("wandb", WeightsAndBiases),
}
