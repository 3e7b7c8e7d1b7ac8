"""Metrics to Weights & Biases, in addition to those in the workdir. A failure there does not stop the training."""

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
# Time for the last uploads. Other processes wait SHUTDOWN_TIMEOUT (cli) for this one to exit, and a preempted machine
# stops soon after that. Metrics that are not sent stay in the workdir.
FINISH_SECONDS = 15.0


def check_installed() -> None:
    """Raises UserError if the package `wandb` is not installed."""
    require("wandb", "wandb", "--wandb")


class WandbWriter:
    """One W&B run per workdir, which a resumed training resumes too. Used by one process only.

    At the first failure it logs a warning and stops writing.

    Args:
      workdir: holds the run's id and, if it is local, its files in wandb/.
      config: of the experiment.
      project: '' selects the project in WANDB_PROJECT, or else W&B's default.
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
            allow_val_change=True,  # the fields that may change on a resume
            dir=None if is_remote(workdir) else str(workdir),
            settings=wandb.Settings(finish_timeout=FINISH_SECONDS),
        )
        # W&B rejects steps that it has. A resumed training repeats some of them, with the same values.
        self._first_step = self._run.step

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        if self._run is not None and step >= self._first_step:
            self._try(lambda: self._run.log({name: float(value) for name, value in scalars.items()}, step=step))

    def flush(self) -> None:
        """Does nothing: W&B sends in the background."""

    def close(self) -> None:
        if self._run is not None:
            self._try(self._run.finish)

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # of W&B, of the network or of a disk
            self._run = None
            log(f"WARNING: Weights & Biases failed, the training continues without it: {one_line(error)}")


def _id_of(workdir: epath.Path) -> str:
    """The id of the W&B run, created at the first start."""
    path = workdir / ID_FILE
    if path.exists() and (known_id := path.read_text().strip()):
        return known_id
    new_id = uuid.uuid4().hex[:12]
    write_atomically(path, new_id.encode())
    return new_id
