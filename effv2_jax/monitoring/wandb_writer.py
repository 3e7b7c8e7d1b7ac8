"""Metrics to Weights & Biases, beside those in the workdir. A training goes on whatever happens there."""

import uuid
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from effv2_jax.config import to_dict
from effv2_jax.errors import one_line, require
from effv2_jax.files import is_remote, write_atomically
from effv2_jax.monitoring.progress import log

ID_FILE = "wandb_id.txt"
# For the last uploads. Other processes wait SHUTDOWN_TIMEOUT (cli) for this one to exit, and a preempted machine is
# gone soon after that. What is not sent stays in the workdir.
FINISH_SECONDS = 15.0


def check_installed() -> None:
    """Raises UserError where the package is not."""
    require("wandb", "wandb", "--wandb")


class WandbWriter:
    """One run of Weights & Biases a workdir, which goes on when the training does; of one process.

    After the first failure it says so once and writes no more.

    Args:
      workdir: keeps the run's id and, where it is local, its files in wandb/.
      config: of the experiment.
      project: '' is WANDB_PROJECT's, or else W&B's own choice.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict, project: str):
        self._run: Any = None
        self._first_step = 0
        self._try(lambda: self._begin(workdir, config, project))

    def _begin(self, workdir: epath.Path, config: ConfigDict, project: str) -> None:
        import wandb

        self._run = wandb.init(
            project=project or None,
            id=_id_of(workdir),
            resume="allow",
            name=workdir.name,
            config=to_dict(config),
            allow_val_change=True,  # what may change between two starts does
            dir=None if is_remote(workdir) else str(workdir),
            settings=wandb.Settings(finish_timeout=FINISH_SECONDS),
        )
        # W&B takes no step again. A run that goes on from a checkpoint repeats some, with the same values.
        self._first_step = self._run.step

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        if self._run is not None and step >= self._first_step:
            self._try(lambda: self._run.log({name: float(value) for name, value in scalars.items()}, step=step))

    def flush(self) -> None:
        """Nothing: W&B sends in the background."""

    def close(self) -> None:
        if self._run is not None:
            self._try(self._run.finish)

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # of its own, of the network, of a disk
            self._run = None
            log(f"WARNING: Weights & Biases fails, the training goes on without it: {one_line(error)}")


def _id_of(workdir: epath.Path) -> str:
    """The id of the run, made at its first start."""
    path = workdir / ID_FILE
    if path.exists() and (known := path.read_text().strip()):
        return known
    made = uuid.uuid4().hex[:12]
    write_atomically(path, made.encode())
    return made
