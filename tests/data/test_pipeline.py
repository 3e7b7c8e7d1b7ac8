"""Batches: order, processes, resume, workers, evaluation and broken images."""

import dataclasses
import gc
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squares import Squares

from effv2_jax.config import defaults
from effv2_jax.curriculum import Curriculum, make_curriculum
from effv2_jax.data import pipeline
from effv2_jax.data.images.decode import Picture
from effv2_jax.errors import UserError

quick = settings(max_examples=25, deadline=None)


def config_of(batch_size=4, **data):
    config = defaults()
    config.global_batch_size = batch_size
    config.total_epochs, config.total_steps = None, 40
    config.curriculum.num_stages = 1
    config.curriculum.image_size = (8, 8)
    config.evaluation.image_size = 8
    config.evaluation.batch_size = batch_size
    config.data.update({"augmentation": "none", "num_threads": 1} | data)
    return config


def curriculum_of(config, num_steps, **changes):
    stage = make_curriculum(config, 100).stages[0]
    return Curriculum((dataclasses.replace(stage, start_step=0, end_step=num_steps, **changes),), num_steps)


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def equal(batches, others):
    for a, b in zip(batches, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@quick
@given(count=st.integers(1, 30), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_each_epoch_is_a_permutation(count, seed, epoch):
    places = [pipeline.place_in_epoch(epoch * count + place, count, seed) for place in range(count)]
    assert {e for e, _ in places} == {epoch}
    assert sorted(index for _, index in places) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(pipeline.place_in_epoch(epoch * 50 + place, 50, seed)[1] for place in range(50))
        for epoch in range(5)
        for seed in range(5)
    }
    assert len(orders) == 25


@quick
@given(count=st.integers(1, 13), steps=st.integers(1, 8), processes=st.sampled_from([1, 2, 4]))
def test_processes_share_the_same_global_batches(count, steps, processes):
    config = config_of(batch_size=4)
    curriculum, source = curriculum_of(config, steps), Squares(count)
    whole = list(pipeline.train_batches(source, config, curriculum, 0))
    parts = [
        list(pipeline.train_batches(source, config, curriculum, 0, process_index=index, process_count=processes))
        for index in range(processes)
    ]
    together = zip(*parts, strict=True)
    joined = [{name: np.concatenate([share[name] for share in shares]) for name in shares[0]} for shares in together]
    equal(joined, whole)
    # Every example once an epoch, across batches that cross epochs.
    stream = [label for batch in labels(whole) for label in batch]
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))


@quick
@given(count=st.integers(1, 13), steps=st.integers(2, 8), data=st.data())
def test_starting_at_a_step_equals_skipping_to_it(count, steps, data):
    start = data.draw(st.integers(0, steps - 1))
    config = config_of()
    curriculum, source = curriculum_of(config, steps), Squares(count)
    whole = list(pipeline.train_batches(source, config, curriculum, 0))
    equal(pipeline.train_batches(source, config, curriculum, start), whole[start:])


def test_one_iterator_goes_through_all_stages():
    config = config_of()
    config.total_steps, config.curriculum.num_stages = 7, 3
    config.curriculum.image_size = (8, 12)
    curriculum = make_curriculum(config, 100)
    sizes = [batch["image"].shape for batch in pipeline.train_batches(Squares(9), config, curriculum, 1)]
    assert sizes == [(4, size, size, 3) for size in (8, 10, 10, 12, 12, 12)]


def test_a_reused_batch_is_the_first_of_its_stage_wherever_the_run_begins():
    first = make_curriculum(config_of(), 100).stages[0]
    stages = (
        dataclasses.replace(first, start_step=0, end_step=3),
        dataclasses.replace(first, index=1, start_step=3, end_step=5, image_size=12),
    )
    curriculum = Curriculum(stages, 5)
    source = Squares(30)
    every = list(pipeline.train_batches(source, config_of(), curriculum, 0))
    for start in range(5):
        reused = list(pipeline.train_batches(source, config_of(reuse_batch=True), curriculum, start))
        equal(reused, [every[0], every[0], every[0], every[3], every[3]][start:])


@quick
@given(count=st.integers(1, 13), batch_size=st.sampled_from([4, 8]), processes=st.sampled_from([1, 2, 4]))
def test_evaluation_counts_every_example_once(count, batch_size, processes):
    config = config_of(batch_size)
    seen, lengths = [], set()
    for index in range(processes):
        batches = list(
            pipeline.evaluation_batches(Squares(count), config, process_index=index, process_count=processes)
        )
        lengths.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (batch_size // processes, 8, 8, 3)
            seen += batch["label"][batch["mask"]].tolist()
    assert lengths == {-(-count // batch_size)}
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 4), (1, 2), (2, 2)])
def test_workers_and_threads_change_nothing(workers, threads):
    augmented = {"augmentation": "randaugment", "flip": True}
    config = config_of(**augmented)
    curriculum, source = curriculum_of(config, 5), Squares(7, frozenset({3}))
    expected = list(pipeline.train_batches(source, config, curriculum, 0))
    config = config_of(**augmented, num_workers=workers, num_threads=threads)
    equal(pipeline.train_batches(source, config, curriculum, 0), expected)
    expected = list(pipeline.evaluation_batches(source, config_of()))
    equal(pipeline.evaluation_batches(source, config_of(num_workers=workers, num_threads=threads)), expected)


def images_by_epoch_and_label(config, batch_size):
    config.global_batch_size = batch_size
    images = {}
    for number, batch in enumerate(
        pipeline.train_batches(Squares(6), config, curriculum_of(config, 24 // batch_size), 0)
    ):
        for place, (label, image) in enumerate(zip(batch["label"].tolist(), batch["image"], strict=True)):
            images[(number * batch_size + place) // 6, label] = image
    return images


def test_augmentation_is_a_function_of_epoch_and_example_alone():
    config = config_of(augmentation="randaugment")
    by_four, by_eight = images_by_epoch_and_label(config, 4), images_by_epoch_and_label(config, 8)
    assert by_four.keys() == by_eight.keys() and len(by_four) == 24
    for key, image in by_four.items():
        np.testing.assert_array_equal(image, by_eight[key])
    assert not np.array_equal(by_four[0, 2], by_four[1, 2])


def test_the_stage_decides_size_and_magnitude(monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "rand_augment", lambda image, m, rng, layers: seen.append((m, layers)) or image)
    config = config_of(augmentation="randaugment", randaugment_layers=3)
    curriculum = curriculum_of(config, 1, image_size=10, randaugment_magnitude=12.5)
    [batch] = pipeline.train_batches(Squares(4), config, curriculum, 0)
    assert batch["image"].shape == (4, 10, 10, 3)
    assert seen == [(12.5, 3)] * 4


def test_a_broken_image_is_replaced_counted_and_named_once(caplog):
    config = config_of()
    source = Squares(6, frozenset({1, 4}))
    counter = pipeline.BrokenCounter(source)
    drawn = []
    with caplog.at_level(logging.WARNING):
        for batch in pipeline.train_batches(source, config, curriculum_of(config, 6), 0):
            assert batch["image"].shape[0] == 4
            drawn += batch["label"].tolist()
            counter.update(batch)
    assert set(drawn) == {0, 2, 3, 5} and len(drawn) == 24
    assert counter.count == 2
    assert sorted(record.getMessage() for record in caplog.records) == ["cannot read square 1", "cannot read square 4"]


def test_a_broken_image_is_masked_in_evaluation():
    [first, second] = pipeline.evaluation_batches(Squares(6, frozenset({1})), config_of())
    assert first["mask"].tolist() == [True, False, True, True] and first["broken"].tolist() == [-1, 1, -1, -1]
    assert second["mask"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_a_strict_run_with_its_name(workers):
    config = config_of(skip_broken=False, num_threads=2, num_workers=workers)
    source = Squares(4, frozenset({2}))
    message = r"cannot read square 2: it is torn; --config\.data\.skip_broken=True skips it"
    with pytest.raises(UserError, match=message):
        list(pipeline.train_batches(source, config, curriculum_of(config, 2), 0))
    with pytest.raises(UserError, match=message):
        list(pipeline.evaluation_batches(source, config))


def test_nothing_readable_is_an_error():
    config = config_of()
    with pytest.raises(UserError, match="3 images in a row cannot be read, the first is square"):
        list(pipeline.train_batches(Squares(3, frozenset({0, 1, 2})), config, curriculum_of(config, 2), 0))


def test_threads_end_with_the_iterator():
    before = threading.active_count()
    config = config_of(num_threads=4)
    batches = pipeline.train_batches(Squares(50), config, curriculum_of(config, 40), 0)
    next(batches)
    batches.close()
    list(pipeline.evaluation_batches(Squares(50), config))
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(timeout=10)
    assert threading.active_count() <= before


def test_the_whole_image_with_cutout_as_released_for_fine_tuning():
    """A squashed image, a square of half its side in noise: all else is as it was."""
    config = config_of(1, augmentation="cutout", crop_area=(1.0, 1.0), flip=False)
    config.curriculum.image_size = (32, 32)

    class Wide:
        class_names, fingerprint = ("a",), "wide"

        def __len__(self):
            return 1

        def load(self, index):
            image = np.zeros((20, 60, 3), np.uint8)
            image[:, :30] = 100
            return Picture(image), 0

        def describe(self, index):
            return "wide"

    for batch in pipeline.train_batches(Wide(), config, curriculum_of(config, 10, image_size=32), 0):
        [image] = batch["image"]
        noise = (image >= 128).all(-1)
        rows, columns = noise.any(1), noise.any(0)
        np.testing.assert_array_equal(noise, np.outer(rows, columns))
        assert 8 <= rows.sum() <= 16 and 8 <= columns.sum() <= 16
        plain = np.zeros((32, 32, 3))
        plain[:, :16] = 100
        np.testing.assert_allclose(image[~noise], plain[~noise], atol=35)  # interpolation at the edge
        assert (image[~noise][:, 0] == plain[~noise][:, 0]).mean() > 0.9


def test_batches_that_were_used_up_give_their_shared_memory_back():
    def mapped():
        return "/dev/shm/psm_" in Path("/proc/self/maps").read_text()

    config = config_of(num_workers=1)
    batches = pipeline.train_batches(Squares(7), config, curriculum_of(config, 5), 0)
    for _ in range(5):
        next(batches)
    assert mapped()
    gc.disable()
    try:
        batches.close()
        deadline = time.monotonic() + 10  # a thread of Grain does it
        while mapped() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not mapped()
    finally:
        gc.enable()
