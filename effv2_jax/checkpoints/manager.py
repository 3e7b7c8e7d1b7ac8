"""Checkpoints. The only module that knows Orbax.

A checkpoint is one unit: the training state, and the `run` record (input position, stopwatch, best-so-far, config) as
JSON. It is written in the background to a temporary folder, gets the checksums of its files, is synced to the disk and
only then renamed, so that a killed process or lost power leaves no half-written checkpoint. Then older ones are
deleted.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from effv2_jax.checkpoints.checksums import find_damage, write_checksums
from effv2_jax.errors import Unavailable, UserError, is_disk_full_or_readonly, one_line
from effv2_jax.files import is_remote
from effv2_jax.network.types import PyTree

CHECKPOINTS = "checkpoints"  # their folder in a workdir
TIMEOUT = 1200  # seconds that a process waits for the others to write their parts of a checkpoint
_SCORE, _NOT_EVALUATED = "score", -1.0  # Orbax requires a score for every checkpoint
# Orbax writes these files after the checksums, and does not need them to restore.
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: a query of JAX from the thread that finishes a save would reset the count of `Preemption`."""
        return False

    def close(self) -> None:
        """Waits for the removal of half-written checkpoints, too, which would race with that of a later manager."""
        self._maybe_await_cleanup_tmp_directory()
        super().close()


class Checkpoints:
    """The checkpoints of a run, `DIR/STEP`.

    Args:
      directory: of all checkpoints; created if needed, unless read_only.
      keep_last: number of newest checkpoints to keep, at least 1.
      keep_best: number of checkpoints of the highest scores to keep.
      read_only: never writes.

    Raises:
      UserError: a directory that cannot be written, or (read_only) unreadable checkpoints.
    """

    def __init__(self, directory: epath.PathLike, keep_last: int = 1, keep_best: int = 0, read_only: bool = False):
        self.directory = absolute(directory)
        self._saving = -1  # the step being written
        self._open = True
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            best_fn=lambda metrics: metrics[_SCORE],  # without it Orbax does not write the scores
            async_options=ocp.AsyncOptions(timeout_secs=TIMEOUT, post_finalization_callback=self._seal),
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
        try:
            self._manager = _Manager(self.directory, options=options, item_names=("state", "run"))
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {self.directory}: {error}") from None
        except ValueError as error:  # in the JSON of a score
            faults = "; ".join(f"{path.name}: {', '.join(damage_of(path))}" for path in _steps(self.directory))
            raise UserError(f"the checkpoints in {self.directory} cannot be read ({error}): {faults}") from None

    def latest(self) -> int | None:
        """The newest saved step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the highest score among the kept checkpoints; None if none has a score."""
        scores = {step: self._manager.metrics(step)[_SCORE] for step in self._manager.all_steps()}
        scored = [step for step, score in scores.items() if score != _NOT_EVALUATED]
        return max(scored, key=lambda step: (scores[step], step), default=None)  # of equals the newest, as Orbax keeps

    def find(self, which: str) -> int:
        """The step of the checkpoint that 'latest', 'best' or a number names.

        Raises:
          UserError: it is not kept (the message names those that are), or it is damaged.
        """
        steps = sorted(self._manager.all_steps())
        named = {"latest": self.latest(), "best": self.best()} | {str(step): step for step in steps}
        if (step := named.get(which)) is None:
            raise UserError(f"there is no checkpoint '{which}' in {self.directory}; kept steps: {steps or 'none'}")
        if faults := damage_of(self.directory / str(step)):
            others = [other for other in steps if other != step]
            advice = f"--step={others[-1]} selects another" if others else "there is no other"
            raise UserError(f"checkpoint {step} in {self.directory} is damaged: {', '.join(faults)}; {advice}")
        return step

    def save(self, step: int, state: PyTree, run: dict[str, Any], score: float | None = None) -> None:
        """Copies the state off the devices and writes it in the background; `run` is anything JSON can hold.

        Raises:
          UserError: this checkpoint or the previous one cannot be written because the disk is full or read-only.
          Unavailable: it cannot be written for another reason.
        """
        metrics = {_SCORE: _NOT_EVALUATED if score is None else score}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        with self._writing():
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The state, with the shardings of `abstract_state` on any number of devices, and the run record.

        Raises:
          UserError: the saved state has other arrays.
        """
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), run=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"checkpoint {step} in {self.directory} is of another network or optimizer: {_reason(error)}"
            ) from error
        return restored["state"], restored["run"]

    def restore_run(self, step: int) -> dict[str, Any]:
        """The run record only."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]

    def check(self) -> None:
        """Raises as `save` if the write in the background has failed already."""
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until all saved checkpoints are on disk. Raises as `save`."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads. Does nothing when called again, nor after a failure, when Orbax may hang."""
        if self._open:
            with self._writing():
                self._manager.wait_until_finished()
                self._manager.close()
            self._open = False

    def _seal(self) -> None:
        """Adds checksums; called on the first process when a checkpoint is written, before it is renamed."""
        names = (f"{self._saving}{suffix}" for suffix in (".orbax-checkpoint-tmp", ""))  # '': on object stores
        unfinished = next(path for name in names if (path := self.directory / name).exists())
        write_checksums(unfinished, exclude=_WRITTEN_LAST)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # of Python, TensorStore and JAX
            self._open = False
            steps = [path.name for path in _steps(self.directory) if not damage_of(path)]
            intact = f"intact checkpoints: {', '.join(steps) or 'none'}"
            if is_disk_full_or_readonly(_origin(error)):
                raise UserError(
                    f"a checkpoint cannot be written to {self.directory}: {_reason(error)}; {intact}. When "
                    "this is fixed, the same command resumes from the last one"
                ) from error
            raise Unavailable(
                f"saving to {self.directory} failed: {_reason(error)}; {intact}. If another process has died, its "
                "log says why"
            ) from error


def absolute(directory: epath.PathLike) -> epath.Path:
    """The directory in the form that Orbax requires."""
    path = epath.Path(directory)
    return path if is_remote(directory) else path.expanduser().resolve()


def has_checkpoints(directory: epath.PathLike) -> bool:
    """Whether a finished checkpoint exists, intact or not."""
    return bool(_steps(absolute(directory)))


def quarantine_damaged(directory: epath.PathLike, log: Callable[[str], None]) -> None:
    """Renames damaged checkpoints from `STEP` to `STEP.damaged`, so that the newest one left is intact.

    Args:
      directory: of the checkpoints; no other process writes there.
      log: called with a line for each damaged checkpoint.

    Raises:
      UserError: none would be left; then nothing is renamed.
    """
    directory = absolute(directory)
    steps = _steps(directory)
    damaged = {path: faults for path in steps if (faults := damage_of(path))}
    lines = [f"checkpoint {path.name} is damaged: {', '.join(faults)}" for path, faults in damaged.items()]
    quarantined = sorted(path.name for path in directory.glob("*.damaged")) if directory.exists() else []
    if len(damaged) == len(steps) and (damaged or quarantined):
        raise UserError(
            f"no checkpoint in {directory} is intact: {'; '.join(lines + quarantined)}. Start again in another "
            f"workdir, or delete {directory}"
        )
    newest = max((int(path.name) for path in steps if path not in damaged), default=-1)
    for (path, faults), line in zip(damaged.items(), lines, strict=True):
        if int(path.name) < newest and all(fault.endswith(" is missing") for fault in faults):
            path.rmtree()  # a process was killed while it deleted this outdated checkpoint
            continue
        quarantine = path.with_name(f"{path.name}.damaged")
        if quarantine.exists():
            quarantine.rmtree()
        path.rename(quarantine)
        log(f"{line}; it is now {quarantine.name}")


def _steps(directory: epath.Path) -> list[epath.Path]:
    """The folders of finished checkpoints, oldest first."""
    if not directory.exists():
        return []
    # Object stores cannot rename: there an unfinished checkpoint already has its name, but not Orbax's marker file.
    folders = [path for path in directory.iterdir() if path.name.isdigit() and ocp.utils.is_checkpoint_finalized(path)]
    return sorted(folders, key=lambda path: int(path.name))


def damage_of(folder: epath.PathLike) -> list[str]:
    """The faults of the files of a checkpoint, one line each; [] if it is intact."""
    return find_damage(folder, exclude=_WRITTEN_LAST)


def _origin(error: BaseException) -> BaseException:
    """The first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """The first error of a chain in one line, without TensorStore's settings."""
    error = _origin(error)
    return one_line(str(error).partition(" [tensorstore_spec=")[0] or type(error).__name__, limit=1000)


def silence_background_threads() -> None:
    """Stops the threads of Orbax and TensorStore from printing tracebacks of errors that also arrive as exceptions."""
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno != logging.ERROR or "orbax" not in record.pathname
    )
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # a write that ends after its save was abandoned
            report(unraisable)

    sys.unraisablehook = hook
