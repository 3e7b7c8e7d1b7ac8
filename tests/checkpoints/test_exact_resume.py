"""A run that dies again and again comes to what a run comes to that nobody disturbed, bit for bit."""

import hashlib

import jax
import numpy as np
import pytest
from launching import ROOT
from pictures_folder import write_photos
from tiny import SMALL, tiny_config, to_host

from effv2_jax import train as train_lib
from effv2_jax.checkpoints.manager import CHECKPOINTS, Checkpoints
from effv2_jax.cli.load_config import load_config
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import Preempted
from effv2_jax.learning.optimizer import parameter_factors
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.runtime.compiler import Compiler
from effv2_jax.runtime.mesh import make_mesh
from effv2_jax.runtime.preemption import Preemption


class Killed(Exception):
    pass


def train_in_lives(config, workdir, monkeypatch, deaths):
    """Trains in as many lives as it takes.

    Args:
      deaths: step -> 'asked' (to leave: it saves and goes) or 'killed' (before the next step, saving nothing).

    Returns:
      the contents of the batches by number from 0, and the number of lives.
    """
    deaths, drawn = dict(deaths), {}
    lives, ended = 0, False
    while not ended:
        lives += 1
        with monkeypatch.context() as patch:
            ended = live(config, workdir, patch, deaths, drawn)
    assert not deaths
    return drawn, lives


def live(config, workdir, patch, deaths, drawn):
    """One life, to the next death or the end of the run; whether it was the end."""
    saved = workdir / CHECKPOINTS
    step = max((int(p.name) for p in saved.iterdir()), default=0) if saved.exists() else 0
    put_batch = train_lib.put_batch

    def recording_put_batch(batch, mesh):
        nonlocal step
        if deaths.get(step) == "killed":
            del deaths[step]
            raise Killed
        content = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
        assert drawn.setdefault(step, content) == content  # another life draws the same
        step += 1
        return put_batch(batch, mesh)

    def reached(self):
        return deaths.get(step) == "asked" and deaths.pop(step) == "asked"

    patch.setattr(train_lib, "put_batch", recording_put_batch)
    patch.setattr(Preemption, "reached", reached)
    try:
        train_lib.train(config, workdir)
    except (Killed, Preempted):
        return False
    return True


def outcome(workdir, config):
    """The last state and record, times left out, and what was written of every step."""
    sources = make_sources(config)
    curriculum = make_curriculum(config, len(sources.train))
    compiler = Compiler(config, curriculum, sources.num_classes, len(sources.train), make_mesh())
    checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    state, record = checkpoints.restore(checkpoints.latest(), compiler.abstract_state)
    del record["stopwatch"]
    timed = ("time/", "stage/", "host/", "train/images_per_second", "train/input_wait")
    metrics = [
        {name: value for name, value in line.items() if not name.startswith(timed)}
        for line in read_metrics(workdir / METRICS_FILE)
    ]
    return to_host(state), record, [line for line in metrics if len(line) > 1], to_host(compiler.initial_state())


def compare(config, tmp_path, monkeypatch, deaths):
    batches, lives = train_in_lives(config, tmp_path / "calm", monkeypatch, {})
    assert lives == 1 and sorted(batches) == list(range(8)) and len(set(batches.values())) == 8
    other_batches, lives = train_in_lives(config, tmp_path / "wild", monkeypatch, deaths)
    assert lives == len(deaths) + 1
    assert other_batches == batches
    state, record, metrics, initial = outcome(tmp_path / "calm", config)
    other_state, other_record, other_metrics, _ = outcome(tmp_path / "wild", config)
    jax.tree.map(np.testing.assert_array_equal, other_state, state)
    assert other_record == record
    assert other_metrics == metrics
    unchanged = jax.tree.map(np.array_equal, state.params, initial.params)
    rates = parameter_factors(config, "learning_rate_multipliers", initial.params)
    assert unchanged == jax.tree.map(lambda rate: rate == 0, rates) and state.step == 8


def test_dying_at_every_step_of_every_stage_changes_nothing(tmp_path, monkeypatch):
    # Stages end at 2, 4 and 6; the second and the fourth accumulate; a checkpoint every second step, so that the work
    # of the steps 1, 3, 5 and 7 is lost where the process is killed. An evaluation is due at 4 and 8: who is asked to
    # leave at 4 leaves it to the next life.
    config = tiny_config(log_steps=2, curriculum__listed__accumulation_steps=(1, 2, 1, 2))
    deaths = {1: "killed", 2: "asked", 3: "killed", 4: "asked", 5: "asked", 6: "killed", 7: "killed"}
    compare(config, tmp_path, monkeypatch, deaths)


RECIPES = {
    "paper": ("imagenet.py:l,runlocal", []),
    "automl": ("imagenet.py:m,recipe=automl,runlocal", []),
    "autoaugment": ("imagenet.py:b0,runlocal", []),
    "digits": ("digits.py", SMALL),
    "folder": ("folder.py:b0,size=32", SMALL),
    "adamw": ("digits.py", [*SMALL, "--config.optimizer.name=adamw", "--config.ema.decay=0.0"]),
    "lamb": ("digits.py", [*SMALL, "--config.optimizer.name=lamb", "--config.optimizer.weight_decay_mode=decoupled"]),
    "fine_tuning": (
        "digits.py",
        [
            *SMALL,
            "--config.optimizer.learning_rate_multipliers=(('stem|block_',0.0),('^head',0.1),('.*',1.0))",
            "--config.batch_norm.frozen=True",
        ],
    ),
    "sgd": ("digits.py", [*SMALL, "--config.optimizer.name=sgd", "--config.curriculum.remat=True"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_on_exactly(tmp_path, monkeypatch, recipe):
    file, overrides = RECIPES[recipe]
    if recipe == "folder":
        write_photos(tmp_path / "photos")
        overrides = [*overrides, f"--config.data.name={tmp_path}/photos"]
    config = load_config(f"{ROOT}/configs/{file}", overrides)
    compare(config, tmp_path, monkeypatch, {1: "asked", 3: "killed", 4: "asked", 7: "killed"})
