"""Metrics for other programs: TensorBoard, Weights & Biases, MLflow, each an extra.

``metrics.jsonl`` is the record; a tracker is a convenience, so one that fails (no network, no login, not installed) is
left out with a message and never stops or changes a run. deepen hands it the run's name and numbers by step; what a
client adds of its own (host, user) is its business, as far as it cannot be switched off.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from deepen.plug import Plug
from deepen.progress import say

Numbers = dict[str, float]


class Tracker(Plug):
    """A place that numbers go to."""

    @abstractmethod
    def open(self, out: Path, name: str) -> Callable[[int, Numbers], None]:
        """What takes the numbers of a step, for the run ``name`` that trains in ``out``."""


class TensorBoard(Tracker):
    """Event files under ``train/tensorboard``; look at them with ``tensorboard --logdir``."""

    use: Literal["tensorboard"] = "tensorboard"

    def open(self, out: Path, name: str) -> Callable[[int, Numbers], None]:
        """See ``Tracker.open``; needs the package ``tensorboard``."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(out / "tensorboard"))

        def log(step: int, numbers: Numbers) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        return log


class WeightsAndBiases(Tracker):
    """A run at Weights & Biases; the login is the package's own (``wandb login``), never in a recipe."""

    use: Literal["wandb"] = "wandb"
    project: str = "deepen"
    """Project that the run is filed under."""
    entity: str | None = None
    """Team or user; None: the login's own."""
    mode: Literal["online", "offline"] = "online"
    """offline writes to ``train/wandb``, for `wandb sync`."""

    def open(self, out: Path, name: str) -> Callable[[int, Numbers], None]:
        """See ``Tracker.open``; needs the package ``wandb``."""
        import wandb

        quiet = wandb.Settings(console="off", save_code=False, disable_git=True, x_disable_meta=True)
        run = wandb.init(
            project=self.project, entity=self.entity, name=name, mode=self.mode, dir=str(out), settings=quiet
        )
        return lambda step, numbers: run.log(numbers, step=step)


class MLflow(Tracker):
    """A run of an MLflow server, or of a local folder."""

    use: Literal["mlflow"] = "mlflow"
    address: str | None = None
    """Tracking server or folder; None: MLflow's own setting (``MLFLOW_TRACKING_URI``)."""
    experiment: str = "deepen"
    """Experiment that the run is filed under."""

    def open(self, out: Path, name: str) -> Callable[[int, Numbers], None]:
        """See ``Tracker.open``; needs the package ``mlflow``."""
        import mlflow

        if self.address is not None:
            mlflow.set_tracking_uri(self.address)
        mlflow.set_experiment(self.experiment)
        mlflow.start_run(run_name=name)
        return lambda step, numbers: mlflow.log_metrics(numbers, step=step)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def open_trackers(trackers: Sequence[Tracker], out: Path, name: str) -> Callable[[dict[str, Any]], None] | None:
    """What takes the records of steps and passes their numbers on; None when there is no tracker that opens."""
    opened = {tracker.use: _opened(tracker, out, name) for tracker in trackers}
    working = {use: log for use, log in opened.items() if log is not None}
    if not working:
        return None

    def log(record: dict[str, Any]) -> None:
        numbers = dict(numbers_of(record))
        for use, send in list(working.items()):
            try:
                send(record["step"], numbers)
            except Exception as error:  # other people's programs and networks fail in every way
                del working[use]
                say(f"train: tracker {use} failed and is left out from here on ({_first_line(error)})")

    return log


def _opened(tracker: Tracker, out: Path, name: str) -> Callable[[int, Numbers], None] | None:
    try:
        return tracker.open(out, name)
    except ImportError:
        say(f"train: tracker {tracker.use} is not installed: `pip install 'deepen[{tracker.use}]'`")
    except Exception as error:
        say(f"train: tracker {tracker.use} does not open and is left out ({_first_line(error)})")
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def numbers_of(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and numbers of a step's record: nested ones as ``loss_by_source/papers``, scores as relative changes."""
    for key, value in record.items():
        if key == "scores":
            yield from ((f"change/{score.probe}/{score.ability}", score.difference) for score in value)
        elif isinstance(value, dict):
            yield from ((f"{key}/{name}", float(item)) for name, item in value.items() if item is not None)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            yield key, float(value)
