"""Interrupted, repeated and concurrent preparations, killed workers and full disks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ilsvrc
import isolated_work
import psutil
import pytest
from launching import ROOT
from prepared_data import interrupted_after, prepared_folder, read_back, sums, write_cats_and_dogs

from effv2_jax.config import defaults
from effv2_jax.data.preparation import image_index, prepare, shards
from effv2_jax.data.preparation.prepare import Settings, prepare_folder, prepare_imagenet
from effv2_jax.data.sources import make_sources
from effv2_jax.errors import Unavailable, UserError
from effv2_jax.runtime import lock


def test_a_rerun_skips_finished_shards_and_gives_the_same_files(tars, tmp_path, several_shards, monkeypatch):
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "undisturbed")
    folder = prepared_folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    there = {path.name: path.stat().st_ino for path in folder.glob("*.array_record*")}
    assert len(there) == 3
    config = defaults()
    config.data.data_dir = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"'imagenet2012' is not prepared in .*effv2 data prepare imagenet --source"):
        make_sources(config)
    # A shard cut short by a lost disk, and rubbish of a process that was killed.
    cut = folder / sorted(there)[0]
    cut.write_bytes(cut.read_bytes()[:-1])
    (folder / ".imagenet2012-train.array_record-00004-of-00005.1.part").write_bytes(b"rubbish")
    with monkeypatch.context() as patch:
        calls = interrupted_after(100, patch)
        patch.setattr(image_index, "tar_members", lambda path: pytest.fail("the headers were read again"))
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    assert len(calls) == 7 - 2 and cut.name in calls
    assert all((folder / name).stat().st_ino == there[name] for name in there if name != cut.name)
    assert sums(folder) == sums(prepared_folder(tmp_path / "undisturbed"))
    with monkeypatch.context() as patch:
        calls = interrupted_after(0, patch)
        result = prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    assert not calls and result.examples["train"] == 23 and "already prepared" in result.notes[0]


def test_strict_rejects_a_shard_that_lacks_an_image(tars, tmp_path, several_shards, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(6, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    with pytest.raises(UserError, match=rf"'{ilsvrc.BROKEN}' is broken"):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out", Settings(strict=True))


def test_strict_rejects_a_finished_data_set_that_lacks_an_image(tars, tmp_path):
    result = prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    with pytest.raises(UserError, match=rf"without --strict, and images were left out: {ilsvrc.BROKEN}; repair them"):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out", Settings(strict=True))
    assert prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out").left_out == result.left_out
    write_cats_and_dogs(tmp_path / "pets")
    for strict in (False, True):
        assert not prepare_folder(tmp_path / "pets", tmp_path / "out", settings=Settings(strict=strict)).left_out


def test_a_finished_data_set_of_another_source_is_an_error(tmp_path):
    for name in ("a", "b"):
        write_cats_and_dogs(tmp_path / name)
    prepare_folder(tmp_path / "a", tmp_path / "out", "pets")
    before = sums(tmp_path / "out" / "pets" / "1.0.0")
    with pytest.raises(UserError, match=r"was prepared from '.*/a', not from '.*/b'; use it as it is, or to "):
        prepare_folder(tmp_path / "b", tmp_path / "out", "pets")
    assert (
        prepare_folder(tmp_path / "b" / ".." / "a", tmp_path / "out", "pets")
        .notes[0]
        .startswith("it is already prepared")
    )
    assert sums(tmp_path / "out" / "pets" / "1.0.0") == before


def test_a_repaired_image_is_used_after_an_interruption(tmp_path, several_shards, monkeypatch):
    ilsvrc.write_tree(tmp_path / "tree", by_class=False)
    with monkeypatch.context() as patch:
        calls = interrupted_after(6, patch)  # of seven; the broken one is of train, whose five are written first
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.facts(), tmp_path / "tree", tmp_path / "out")
    assert sum("train" in name for name in calls) == 5
    mended = ilsvrc.encoded(ilsvrc.photo(102))
    (tmp_path / "tree" / "train" / ilsvrc.BROKEN[:9] / ilsvrc.BROKEN).write_bytes(mended)
    with monkeypatch.context() as patch:
        calls = interrupted_after(100, patch)
        result = prepare_imagenet(ilsvrc.facts(), tmp_path / "tree", tmp_path / "out")
    assert len(calls) == 2 and result.examples["train"] == 24 and not result.left_out
    assert read_back(Path(result.folder), "train")[ilsvrc.BROKEN] == (mended, ilsvrc.BROKEN[:9])


def test_another_source_is_indexed_again(tars, tmp_path, several_shards, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    os.utime(tars / ilsvrc.TRAIN, (1, 1))
    seen = []
    true = image_index.tar_members
    monkeypatch.setattr(image_index, "tar_members", lambda path: seen.append(path) or true(path))
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    assert len(seen) == 2


@pytest.mark.parametrize("added", ["dog/3.jpg", "bird/deep.tar", "loose.tar"])
def test_an_image_added_after_an_interruption_is_used(tmp_path, several_shards, monkeypatch, added):
    source = tmp_path / "pets"
    write_cats_and_dogs(tmp_path, ("pets",))
    (source / "bird").mkdir()
    for path in (source / "cat.tar", source / "bird" / "first.tar"):
        path.write_bytes(ilsvrc.tar_of({f"{path.stem}.png": ilsvrc.encoded(ilsvrc.photo(50), "PNG")}))
    with monkeypatch.context() as patch:
        interrupted_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare_folder(source, tmp_path / "out")
    new = ilsvrc.encoded(ilsvrc.photo(60), "PNG")
    (source / added).write_bytes(ilsvrc.tar_of({"new.png": new}) if added.endswith(".tar") else new)
    result = prepare_folder(source, tmp_path / "out")
    assert result.examples == {"train": 9} and result.classes == (4 if added == "loose.tar" else 3)


DRIVER = """
import sys
import ilsvrc
from effv2_jax.data.preparation import shards
from effv2_jax.data.preparation.prepare import Settings, prepare_imagenet
if __name__ == "__main__":
    shards.IMAGES_PER_SHARD = 1
    prepare_imagenet(ilsvrc.facts(), sys.argv[1], sys.argv[2], Settings(workers=int(sys.argv[3])))
"""


@pytest.mark.slow
def test_killed_with_its_workers_it_resumes_to_the_same_files(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 1)
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "undisturbed")
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    folder = prepared_folder(tmp_path / "out")

    def start(workers):
        command = [sys.executable, str(driver), str(tars), str(tmp_path / "out"), str(workers)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    first = start(2)
    end = time.monotonic() + 60
    while not list(folder.glob("imagenet2012-*")) and first.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    workers = psutil.Process(first.pid).children(recursive=True)
    assert workers, "it was done before it could be killed"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not psutil.wait_procs(workers, timeout=60)[1]
    second = start(3)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert sums(folder) == sums(prepared_folder(tmp_path / "undisturbed"))


def test_a_killed_worker_is_reported_in_one_sentence(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "write_shard", isolated_work.die)
    with pytest.raises(Unavailable, match=r"a worker process was killed, .*run the same command again to resume"):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out", Settings(workers=1))


def test_stale_shards_are_removed(tars, tmp_path, several_shards, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_after(7, patch)
        patch.setattr(prepare, "_write_metadata", lambda *_: pytest.fail("not interrupted"))
        patch.setattr(shards, "IMAGES_PER_SHARD", 4)  # as if there were other images
        with pytest.raises(KeyboardInterrupt):
            prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "other")
    assert sums(prepared_folder(tmp_path / "out")) == sums(prepared_folder(tmp_path / "other"))


def test_a_second_preparation_at_the_same_time_is_refused(tars, tmp_path):
    with (
        lock.exclusive(prepared_folder(tmp_path / "out")),
        pytest.raises(Unavailable, match=r"another process prepares '.*5\.1\.0'"),
    ):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")


def test_a_data_set_of_other_software_is_not_changed(tars, tmp_path):
    folder = prepared_folder(tmp_path / "out")
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"contains a data set that this command did not create"):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
    assert (folder / "dataset_info.json").read_text() == "{}"


def test_a_full_disk_is_reported_in_one_sentence(tars, tmp_path, monkeypatch):
    from array_record.python import array_record_module

    class Full:
        def __init__(self, path, options):
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Full)
    with pytest.raises(UserError, match=r"the data set in '.*5\.1\.0' cannot be written: .*No space left"):
        prepare_imagenet(ilsvrc.facts(), tars, tmp_path / "out")
