"""Whether a config may resume the run of a checkpoint, and what may differ.

What decides the numbers of a run must stay: network, seed, batch, data, recipe, and the curriculum of the steps already
trained. What only decides how the run is executed or monitored may change, and so may the curriculum of the steps still
to come. The run may also become longer.
"""

import dataclasses
import fnmatch
import itertools
import json
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from effv2_jax.checkpoints.manager import Checkpoints
from effv2_jax.config import defaults, flatten, to_dict
from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.data.source import Sources
from effv2_jax.errors import UserError
from effv2_jax.experiment import Experiment
from effv2_jax.learning.step import TrainState
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.monitoring.progress import Progress
from effv2_jax.monitoring.stopwatch import Stopwatch, lost_seconds

CHANGEABLE_FIELDS = (
    "log_*",
    "evaluate_*",
    "checkpoint_*",
    "checkpoint.*",
    "compilation.*",
    "evaluation.batch_size",
    "model.lowering",  # changes rounding only
    # How and from where the data are read; their fingerprint shows which examples they are.
    "data.data_dir",
    "data.num_examples",
    "data.max_labels",  # too small a number is an error
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_batches",
    "data.skip_broken",
)
_CURRICULUM_FIELDS = ("curriculum.*", "total_*")  # the stages that they make are compared instead
# Of a stage: how a step is computed, and which steps it has.
_IGNORED_STAGE_FIELDS = ("index", "start_step", "end_step", "accumulation_steps", "remat")


def identity_of(config: ConfigDict, curriculum: Curriculum, sources: Sources) -> dict[str, Any]:
    """What identifies the run of a checkpoint, in types that JSON can hold."""
    return {
        "config": to_dict(config),
        "stages": [dataclasses.asdict(stage) for stage in curriculum.stages],
        "class_names": list(sources.class_names),
        "data": {"training data": sources.train.fingerprint, "evaluation data": sources.evaluation.fingerprint},
    }


def resume_curriculum(
    run: dict[str, Any], config: ConfigDict, curriculum: Curriculum, sources: Sources
) -> tuple[Curriculum, list[str]]:
    """The curriculum of the resumed run, and the conflicts of the config with the run so far.

    If a longer run would change the stages of the steps already trained, it keeps its stages and extends the last one.

    Args:
      run: the checkpoint's record: `identity_of` and 'step'.
      config: the new config.
      curriculum: that the new config makes by itself.
      sources: the data of the new config.

    Returns:
      the curriculum, and one line per conflict with the old and the new value.
    """
    new = flatten(json.loads(json.dumps(to_dict(config))))
    # The record of an older version may lack fields, which then have their defaults.
    old = flatten(json.loads(json.dumps(to_dict(defaults())))) | flatten(run["config"])
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    changeable: tuple[str, ...] = CHANGEABLE_FIELDS + _CURRICULUM_FIELDS
    if config.data.source == "folder":
        changeable += ("data.name",)
    conflicts = [
        f"config.{name}: {old.get(name, 'not set')!r} -> {new.get(name, 'not set')!r}"
        for name in changed
        if not _matches(name, changeable)
    ]
    data = identity_of(config, curriculum, sources)["data"]
    conflicts += [f"{name}: {run['data'][name]} -> {now}" for name, now in data.items() if run["data"][name] != now]

    stages = tuple(Stage(**stage) for stage in run["stages"])
    saved = Curriculum(stages, stages[-1].end_step)
    if not any(_matches(name, _CURRICULUM_FIELDS) for name in changed):
        return saved, conflicts
    total = curriculum.total_steps
    if total < saved.total_steps:
        return curriculum, [*conflicts, f"length: {saved.total_steps} -> {total} steps; it may only grow"]
    stage_conflicts = curriculum_conflicts(saved, curriculum, run["step"])
    only_longer = total > saved.total_steps and not any(_matches(name, ("curriculum.*",)) for name in changed)
    if stage_conflicts and only_longer:
        last = dataclasses.replace(saved.stages[-1], end_step=total)
        return Curriculum((*saved.stages[:-1], last), total), conflicts
    return curriculum, conflicts + stage_conflicts


def check_conflicts(conflicts: list[str], workdir: epath.PathLike, step: int) -> None:
    """Raises UserError with all conflicts, if there are any."""
    if conflicts:
        raise UserError(
            f"this config cannot resume the run in '{workdir}' (step {step}): {'; '.join(conflicts)}. Undo these "
            "changes, pass another --workdir, or resume anyway with --force"
        )


def resume(
    experiment: Experiment,
    checkpoints: Checkpoints,
    workdir: epath.Path,
    stopwatch: Stopwatch,
    force: bool,
    log: Callable[[str], None],
) -> tuple[Experiment, TrainState, Progress]:
    """Restores the newest checkpoint.

    Args:
      experiment: of the config.
      checkpoints: of the run, at least one.
      workdir: of the run.
      stopwatch: of this process; adds the seconds of earlier processes.
      force: resumes even if the config conflicts with the run so far.
      log: called with a line that names the step, and one about the conflicts if force is set.

    Returns:
      the experiment with the curriculum to resume, the state on its mesh, and the progress.

    Raises:
      UserError: the config conflicts with the run so far, or the run is longer than the config allows.
    """
    step = checkpoints.latest()
    assert step is not None
    record = checkpoints.restore_run(step)
    curriculum, conflicts = resume_curriculum(record, experiment.config, experiment.curriculum, experiment.sources)
    if force and conflicts:
        log(f"WARNING: --force resumes the run despite conflicts: {'; '.join(conflicts)}")
    else:
        check_conflicts(conflicts, workdir, step)
    if curriculum.total_steps < step:
        raise UserError(f"the run in '{workdir}' is at step {step}, beyond the {curriculum.total_steps} of this config")
    if curriculum != experiment.curriculum:
        experiment = experiment.with_curriculum(curriculum)
    state, record = checkpoints.restore(step, experiment.compiler.abstract_state)
    seconds = record["stopwatch"]
    stopwatch.restore(seconds, lost_seconds(read_metrics(workdir / METRICS_FILE), step, seconds))
    log(f"resuming from step {step} of {curriculum.total_steps} in {workdir}")
    return experiment, state, Progress.from_record(record | {"step": step}, stopwatch)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def curriculum_conflicts(old: Curriculum, new: Curriculum, step: int) -> list[str]:
    """How the stages of the steps before `step` differ, one line for each field and range of steps."""
    ends = {stage.end_step for curriculum in (old, new) for stage in curriculum.stages}
    edges = [0, *sorted(end for end in ends if end < step), step]
    lines = []
    for start, end in itertools.pairwise(edges):
        if start == end or start >= new.total_steps:
            continue
        before, now = (dataclasses.asdict(curriculum.stage_at(start)) for curriculum in (old, new))
        for field in before.keys() - set(_IGNORED_STAGE_FIELDS):
            if before[field] != now[field]:
                lines.append((start, f"{field} of steps {start} to {end - 1}: {before[field]} -> {now[field]}"))
    return [line for _, line in sorted(lines)]
