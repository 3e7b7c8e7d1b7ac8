"""Every name that `rules.CHOICES` allows is implemented by the module that reads the field, and does its own thing."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from config_of import config_of
from squares import Squares

from effv2_jax.config import defaults
from effv2_jax.config.rules import CHOICES
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.images.crop import evaluation_crop
from effv2_jax.data.images.decode import Picture
from effv2_jax.data.pipeline import TrainExamples
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import UserError
from effv2_jax.learning.losses import make_loss
from effv2_jax.learning.optimizer import make_optimizer, make_schedule
from effv2_jax.network.layers import pads_of
from effv2_jax.network.model import fast_lowering, make_model, normalize

IMAGE = np.random.default_rng(0).integers(
    0, 256, (101, 76, 3), np.uint8
)  # odd margins, which v1 and v2 round differently


def with_choice(field, name):
    config = defaults()
    config.update_from_flattened_dict({field: name})
    return config


def dtype(config):
    return make_model(config, 3, "cpu").dtype


def lowering(config):
    return [make_model(config, 3, platform).lowering for platform in ("cpu", "tpu")]


def padding(config):
    return pads_of(16, 3, 2, make_model(config, 3, "cpu").padding)


def recipe(config):
    return [stage.image_size for stage in make_curriculum(config, 1000).stages]


def source(config):
    """Each kind of source fails in its own way, or has data."""
    config.data.name = "no_such_data"
    try:
        return make_sources(config).train.fingerprint
    except UserError as error:
        return str(error)


def interpolation(config):
    return evaluation_crop(IMAGE, 64, "squash", config.data.interpolation)


def augmentation(config):
    config.update_from_flattened_dict({"global_batch_size": 4})
    curriculum = make_curriculum(config, 1000)
    examples = TrainExamples(Squares(8), config, curriculum, 0, 0, 1)
    return np.stack([examples.augment(Picture(IMAGE), 0, index, curriculum.stages[3]) for index in range(8)])


def crop(config):
    return evaluation_crop(IMAGE, 64, config.data.evaluation_crop, "bilinear")


def normalization(config):
    return np.asarray(normalize(IMAGE[None], config.data.normalization))


def update(config):
    params = {"kernel": jnp.array([1.0, 2.0])}
    optimizer = make_optimizer(config, lambda step: 0.1, params)
    updates, _ = optimizer.update({"kernel": jnp.array([0.3, 0.1])}, optimizer.init(params), params)
    return np.asarray(updates["kernel"])


def decayed_update(config):
    config.optimizer.weight_decay = 0.1
    return update(config)


def schedule(config):
    rate = make_schedule(config, num_examples=1000, total_steps=100)
    return np.array([float(rate(step)) for step in (0, 30, 60, 99)])


def loss(config):
    return np.asarray(make_loss(config.loss.name)(jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[0.0, 1.0, 0.0]])))


RESULTS = {
    "dtype": dtype,
    "model.lowering": lowering,
    "model.padding": padding,
    "curriculum.recipe": recipe,
    "data.source": source,
    "data.interpolation": interpolation,
    "data.augmentation": augmentation,
    "data.evaluation_crop": crop,
    "data.normalization": normalization,
    "optimizer.name": update,
    "optimizer.weight_decay_mode": decayed_update,
    "schedule.name": schedule,
    "loss.name": loss,
}


def test_every_choice_is_tried():
    assert RESULTS.keys() == CHOICES.keys()


@pytest.mark.parametrize("field", CHOICES)
def test_every_choice_is_implemented(field):
    results = {name: RESULTS[field](with_choice(field, name)) for name in CHOICES[field]}
    for (one, a), (other, b) in itertools.combinations(results.items(), 2):
        assert not np.array_equal(a, b), f"{one} and {other} do the same"


def test_auto_is_the_fast_lowering():
    assert lowering(with_choice("model.lowering", "auto")) == [fast_lowering("cpu"), fast_lowering("tpu")]


def test_a_recipe_is_chosen_for_all_fields():
    assert recipe(config_of(recipe="automl", image_size=(128, 300))) == [171, 214, 257, 300]
