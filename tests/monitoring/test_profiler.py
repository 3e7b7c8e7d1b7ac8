"""`effv2 train --profile`: a trace of the steps asked for, and no others."""

import gzip

import jax
import pytest
from tiny import tiny_config

from effv2_jax.errors import UserError
from effv2_jax.monitoring import profiler
from effv2_jax.monitoring.profiler import PROFILE_FOLDER
from effv2_jax.train import train


def test_a_profile_covers_the_steps_asked_for(tmp_path, monkeypatch):
    tracing = {}
    after_step = profiler.Profiler.after_step

    def recorded_after_step(self, step, outputs):
        tracing[step] = self._traces is not None
        after_step(self, step, outputs)

    monkeypatch.setattr(profiler.Profiler, "after_step", recorded_after_step)
    config = tiny_config(total_steps=4, curriculum__num_stages=1, curriculum__image_size=(16, 16))
    train(config, tmp_path, profile=(1, 2))
    assert tracing == {1: False, 2: True, 3: True, 4: False}
    [trace] = (tmp_path / PROFILE_FOLDER).rglob("*.trace.json.gz")
    assert b"train_step" in gzip.decompress(trace.read_bytes())
    assert list((tmp_path / PROFILE_FOLDER).rglob("*.xplane.pb"))


def test_a_run_that_resumes_after_the_first_step_to_trace_says_so(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(profiler, "log", lines.append)
    late = profiler.Profiler(tmp_path, 3, 2)
    for step in (5, 6):
        late.before_step(step)
        late.after_step(step + 1, ())
    assert lines == ["WARNING: no profile: this run resumed at step 5, after the first step to trace"]
    assert not list(tmp_path.iterdir())


def test_a_profile_in_a_bucket(bucket, tmp_path):
    config = tiny_config(total_steps=4, curriculum__num_stages=1, curriculum__image_size=(16, 16))
    with profiler._trace(profiler.epath.Path("gs://bucket/profile")):
        jax.block_until_ready(jax.numpy.ones(3) + config.seed)
    assert list((bucket / "bucket" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(8, 1), (0, 9), (-1, 1), (0, 0)])
def test_steps_that_the_run_does_not_have_are_refused(tmp_path, steps):
    with pytest.raises(UserError, match=rf"--profile={steps[0]},{steps[1]} is not within the 8 steps of the run"):
        train(tiny_config(), tmp_path / "work", profile=steps)
    assert not (tmp_path / "work").exists()
