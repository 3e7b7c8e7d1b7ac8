"""Whether a config goes on with the run that a checkpoint is of, and what may differ.

What decides the numbers of a run stays: network, seed, batch, data, recipe, and what the steps already trained had of
the curriculum. What only decides how it is carried out or watched may change, and so may everything that is still to
come of the curriculum; the run may also be made longer.
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
from effv2_jax.config import flatten, to_dict
from effv2_jax.curriculum import Curriculum, Stage
from effv2_jax.data.source import Sources
from effv2_jax.errors import UserError
from effv2_jax.experiment import Experiment
from effv2_jax.learning.step import TrainState
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.monitoring.progress import Progress
from effv2_jax.monitoring.stopwatch import Stopwatch, lost_seconds

MAY_CHANGE = (
    "log_*",
    "evaluate_*",
    "checkpoint_*",
    "checkpoint.*",
    "compilation.*",
    "evaluation.batch_size",
    "model.lowering",  # rounding alone
    # How the data are read and where they lie; which examples they are is in their fingerprint.
    "data.data_dir",
    "data.num_examples",
    "data.max_labels",  # too few are an error
    "data.num_workers",
    "data.num_threads",
    "data.prefetch_batches",
    "data.skip_broken",
)
_CURRICULUM = ("curriculum.*", "total_*")  # compared by what they make of the stages
# Of a stage: how a step is computed, and what the numbers of the steps tell already.
_NOT_COMPARED = ("index", "start_step", "end_step", "accumulation_steps", "remat")


def identity_of(config: ConfigDict, curriculum: Curriculum, sources: Sources) -> dict[str, Any]:
    """What a checkpoint keeps to recognise its run by, as JSON can hold it."""
    return {
        "config": to_dict(config),
        "stages": [dataclasses.asdict(stage) for stage in curriculum.stages],
        "class_names": list(sources.class_names),
        "data": {"training data": sources.train.fingerprint, "evaluation data": sources.evaluation.fingerprint},
    }


def resume_curriculum(
    run: dict[str, Any], config: ConfigDict, curriculum: Curriculum, sources: Sources
) -> tuple[Curriculum, list[str]]:
    """The curriculum to go on with, and how the config contradicts the run so far.

    A longer run whose stages would then not be those of the steps already trained keeps its stages and lengthens the
    last one.

    Args:
      run: the checkpoint's record: `identity_of` and 'step'.
      config: the new one.
      curriculum: what the new config alone makes.
      sources: the data at hand.

    Returns:
      the curriculum, and one line a contradiction with the old and the new value.
    """
    old, new = flatten(run["config"]), flatten(json.loads(json.dumps(to_dict(config))))
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    may_change = MAY_CHANGE + _CURRICULUM + (("data.name",) if config.data.source == "folder" else ())
    faults = [
        f"config.{name}: {old.get(name, 'not there')!r} -> {new.get(name, 'not there')!r}"
        for name in changed
        if not _matches(name, may_change)
    ]
    data = identity_of(config, curriculum, sources)["data"]
    faults += [f"{name}: {run['data'][name]} -> {now}" for name, now in data.items() if run["data"][name] != now]

    stages = tuple(Stage(**stage) for stage in run["stages"])
    saved = Curriculum(stages, stages[-1].end_step)
    if not any(_matches(name, _CURRICULUM) for name in changed):
        return saved, faults
    total = curriculum.total_steps
    if total < saved.total_steps:
        return curriculum, [*faults, f"length: {saved.total_steps} -> {total} steps; it may only grow"]
    contradictions = curriculum_conflicts(saved, curriculum, run["step"])
    if contradictions and total > saved.total_steps and not any(_matches(name, ("curriculum.*",)) for name in changed):
        last = dataclasses.replace(saved.stages[-1], end_step=total)
        return Curriculum((*saved.stages[:-1], last), total), faults
    return curriculum, faults + contradictions


def check_faults(faults: list[str], workdir: Any, step: int) -> None:
    """Raises UserError where there are any."""
    if faults:
        raise UserError(
            f"this config does not go on with the run in '{workdir}' (step {step}): {'; '.join(faults)}. Undo that, "
            "take another --workdir, or go on all the same with --force"
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
      experiment: what the config makes.
      checkpoints: of the run, at least one.
      workdir: of the run.
      stopwatch: of this process; takes the seconds of the processes before.
      force: resumes even if the checkpoint is another run's.
      log: called with a line on what is resumed.

    Returns:
      the experiment with the curriculum to resume, the state on its mesh, and the progress.

    Raises:
      UserError: the config contradicts the run so far, or the run is longer than the config allows.
    """
    step = checkpoints.latest()
    assert step is not None
    record = checkpoints.restore_run(step)
    curriculum, faults = resume_curriculum(record, experiment.config, experiment.curriculum, experiment.sources)
    if force and faults:
        log(f"WARNING: --force goes on although the run was another: {'; '.join(faults)}")
    else:
        check_faults(faults, workdir, step)
    if curriculum.total_steps < step:
        raise UserError(f"the run in '{workdir}' is at step {step}, beyond the {curriculum.total_steps} of this config")
    if curriculum != experiment.curriculum:
        experiment = experiment.with_curriculum(curriculum)
    state, record = checkpoints.restore(step, experiment.compiler.abstract_state)
    seconds = record["stopwatch"]
    stopwatch.restore(seconds, lost_seconds(read_metrics(workdir / METRICS_FILE), step, seconds))
    log(f"going on from step {step} of {curriculum.total_steps} in {workdir}")
    return experiment, state, Progress.from_record(record | {"step": step}, stopwatch)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def curriculum_conflicts(old: Curriculum, new: Curriculum, step: int) -> list[str]:
    """What the steps before `step` had and would have now, a line for each field and run of steps."""
    ends = {stage.end_step for curriculum in (old, new) for stage in curriculum.stages}
    edges = [0, *sorted(end for end in ends if end < step), step]
    lines = []
    for start, end in itertools.pairwise(edges):
        if start == end or start >= new.total_steps:
            continue
        before, now = (dataclasses.asdict(curriculum.stage_at(start)) for curriculum in (old, new))
        for field in before.keys() - set(_NOT_COMPARED):
            if before[field] != now[field]:
                lines.append((start, f"{field} of steps {start} to {end - 1}: {before[field]} -> {now[field]}"))
    return [line for _, line in sorted(lines)]
