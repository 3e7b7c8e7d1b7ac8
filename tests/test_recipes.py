"""Every recipe: its steps by shape, its data from files of the true TFDS builders; five recipes also train."""

import dataclasses

import ilsvrc
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from launching import ROOT
from needs import tensorflow

from effv2_jax.cli.load_config import load_config
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.preparation.imagenet_facts import imagenet21k
from effv2_jax.data.preparation.prepare import prepare_imagenet
from effv2_jax.data.sources import make_sources
from effv2_jax.learning.optimizer import make_optimizer, make_schedule
from effv2_jax.learning.step import initial_state, initial_variables, make_train_step
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.network.model import make_model
from effv2_jax.runtime.mesh import abstract_batch, make_mesh
from effv2_jax.train import train

METRICS = ("loss", "accuracy", "gradient_norm", "learning_rate", "finite")
# Number of examples in each split: what the recipes' splits by index leave of them is 32 or more.
SPLITS = {
    "imagenet2012": {"train": 25_021 + 64, "validation": 40},
    "cifar10": {"train": 64, "test": 40},
    "cifar100": {"train": 64, "test": 40},
    "oxford_flowers102": {"train": 32, "validation": 32, "test": 40},
    "cars196": {"train": 64, "test": 40},
}
RECIPES = {
    "imagenet.py:efficientnet-b4,resizing=progressive": "imagenet2012",
    "imagenet.py:b0,augmentation=randaugment": "imagenet2012",
    "finetune.py:imagenet,variant=s": "imagenet2012",
    "ablation.py:size": "imagenet2012",
    **{
        f"imagenet.py:{variant},recipe={recipe}": "imagenet2012"
        for variant in ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")
        for recipe in ("paper", "automl")
    },
    **{
        f"transfer.py:{data},recipe={recipe}": name
        for data, name in (
            ("cifar10", "cifar10"),
            ("cifar100", "cifar100"),
            ("flowers", "oxford_flowers102"),
            ("cars", "cars196"),
        )
        for recipe in ("paper", "automl")
    },
}
# One of each file of configs/, both recipes, and every kind of augmentation and schedule among them.
TRAINED = (
    "imagenet.py:m,recipe=automl",
    "imagenet.py:b0,augmentation=randaugment",
    "finetune.py:imagenet,variant=s",
    "ablation.py:size",
    "transfer.py:flowers,recipe=paper",
)
BLOCKS = "--config.model.blocks=('r1_k3_s2_e1_i8_o8_c1','r1_k3_s2_e2_i8_o16_se0.25')"
SHORT = [
    "--config.init_from=",
    "--config.total_steps=2",
    "--config.log_steps=1",
    "--config.evaluate_steps=2",
    "--config.checkpoint_steps=2",
    "--config.global_batch_size=16",
    "--config.batch_norm.group_size=8",
    "--config.schedule.warmup_steps=1",
    "--config.curriculum.num_stages=1",
    "--config.evaluation.batch_size=32",
    BLOCKS,
    "--config.model.width=0.25",
    "--config.data.num_examples=0",
    "--config.curriculum.image_size=(32,32)",
    "--config.evaluation.image_size=32",
]


def generated(feature, number):
    """A value of a feature of TFDS."""
    if isinstance(feature, tfds.features.Image):
        height, width = (side or 40 for side in feature.shape[:2])
        return np.full((height, width, 3), number % 256, np.uint8)
    if isinstance(feature, tfds.features.ClassLabel):
        return number % feature.num_classes
    if isinstance(feature, tfds.features.BBoxFeature):
        return tfds.features.BBox(0.1, 0.1, 0.9, 0.9)
    assert isinstance(feature, tfds.features.Text)
    return f"{number}.jpg"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All of the data sets, as TFDS' own builders would write them."""
    tensorflow()
    folder = tmp_path_factory.mktemp("tfds")
    for name, splits in SPLITS.items():
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        features = builder.info.features

        def examples(count, features=features):
            for number in range(count):
                yield number, {key: generated(feature, number) for key, feature in features.items()}

        builder._split_generators = lambda *_, splits=splits, examples=examples: {
            split: examples(count) for split, count in splits.items()
        }
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_step_of_a_recipe_keeps_the_shapes_of_the_state(recipe):
    """Batch, sizes, groups, optimizer, schedule and loss are the recipe's own; the network is thin."""
    config = load_config(str(ROOT / "configs" / recipe), [BLOCKS, "--config.model.width=0.25"])
    assert config.data.source == "tfds" and config.data.name == RECIPES[recipe]
    num_examples, num_classes = config.data.num_examples, 10
    curriculum = make_curriculum(config, num_examples)
    schedule = make_schedule(config, num_examples=num_examples, total_steps=curriculum.total_steps)
    params = jax.eval_shape(lambda: initial_variables(make_model(config, num_classes, "cpu"), 0))["params"]
    optimizer = make_optimizer(config, schedule, params)
    state = jax.eval_shape(lambda: initial_state(make_model(config, num_classes, "cpu"), optimizer, config))
    for stage in curriculum.stages:
        step = make_train_step(config, stage, make_model(config, num_classes, "cpu", stage), optimizer, schedule)
        batch = abstract_batch(config.global_batch_size, stage.image_size, 1, make_mesh())
        after, metrics = jax.eval_shape(step, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert {name: metric.shape for name, metric in metrics.items()} == dict.fromkeys(METRICS, ())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_data_of_a_recipe_open(recipe, data_dir):
    overrides = ["--config.data.num_examples=0", f"--config.data.data_dir={data_dir}"]
    sources = make_sources(load_config(str(ROOT / "configs" / recipe), overrides))
    assert len(sources.train) and len(sources.evaluation) == 40 and sources.num_classes >= 10


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TRAINED)
def test_a_recipe_trains_and_evaluates(recipe, data_dir, tmp_path):
    config = load_config(str(ROOT / "configs" / recipe), [*SHORT, f"--config.data.data_dir={data_dir}"])
    train(config, str(tmp_path))
    records = read_metrics(tmp_path / METRICS_FILE)
    assert [record["step"] for record in records if "train/loss" in record] == [1, 2]
    assert all(np.isfinite(record["train/loss"]) for record in records if "train/loss" in record)
    [result] = [record for record in records if "evaluation/raw_top1" in record]
    assert result["evaluation/raw_count"] == 40


@pytest.mark.slow
def test_pre_training_on_what_is_prepared_of_imagenet21k(tmp_path):
    ilsvrc.write_tree(tmp_path / "source", by_class=True)
    any_number = dataclasses.replace(imagenet21k(), examples={}, places={"train": ("train",)})
    prepare_imagenet(any_number, tmp_path / "source", tmp_path / "data")
    splits = ["--config.data.train_split=train[8:]", "--config.data.evaluation_split=train[:8]"]
    overrides = [*SHORT, *splits, f"--config.data.data_dir={tmp_path / 'data'}"]
    train(load_config(str(ROOT / "configs" / "imagenet21k.py:s"), overrides), str(tmp_path / "run"))
    [result] = [record for record in read_metrics(tmp_path / "run" / METRICS_FILE) if "evaluation/raw_top1" in record]
    assert result["evaluation/raw_count"] == 8


@pytest.mark.slow
def test_minival_and_training_are_all_of_imagenet(data_dir):
    overrides = ["--config.data.evaluation_split=train[:25021]", f"--config.data.data_dir={data_dir}"]
    sources = make_sources(
        load_config(str(ROOT / "configs" / "imagenet.py"), [*overrides, "--config.data.num_examples=64"])
    )
    assert (len(sources.train), len(sources.evaluation)) == (64, 25_021)
