"""What may change between two starts of a run, and what is an error that lists every difference."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squares import Squares
from tiny import tiny_config

from effv2_jax.checkpoints.resume import CHANGEABLE_FIELDS, check_conflicts, identity_of, resume_curriculum
from effv2_jax.config import flatten, to_dict
from effv2_jax.curriculum import make_curriculum
from effv2_jax.data.source import Sources
from effv2_jax.errors import UserError

SOURCES = Sources(Squares(1442), Squares(355))
quick = settings(max_examples=50, deadline=None)


def run_of(config, step=3):
    """A checkpoint's record, as it comes back from JSON."""
    curriculum = make_curriculum(config, 1442)
    return json.loads(json.dumps({"step": step} | identity_of(config, curriculum, SOURCES)))


def going_on(run, config, sources=SOURCES):
    return resume_curriculum(run, config, make_curriculum(config, len(sources.train)), sources)


def ends(curriculum):
    return [stage.end_step for stage in curriculum.stages]


def test_the_same_config_goes_on():
    curriculum, faults = going_on(run_of(tiny_config()), tiny_config())
    assert curriculum == make_curriculum(tiny_config(), 1442) and not faults


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log_steps", 5),
        ("evaluate_steps", 1),
        ("checkpoint_steps", 8),
        ("checkpoint__keep_last", 7),
        ("compilation__background", False),
        ("evaluation__batch_size", 64),
        ("model__lowering", "native"),
        ("data__data_dir", "elsewhere"),
        ("data__num_examples", 1442),
        ("data__max_labels", 4),
        ("data__num_workers", 2),
        ("data__num_threads", 3),
        ("data__prefetch_batches", 9),
        ("data__skip_broken", False),
    ],
)
def test_how_a_run_is_carried_out_may_change(field, value):
    assert going_on(run_of(tiny_config()), tiny_config(**{field: value}))[1] == []


def test_every_rule_names_a_field():
    names = flatten(to_dict(tiny_config()))
    for pattern in CHANGEABLE_FIELDS:
        assert any(name.startswith(pattern.rstrip("*")) for name in names), pattern


def test_another_run_is_one_error_with_all_differences():
    config = tiny_config(
        seed=1, model__variant="efficientnetv2-m", optimizer__momentum=0.5, global_batch_size=32, ema__decay=0.0
    )
    _, faults = going_on(run_of(tiny_config()), config, Sources(Squares(1443), Squares(355)))
    with pytest.raises(UserError) as error:
        check_conflicts(faults, "runs/x", 3)
    message = str(error.value)
    for words in (
        "cannot resume the run in 'runs/x' (step 3)",
        "config.seed: 0 -> 1",
        "config.model.variant: 'efficientnetv2-s' -> 'efficientnetv2-m'",
        "config.optimizer.momentum: 0.9 -> 0.5",
        "config.global_batch_size: 16 -> 32",
        "config.ema.decay: 0.9999 -> 0.0",
        "training data: 1442 squares -> 1443 squares",
        "--force",
    ):
        assert words in message
    assert "evaluation data" not in message
    assert len(faults) == 6


def test_an_older_record_lacks_fields_that_have_their_defaults():
    run = run_of(tiny_config())
    del run["config"]["data"]["scaled_decoding"]
    assert going_on(run, tiny_config())[1] == []
    changed = tiny_config(data__scaled_decoding=True)
    assert going_on(run, changed)[1] == ["config.data.scaled_decoding: False -> True"]
    run["config"]["data"]["from_the_future"] = 1
    assert going_on(run, tiny_config())[1] == ["config.data.from_the_future: 1 -> 'not set'"]


def test_a_folder_may_move_but_not_change():
    config, moved = tiny_config(data__source="folder", data__name="a"), tiny_config(data__source="folder")
    moved.data.name = "b"
    assert going_on(run_of(config), moved)[1] == []
    named = tiny_config(data__source="tfds", data__name="a"), tiny_config(data__source="tfds", data__name="b")
    assert going_on(run_of(named[0]), named[1])[1] == ["config.data.name: 'a' -> 'b'"]


def test_stages_to_come_may_change_and_trained_ones_may_not():
    run = run_of(tiny_config(), step=5)  # two steps each: the third stage has begun
    trained = [stage.dropout_rate for stage in make_curriculum(tiny_config(), 1442).stages[:3]]
    to_come = tiny_config(curriculum__listed__dropout_rate=(*trained, 0.9))
    to_come.curriculum.listed.accumulation_steps = (1, 1, 2, 2)  # how, not what
    curriculum, faults = going_on(run, to_come)
    assert curriculum.stages[3].dropout_rate == 0.9 and curriculum.stages[2].accumulation_steps == 2
    assert not faults
    otherwise = tiny_config(curriculum__listed__image_size=(16, 24, 24, 32), curriculum__mixup_alpha=(0.0, 0.6))
    _, faults = going_on(run, otherwise)
    assert faults == [
        "image_size of steps 2 to 3: 16 -> 24",
        "mixup_alpha of steps 2 to 3: 0.06666666666666667 -> 0.2",
        "image_size of steps 4 to 4: 32 -> 24",
        "mixup_alpha of steps 4 to 4: 0.13333333333333333 -> 0.4",
    ]


def test_a_longer_run_lengthens_the_last_stage_and_says_so_again_the_next_time():
    longer = tiny_config(total_steps=20)
    curriculum, faults = going_on(run_of(tiny_config(), step=8), longer)
    assert ends(curriculum) == [2, 4, 6, 20] and curriculum.total_steps == 20 and not faults
    saved = json.loads(json.dumps({"step": 9} | identity_of(longer, curriculum, SOURCES)))
    assert going_on(saved, longer) == (curriculum, [])


def test_a_longer_run_that_has_not_left_its_first_stage_takes_its_new_stages():
    curriculum, faults = going_on(run_of(tiny_config(), step=2), tiny_config(total_steps=20))
    assert ends(curriculum) == [5, 10, 15, 20] and not faults


def test_a_shorter_run_is_an_error():
    _, faults = going_on(run_of(tiny_config(), step=2), tiny_config(total_steps=4))
    assert faults == ["length: 8 -> 4 steps; it may only grow"]


@quick
@given(
    total=st.integers(4, 60),
    more=st.integers(0, 60),
    stages=st.integers(1, 4),
    share=st.floats(0, 1),
    again=st.booleans(),
)
def test_the_steps_already_trained_keep_their_stage_whatever_the_extension(total, more, stages, share, again):
    config = tiny_config(total_steps=total, curriculum__num_stages=stages)
    step = round(share * total)
    before = make_curriculum(config, 1442)
    longer = tiny_config(total_steps=total + more, curriculum__num_stages=stages)
    after, faults = going_on(run_of(config, step), longer)
    assert not faults and after.total_steps == total + more
    if again:  # the record of the longer run is one to go on with, too
        saved = json.loads(json.dumps({"step": step} | identity_of(longer, after, SOURCES)))
        assert going_on(saved, longer) == (after, [])
    for trained in range(step):
        old, new = before.stage_at(trained), after.stage_at(trained)
        assert (old.index, old.image_size, old.mixup_alpha) == (new.index, new.image_size, new.mixup_alpha)
    assert [stage.start_step for stage in after.stages] == [0, *ends(after)[:-1]]
