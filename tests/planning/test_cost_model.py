"""The cost model, with the devices of this machine in the place of a slice."""

import pickle

import jax
import pytest
from tiny import tiny_config

from effv2_jax.bench.baseline import lower_plain_train_step
from effv2_jax.curriculum import make_curriculum
from effv2_jax.planning import cost_model as cost_model_module
from effv2_jax.planning.cost_model import CostModel, lower_train_step
from effv2_jax.runtime.mesh import make_mesh


@pytest.fixture
def lines(monkeypatch):
    """Compiles in this process for one CPU device; the lines of the log."""
    monkeypatch.setattr(cost_model_module, "slice_mesh", lambda topology: make_mesh(jax.devices()[:1]))
    monkeypatch.setattr(cost_model_module, "version", lambda package: "1.0")
    monkeypatch.setattr(
        cost_model_module, "run_isolated", lambda label, function, job, **_: function(pickle.loads(pickle.dumps(job)))
    )
    return []


def test_steps_are_lowered_as_the_caller_asks_and_cached_by_content(lines, tmp_path):
    config = tiny_config()
    stage = make_curriculum(config, 1000).stages[0]
    cost_model = CostModel(10, 1000, tmp_path, lines.append)
    costs = [
        cost_model.step_cost(config, stage, "v5e:2x2", *lower)
        for lower in ((), (lower_train_step,), (lower_plain_train_step, "plain Flax"))
    ]
    assert costs[0] == costs[1] != costs[2]
    assert all(cost.fits and cost.flops > 0 and cost.memory_bytes > 0 for cost in costs)
    evaluation = cost_model.step_cost(config, None, "v5e:2x2")
    assert evaluation.fits and evaluation != costs[0] and len(list(tmp_path.iterdir())) == 3
    assert [line.rpartition(" ")[2] for line in lines if line.endswith(": cached")] == ["cached"]
    assert f"v5e:2x2, stage 1, {stage.image_size} px, plain Flax: compiling ..." in lines
    assert "v5e:2x2, evaluation: compiling ..." in lines
