"""Checkpoints. The one file that knows Orbax.

A checkpoint is one unit: the training state, and the `run` record (input position, stopwatch, best-so-far, config) as
JSON. It is written in the background to a temporary folder that is renamed when complete, so a killed process leaves
no half-written checkpoint.
"""

from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from effv2_jax.errors import UserError

CHECKPOINTS = "checkpoints"  # their folder in a workdir
_SCORE, _NOT_EVALUATED = "score", -1.0  # Orbax wants a score with every checkpoint


class Checkpoints:
    """The checkpoints of a run, `DIR/STEP`.

    Args:
      directory: of all checkpoints; made where absent, unless read_only.
      keep_last: newest checkpoints kept, at least 1.
      keep_best: checkpoints of the highest score kept.
      read_only: never writes.
    """

    def __init__(self, directory: epath.PathLike, keep_last: int = 1, keep_best: int = 0, read_only: bool = False):
        if keep_last < 1 or keep_best < 0:
            raise UserError("config.checkpoint.keep_last must be at least 1, and keep_best at least 0")
        path = epath.Path(directory)
        self.directory = path if "://" in str(directory) else path.expanduser().resolve()  # Orbax wants absolute paths
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            best_fn=lambda metrics: metrics[_SCORE],  # without it Orbax does not write the scores
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_last),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[_SCORE],
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "run"))

    def latest(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the highest score among those kept; None where none has a score."""
        scores = {step: self._manager.metrics(step)[_SCORE] for step in self._manager.all_steps()}
        scored = [step for step, score in scores.items() if score != _NOT_EVALUATED]
        return max(scored, key=lambda step: scores[step], default=None)

    def find(self, which: str) -> int:
        """The step that 'latest', 'best' or a number names.

        Raises:
          UserError: it is not kept; names those that are.
        """
        steps = sorted(self._manager.all_steps())
        named = {"latest": self.latest(), "best": self.best()} | {str(step): step for step in steps}
        if (step := named.get(which)) is None:
            raise UserError(f"there is no checkpoint '{which}' in {self.directory}; kept steps: {steps or 'none'}")
        return step

    def save(self, step: int, state: Any, run: dict[str, Any], score: float | None = None) -> None:
        """Copies the state off the devices and writes it in the background; `run` is anything JSON can hold."""
        metrics = {_SCORE: _NOT_EVALUATED if score is None else score}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The state, laid out as `abstract_state` says, and the run record."""
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["run"]

    def restore_run(self, step: int) -> dict[str, Any]:
        """The run record alone."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
