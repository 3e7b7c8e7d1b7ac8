"""Weights & Biases beside the metrics of the workdir: offline, across a restart, and where it fails."""

import importlib.util
import json
import struct

import pytest
from tiny import tiny_config

from effv2_jax.monitoring import wandb_writer
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.train import train

BLOCK = 2**15  # of the log that W&B keeps: LevelDB's format


def short(total_steps):
    return tiny_config(curriculum__num_stages=1, curriculum__image_size=(16, 16), total_steps=total_steps, log_steps=2)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("needs wandb: make peers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def read_log(path):
    """The records of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, part = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position < len(data):
        if (left := BLOCK - position % BLOCK) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole, or its end
            yield Record.FromString(part)
            part = b""


def history(records):
    """{step: {metric: value}} without W&B's own."""
    rows = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            rows[record.history.step.num] = {name: v for name, v in values.items() if not name.startswith("_")}
    return rows


def test_a_run_and_the_rest_of_it_have_one_id_and_all_metrics(offline, tmp_path):
    workdir = tmp_path / "first"
    train(short(4), workdir, wandb_project="flowers")
    train(short(6), workdir, wandb_project="flowers")
    logs = sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))
    records = [list(read_log(path)) for path in logs]
    heads = [next(r.run for r in part if r.WhichOneof("record_type") == "run") for part in records]
    known = (workdir / wandb_writer.ID_FILE).read_text()
    assert [head.run_id for head in heads] == [known, known]
    assert {head.project for head in heads} == {"flowers"} and {head.display_name for head in heads} == {"first"}
    config = {update.key: json.loads(update.value_json) for update in heads[1].config.update}
    assert config["total_steps"] == 6 and config["optimizer"]["name"] == "rmsprop"
    expected: dict = {}
    for record in read_metrics(workdir / METRICS_FILE):
        expected.setdefault(record["step"], {}).update({k: v for k, v in record.items() if k != "step"})
    rows = [history(part) for part in records]
    assert rows[0].keys() | rows[1].keys() == expected.keys() == {0, 2, 4, 6}
    for step in (2, 6):
        found = (rows[0] | rows[1])[step]
        assert found == pytest.approx(expected[step])


def test_a_step_that_it_has_is_not_sent_again(monkeypatch, tmp_path):
    sent = []

    class Run:
        step = 4

        def log(self, scalars, step):
            sent.append(step)

        def finish(self):
            sent.append("finished")

    def begin(self, *_):
        self._run, self._first_step = Run(), Run.step

    monkeypatch.setattr(wandb_writer.WandbWriter, "_begin", begin)
    writer = wandb_writer.WandbWriter(tmp_path, tiny_config(), "")
    for step in (2, 4, 4, 6):
        writer.write_scalars(step, {"train/loss": 1.0})
    writer.flush()
    writer.close()
    assert sent == [4, 4, 6, "finished"]


@pytest.mark.parametrize("moment", ["_begin", "write_scalars"])
def test_a_failure_stops_no_training_and_is_told_once(monkeypatch, tmp_path, capsys, moment):
    class Run:
        def log(self, scalars, step):
            raise ConnectionError("the network\nis gone")

    def begin(self, workdir, config, project):
        if moment == "_begin":
            raise ConnectionError("the network\nis gone")
        self._run = Run()

    monkeypatch.setattr(wandb_writer.WandbWriter, "_begin", begin)
    results = train(short(4), tmp_path, wandb_project="")
    assert results["raw"]["count"] == 355
    warning = "WARNING: Weights & Biases failed, the training continues without it: the network is gone\n"
    assert capsys.readouterr().out.count(warning) == 1
    assert [record["step"] for record in read_metrics(tmp_path / METRICS_FILE)][-1] == 4


def test_without_the_package_it_is_a_sentence(effv2, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = effv2("train", "--config=configs/digits.py", f"--workdir={tmp_path / 'w'}", "--wandb")
    assert code == 2 and "--wandb needs wandb: pip install 'effv2_jax[wandb]'" in err
    assert not (tmp_path / "w").exists()


def test_the_command_line_names_the_project(effv2, monkeypatch, tmp_path):
    projects = []
    monkeypatch.setattr("effv2_jax.train.train", lambda *_, wandb_project, **__: projects.append(wandb_project))
    monkeypatch.setattr(wandb_writer, "check_installed", lambda: None)
    for argument in ([], ["--wandb"], ["--wandb=flowers"]):
        effv2("train", "--config=configs/digits.py", f"--workdir={tmp_path}", *argument)
    assert projects == [None, "", "flowers"]
