"""The order of images in the shards."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from effv2_jax.data.preparation import shards
from effv2_jax.data.preparation.image_index import ImageLocation, make_index


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(100, 2000), min_size=2, max_size=6), st.text("abc", max_size=3), st.floats(0.1, 0.9))
def test_the_first_images_are_a_random_sample_of_the_classes(counts, salt, share):
    """That makes 'train[:25021]' a fair minival: Hoeffding's bound, which holds without replacement, at 1e-9."""
    rows = [
        (f"{salt}{label}_{number}.JPEG", str(label), ImageLocation("", ""))
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    _, index = make_index(Path("/"), {"train": rows})
    images = index["train"]
    order = shards.shuffled(images, "train")
    assert sorted(order) == list(range(len(rows)))
    first = order[: int(share * len(rows))]
    found = np.bincount(images.labels[first], minlength=len(counts)) / len(first)
    bound = np.sqrt(np.log(2e9) / (2 * len(first)))
    assert np.abs(found - np.array(counts) / len(rows)).max() < bound


def test_the_order_of_images_stays_when_others_are_added():
    def order(names):
        _, index = make_index(Path("/"), {"train": [(name, "x", ImageLocation("", "")) for name in names]})
        return [index["train"].name(row) for row in shards.shuffled(index["train"], "train")]

    some, more = order(map(str, range(50))), order(map(str, range(80)))
    assert [name for name in more if name in some] == some
