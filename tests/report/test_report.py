"""The page of runs: what it shows of complete and damaged workdirs, and how it looks in a browser."""

import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from effv2_jax.config import to_dict
from effv2_jax.data.sources.folder import Folder
from effv2_jax.monitoring.description import CONFIG_FILE
from effv2_jax.monitoring.metrics import METRICS_FILE, read_metrics
from effv2_jax.report import misclassified, page
from effv2_jax.report.charts import thin
from effv2_jax.report.confusion import Predictions, one_label, predict_run
from effv2_jax.runtime.lock import exclusive
from effv2_jax.train import train

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ALONE = ("meta", "br", "img", "path", "use")  # elements without an end tag


class Page(html.parser.HTMLParser):
    """Text and attributes of a page; fails if an element ends that was not started."""

    def __init__(self, path):
        super().__init__()
        self.source = pathlib.Path(path).read_text(encoding="utf-8")
        self.open, self.tags, self.addresses, self.text = [], [], [], ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data")]
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in ALONE:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data + " "

    def has(self, words):
        return words in re.sub(r"\s+", " ", self.text)


def files_of(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps in 2 stages, 16 and 32 px, on the digits."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_config(curriculum__num_stages=2), workdir)
    return workdir


@pytest.fixture(scope="module")
def finished_page(finished):
    """The path of the whole page of `finished`."""
    path = finished.with_name("tiny.html")
    page.write_report([finished], path, confusion=True, log=lambda line: None)
    return path


@pytest.fixture
def report(effv2, tmp_path):
    """Runs `effv2 report`, which must not change the workdirs, and returns the page."""

    def make(*workdirs, options=()):
        before = [files_of(pathlib.Path(workdir)) for workdir in workdirs]
        code, out, err = effv2("report", *workdirs, f"--out={tmp_path / 'report.html'}", *options)
        assert code == 0, err
        assert f"{tmp_path / 'report.html'}\n" in out
        assert [files_of(pathlib.Path(workdir)) for workdir in workdirs] == before
        return Page(tmp_path / "report.html")

    return make


def test_a_finished_run(finished, finished_page):
    shown = Page(finished_page)
    last = [r for r in read_metrics(finished / METRICS_FILE) if "evaluation/ema_top1" in r][-1]
    right = round(last["evaluation/ema_top1"] * 355)
    assert shown.has("tiny") and shown.has(str(finished))
    assert shown.has(f"final top-1 {right / 355:.2%}") and shown.has("Averaged weights of step ")
    assert shown.has("state finished 8 steps")
    assert shown.has("images seen 128") and shown.has("network efficientnetv2-s with custom blocks")
    assert shown.has("64 px") is False and shown.has("16 px") and shown.has("32 px")
    for title in ("loss", "top-1 (%)", "learning rate", "image size (px)", "images per second, all devices"):
        assert shown.has(title)
    assert shown.has("start") and shown.has("compile")
    assert shown.tags.count("svg") == 8
    assert shown.has("model.variant") is False and shown.has("global_batch_size 16 4096")


def test_the_page_is_self_contained(finished_page):
    shown = Page(finished_page)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", shown.source)
    assert all(address.startswith(("data:image/", "#")) for address in shown.addresses)
    assert "script" not in shown.tags and "link" not in shown.tags


def test_the_interval_is_wilsons(report, finished, tmp_path):
    workdir = tmp_path / "known"
    workdir.mkdir()
    record = {"step": 5, "evaluation/ema_top1": 0.5, "evaluation/ema_count": 100.0, "evaluation/raw_top1": 0.9}
    (workdir / METRICS_FILE).write_text(json.dumps(record) + "\n")
    # Newcombe 1998, method 3: 50 of 100.
    assert report(workdir).has("50.00% 95 % interval 40.4% to 59.6% (100 examples), step 5")


def test_its_predictions_are_those_of_the_evaluation(finished):
    predictions = predict_run(epath.Path(finished), log=lambda line: None)
    shares = {r["step"]: r["evaluation/ema_top1"] for r in read_metrics(finished / METRICS_FILE) if len(r) == 9}
    assert len(shares) == 2 and len(predictions.labels) == 355
    assert predictions.num_correct / 355 == pytest.approx(shares[predictions.step])
    assert shares[predictions.step] == max(shares.values())
    np.testing.assert_array_equal(np.bincount(predictions.labels), [35, 36, 35, 36, 36, 36, 36, 35, 34, 36])


class Squares:
    """A source of grey squares."""

    class_names = ("a", "b", "c", "d")

    def __len__(self):
        return 10

    def describe(self, index):
        return f"square {index}"


def predictions_of(labels, predicted, probability):
    arrays = (np.array(labels), np.array(predicted), np.array(probability))
    return Predictions(1, "weights", Squares.class_names, Squares(), 10 + np.arange(len(labels)), *arrays)


def test_of_several_labels_the_predicted_one_counts():
    several, predicted = np.array([[4, 7, -1], [4, 7, -1], [2, -1, -1]]), np.array([7, 3, 0])
    np.testing.assert_array_equal(one_label(several, predicted), [7, 4, 2])
    np.testing.assert_array_equal(one_label(several[:, 0], predicted), [4, 4, 2])


def test_confusion_by_hand():
    p = predictions_of([0, 0, 0, 1, 1, 2, 2, 3], [0, 1, 1, 0, 1, 3, 2, 3], [0.9, 0.5, 0.7, 0.6, 0.9, 0.4, 0.9, 0.9])
    assert p.num_correct == 4
    assert p.pairs() == [((0, 1), 2), ((1, 0), 1), ((2, 3), 1)]
    assert p.confused((0, 1)) == [2, 1]  # the most confident first
    assert p.most_confused(4) == [0, 1, 2, 3] and p.most_confused(2) == [0, 1]
    np.testing.assert_array_equal(p.matrix([0, 1]), [[1, 2, 0], [1, 1, 0]])
    np.testing.assert_array_equal(p.matrix([0, 2]), [[1, 0, 2], [0, 1, 1]])  # the last column: any other


def only_config(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / METRICS_FILE).unlink()


def torn_config(workdir):
    (workdir / CONFIG_FILE).write_text("")


def torn_everything(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / CONFIG_FILE).write_text('{"model"')
    (workdir / METRICS_FILE).write_text('{"step": 1, "train/lo')


def metrics_are_a_folder(workdir):
    (workdir / METRICS_FILE).unlink()
    (workdir / METRICS_FILE).mkdir()


def no_metrics(workdir):
    (workdir / METRICS_FILE).unlink()


def half_a_line(workdir):
    lines = (workdir / METRICS_FILE).read_text().splitlines()
    (workdir / METRICS_FILE).write_text("\n".join([*lines[:4], lines[4][:20]]))


def no_evaluation(workdir):
    shutil.rmtree(workdir / "checkpoints")
    records = [r for r in read_metrics(workdir / METRICS_FILE) if not any("evaluation" in name for name in r)]
    (workdir / METRICS_FILE).write_text("".join(json.dumps(r) + "\n" for r in records if r["step"] < 4))


def damaged_checkpoints(workdir):
    for path in (workdir / "checkpoints").glob("*/state/**/d/*"):
        path.write_bytes(b"damaged")


def unreadable_checkpoints(workdir):
    for path in (workdir / "checkpoints").glob("*/run/*"):
        path.unlink()


def other_version(workdir):
    config = json.loads((workdir / CONFIG_FILE).read_text()) | {"strange": 1}
    (workdir / CONFIG_FILE).write_text(json.dumps(config))
    shutil.rmtree(workdir / "checkpoints")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (only_config, ["no step recorded yet", "No metrics yet.", "Left out: there is no checkpoint yet."]),
        (torn_config, ["config.json cannot be read.", "finished 8 steps", "efficientnetv2-s", "Left out"]),
        (torn_everything, ["network unknown", "No metrics yet.", "The stages are not known"]),
        (no_metrics, ["finished 8 steps", "final top-1", "examples), step ", "Left out"]),
        (metrics_are_a_folder, ["metrics.jsonl cannot be read.", "finished 8 steps", "Left out"]),
        (half_a_line, ["finished 8 steps", "examples), step ", "images correct"]),
        (no_evaluation, ["at step 3 of 8 last record 20", "not evaluated yet", "there is no checkpoint yet", "32 px"]),
        (damaged_checkpoints, ["finished 8 steps", "Left out: checkpoint 8 is damaged:"]),
        (unreadable_checkpoints, ["The newest checkpoint cannot be read", "images seen 128", "Left out:"]),
        (other_version, ["the saved config is another version's: unknown fields [strange]", "images seen 128"]),
    ],
)
def test_missing_parts_are_reported_and_the_rest_is_shown(report, finished, tmp_path, change, words):
    workdir = tmp_path / "tiny"
    shutil.copytree(finished, workdir)
    change(workdir)
    shown = report(workdir, options=["--no_confusion"] if words[-1] == "Left out" else [])
    for sentence in words:
        assert shown.has(sentence), shown.text


def test_a_run_in_progress_can_be_read(report, finished):
    with exclusive(finished):
        assert report(finished, options=["--no_confusion"]).has("Left out by --no_confusion.")


def test_several_runs(report, finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    config = json.loads((other / CONFIG_FILE).read_text()) | {"seed": 7, "global_batch_size": 32}
    (other / CONFIG_FILE).write_text(json.dumps(config))
    shown = report(finished, other, options=["--no_confusion"])
    assert shown.has("tiny, other") and shown.has("global_batch_size 16 32 seed 0 7 ")
    assert not shown.has("optimizer.momentum")  # the same
    assert shown.has("images seen 128 256")
    assert shown.source.count("averaged weights: points on a line") == 1
    assert shown.tags.count("svg") == 8
    assert shown.text.count(" images ") >= 8  # below every chart: steps with different batch sizes are not comparable


def test_runs_with_equal_names_are_named_by_their_paths(report, finished, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name / "run")
    shown = report(tmp_path / "a" / "run", tmp_path / "b" / "run", options=["--no_confusion"])
    assert shown.source.count(f"<h3>{tmp_path / 'b' / 'run'}</h3>") == 2  # in the sections Stages and Time
    assert shown.has("Differences between the configs None.")


def test_a_long_run_is_thinned(report, tmp_path):
    workdir = tmp_path / "long"
    workdir.mkdir()
    records = [{"step": step, "train/loss": 1 + 1 / step, "train/learning_rate": 0.1} for step in range(1, 20001)]
    for record in records[::40]:
        record |= {"evaluation/raw_top1": 0.5, "evaluation/raw_count": 10, "evaluation/raw_loss": 1.0}
    (workdir / METRICS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    (workdir / CONFIG_FILE).write_text(json.dumps(to_dict(tiny_config(total_steps=40000))))
    shown = report(workdir)
    assert shown.has("at step 20,000 of 40,000")
    assert len(shown.source) < 300_000 and len(shown.tags) < 3000


@given(st.lists(st.floats(-1e6, 1e6), max_size=900), st.integers(4, 300))
def test_thinning_keeps_ends_and_extremes(values, most):
    points = list(enumerate(values))
    kept = thin(points, most)
    assert len(kept) <= most and kept == sorted(set(kept)) and set(kept) <= set(points)
    if values:
        assert kept[0] == points[0] and kept[-1] == points[-1]
        assert {max(v for _, v in kept), min(v for _, v in kept)} == {max(values), min(values)}


NASTY = "<b>R&D \"$x\" 'é'"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A run on a folder whose class names contain HTML and whose file names are not UTF-8."""
    folder = tmp_path_factory.mktemp("photos") / "PHOTOS"
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 4)):
        for name in (NASTY, "rose"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                _, data = cv2.imencode(".png", rng.integers(0, 256, (300, 200, 3), np.uint8))
                path = os.fsencode(folder / split / name) + b"/<i>\xff" + str(number).encode() + b".png"
                with open(path, "wb") as file:
                    file.write(data.tobytes())
    config = tiny_config(curriculum__num_stages=1, total_steps=2, evaluate_steps=2, evaluation__batch_size=8)
    config.data.source, config.data.name = "folder", str(folder)
    workdir = folder.parent / "<u>run"
    train(config, workdir)
    return workdir, folder


def test_names_are_escaped(report, nasty):
    workdir, folder = nasty
    shown = report(workdir)
    assert "u" not in shown.tags and "<i>" not in shown.source and "<b>R" not in shown.source
    assert shown.has("<u>run") and shown.has(NASTY)
    assert shown.has(r"<i>\udcff") and shown.has("% confident")
    thumbnails = [address for address in shown.addresses if address.startswith("data:image/jpeg")]
    assert 1 <= len(thumbnails) <= 5
    assert shown.has(f"folder {folder}, evaluated on validation")


def test_changed_or_missing_data_are_reported(report, nasty, tmp_path):
    workdir, folder = nasty
    more = next((folder / "validation" / "rose").iterdir())
    copy = more.with_name("more.png")
    shutil.copy(more, copy)
    assert report(workdir).has("Left out: the evaluation data are not those of the run: 8 images in 2 folders")
    copy.unlink()
    folder.rename(folder.with_name("ELSEWHERE"))
    try:
        assert report(workdir).has(f"Left out: config.data.name='{folder}' is not a folder of images.")
    finally:
        folder.with_name("ELSEWHERE").rename(folder)


def test_images_that_cannot_be_read_are_counted(report, nasty):
    workdir, folder = nasty
    path = next((folder / "validation" / "rose").iterdir())
    whole = path.read_bytes()
    path.write_bytes(b"broken")
    try:
        shown = report(workdir)
        assert shown.has("of 7 evaluation images correct") and shown.has("; not read: 1.")
    finally:
        path.write_bytes(whole)


def test_a_picture_that_vanished_is_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "1.png"), np.zeros((4, 4, 3), np.uint8))
    source = Folder(str(tmp_path), ["a/0.png", "a/1.png"], [0, 0], ("a", "b"))
    p = Predictions(1, "weights", ("a", "b"), source, np.arange(2), np.array([0, 0]), np.array([1, 1]), np.ones(2))
    shown = misclassified._pair(p, (0, 1), 2)
    assert "a classified as b: 2 of 2" in shown and shown.count("<img") == 1 and "1.png" in shown


@pytest.mark.parametrize("out", ["absent/report.html", "."])
def test_a_page_that_cannot_be_written_is_one_sentence(effv2, finished, tmp_path, out):
    code, _, err = effv2("report", finished, f"--out={tmp_path / out}")
    assert code == 2 and "cannot be written" in err and err.count("\n") == 1


def test_a_folder_without_a_run_is_one_sentence(effv2, finished, tmp_path):
    code, _, err = effv2("report", finished, tmp_path / "none", f"--out={tmp_path / 'report.html'}")
    assert code == 2 and f"'{tmp_path / 'none'}' holds no training run" in err
    assert not (tmp_path / "report.html").exists()


def test_a_workdir_in_a_bucket(effv2, finished, tmp_path):
    @epath.register_path_cls("store://")
    class Store(pathlib.PurePosixPath):
        """A path with a scheme, as etils has for gs://; its files are those of `finished`."""

        def _file(self):
            return finished.parent / pathlib.Path(*self.parts[2:])

        def expanduser(self):
            return self

        resolve = expanduser

        def exists(self):
            return self._file().exists() and self.name != "checkpoints"  # Orbax reads these by itself

        def read_text(self):
            return self._file().read_text()

        def read_bytes(self):
            return self._file().read_bytes()

        def stat(self):
            return self._file().stat()

    code, _, err = effv2("report", "store://bucket/tiny", f"--out={tmp_path / 'report.html'}")
    assert code == 0, err
    shown = Page(tmp_path / "report.html")
    assert shown.has("state finished 8 steps") and shown.has("Left out: there is no checkpoint yet.")


def test_a_browser_shows_it(finished_page, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    picture = tmp_path / "screen.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,2400"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    subprocess.run([*command, f"file://{finished_page}"], check=True, capture_output=True, timeout=120)
    image = cv2.imread(str(picture))
    assert image.shape == (2400, 1280, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    blue = (np.abs(image.astype(int) - (0xF6, 0x82, 0x3B)).sum(2) < 30).sum()  # the averaged weights' curves, in BGR
    assert blue > 100
    charts = image[400:1200]  # lines and letters everywhere, but sparse
    assert all(0.005 < (part < 200).any(2).mean() < 0.5 for part in np.array_split(charts, 4))
