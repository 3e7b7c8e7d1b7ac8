"""`effv2 VERB`: the command line, its arguments and the config; what a verb does is in `verbs`."""

import argparse
import difflib
import errno
import os
import re
import signal
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from typing import Any

from effv2_jax.cli import commands as verbs
from effv2_jax.config import UNITS, flat_lines
from effv2_jax.config.validate import check_ranges
from effv2_jax.errors import EXIT_MISTAKE, EXIT_PREEMPTED, EXIT_UNAVAILABLE, Preempted, Unavailable, UserError, one_line
from effv2_jax.files import check_bucket_support
from effv2_jax.runtime.memory import use_huge_pages

SHUTDOWN_TIMEOUT = 20.0  # seconds that a process which leaves waits for the others
INTERRUPTED = "effv2: interrupted; a training run goes on from its last checkpoint, a preparation from its last shard"
EXAMPLE = "effv2 train --config=configs/digits.py --workdir=runs/digits --config.seed=1"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, or with one sentence and the exit code of its exception (see `errors`)."""
    try:
        run(sys.argv[1:] if arguments is None else list(arguments))
    except UserError as error:
        print(f"effv2: error: {error}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    except Unavailable as error:
        print(f"effv2: error: {error}", file=sys.stderr)
        sys.exit(EXIT_UNAVAILABLE)
    except Preempted as message:
        print(f"effv2: {message}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except BrokenPipeError:  # `effv2 models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # of a disk that takes no more output, and of what is no path at all
        if error.errno not in (errno.ENAMETOOLONG, errno.ENOSPC):
            raise
        where = f": {str(error.filename)[:100]}..." if error.filename else ""
        print(f"effv2: error: {error.strerror}{where}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def entry() -> None:
    """The command: `main`, and where that fails an end that waits for no thread.

    A compilation in the background, or a write to a disk that takes no more, may go on for minutes.
    """
    use_huge_pages()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
    except SystemExit as end:
        if end.code:
            _leave(int(end.code))
        raise
    except BaseException:
        traceback.print_exc()
        _leave(1)


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    """Ctrl-C: KeyboardInterrupt as ever, but from within an import an end at once, as libraries swallow it there."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, f"{INTERRUPTED}\n".encode())  # a handler may have come in the middle of a print
            os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # Together with the others where they leave too: a process whose peers vanish takes it for a failure.
        threading.Timer(SHUTDOWN_TIMEOUT, os._exit, (code,)).start()
        sys.modules["jax"].distributed.shutdown()
    os._exit(code)


def run(arguments: list[str]) -> None:
    """Parses the arguments and calls the verb."""
    overrides = [argument for argument in arguments if re.match(r"--(no)?config\.", argument)]
    parsed = make_parser().parse_args([argument for argument in arguments if argument not in overrides])
    if overrides and not hasattr(parsed, "config"):
        raise UserError(f"'effv2 {parsed.verb}' takes no config, but {overrides[0]} was given")
    if overrides and not parsed.config:
        raise UserError(f"{overrides[0]} was given without --config")
    if getattr(parsed, "config", None):
        parsed.config = load_config(parsed.config, overrides)
    if any("gs://" in argument for argument in arguments):
        check_bucket_support()
    parsed.call(parsed)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effv2", description="EfficientNetV2 with progressive learning in JAX.", epilog=f"example: {EXAMPLE}"
    )
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, call: Any, text: str, config: bool = False, of: Any = subparsers) -> argparse.ArgumentParser:
        verb = of.add_parser(name, help=text, description=text, allow_abbrev=False)
        verb.set_defaults(call=call)
        if config:
            verb.add_argument(
                "--config",
                required=True,
                metavar="FILE[:ARGUMENT]",
                help="a file such as configs/imagenet.py:s; any field follows as --config.FIELD=VALUE",
            )
        return verb

    train = verb("train", verbs.train, "train, or go on with the training in a workdir", config=True)
    train.add_argument("--workdir", required=True, help="where checkpoints and metrics go; a local path or gs://")
    train.add_argument("--force", action="store_true", help="go on in the workdir though the config is of another run")
    train.add_argument("--wandb", nargs="?", const="", metavar="PROJECT", help="metrics to Weights & Biases as well")
    cluster = train.add_argument_group("several processes")
    cluster.add_argument("--distributed", action="store_true", help="join the processes of a TPU slice or Slurm job")
    cluster.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0, where nothing tells JAX")
    cluster.add_argument("--num_processes", type=int, default=0)
    cluster.add_argument("--process_id", type=int, default=-1)
    cluster.add_argument("--timeout", type=int, default=300, help="seconds to wait for the others at the start")

    evaluate = verb("evaluate", verbs.evaluate, "evaluate a run's checkpoint, or weights on a config's data")
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", default="", help="of a training run, on its own data")
    what.add_argument("--weights", default="", metavar="PATH", help="of any format that convert reads; with --config")
    evaluate.add_argument("--config", default="", metavar="FILE[:ARGUMENT]", help="data and evaluation of --weights")
    evaluate.add_argument("--step", default="latest", help="latest, best, or the number of a kept step")
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    report = verb("report", verbs.report, "one page of HTML on runs, finished or not")
    report.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of training runs, local or gs://")
    report.add_argument("--out", default="report.html", metavar="FILE", help="the page; by default report.html")
    report.add_argument("--no_confusion", action="store_true", help="without predictions on the evaluation data")

    config = verb("config", verbs.config, "print the resolved config", config=True)
    config.add_argument("--json", action="store_true", help="print JSON")

    stages = verb("stages", verbs.stages, "print the stages of a config's curriculum", config=True)
    stages.add_argument("--json", action="store_true", help="print JSON")
    stages.add_argument("--picture", default="", metavar="FILE", help="draw them, as .svg or .png")

    plan = verb("plan", verbs.plan, "compile for TPU slices that need not be there, and estimate", config=True)
    _add_slices(plan)
    plan.add_argument("--price_per_chip_hour", type=float, default=0.0, help="prints what the training would cost")
    plan.add_argument(
        "--images_per_core",
        type=_numbers,
        default=[],
        metavar="N,...",
        help="a second and stage, as bench input measures: prints how many host cores a chip needs",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")

    bench = verb("bench", None, "measure: stages, programs, input, parity with other libraries")
    kinds = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    stalls = verb("stages", verbs.bench_stages, "cold start, and the stall at each boundary", config=True, of=kinds)
    stalls.add_argument("--workdir", default="", help="keep the two runs there; by default they are deleted")
    stalls.add_argument("--json", action="store_true", help="print JSON")
    parity = verb("parity", verbs.bench_parity, "our networks against those of Keras, timm and torchvision", of=kinds)
    parity.add_argument("--variant", nargs="+", default=[], help="by default all that another library has")
    parity.add_argument("--peer", nargs="+", default=[], help="keras, timm, torchvision; by default all")
    parity.add_argument(
        "--size", type=int, default=None, metavar="PIXELS", help="by default each one's for evaluation, in training 64"
    )
    form = parity.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--page", action="store_true", help="print docs/parity.md")

    step = verb("step", verbs.bench_step, "a training step and inference against timm and Keras", of=kinds)
    step.add_argument("--variant", type=_words, default=["b0", "s"], metavar="NAME,...")
    step.add_argument("--image_size", type=_numbers, default=[128], metavar="PIXELS,...")
    step.add_argument("--peer", type=_words, default=["timm", "keras"], metavar="NAME,...")
    step.add_argument("--batch", type=_count, default=16, help="images")
    step.add_argument("--steps", type=_count, default=5, help="of each side in a round")
    step.add_argument("--rounds", type=_count, default=5, help="in which all sides take turns")
    step.add_argument("--json", action="store_true", help="print JSON")
    program = verb("program", verbs.bench_program, "our step on a TPU against plain Flax", config=True, of=kinds)
    _add_slices(program)
    program.add_argument("--json", action="store_true", help="print JSON")
    data = verb("input", verbs.bench_input, "the training input against those of tf.data and torchvision", of=kinds)
    data.add_argument("--folder", required=True, metavar="DIR", help="of images, anywhere below it")
    data.add_argument("--image_size", type=_numbers, default=[128, 300], metavar="PIXELS,...")
    data.add_argument("--workers", type=_numbers, default=[0, 2], metavar="N,...", help="processes of ours; 0: threads")
    data.add_argument("--peer", type=_words, default=["tf.data", "torchvision"], metavar="NAME,...")
    data.add_argument("--batch", type=_count, default=64, help="images in a batch")
    data.add_argument("--batches", type=_count, default=20, help="that each side makes in a round")
    data.add_argument("--rounds", type=_count, default=3, help="in which all sides take turns")
    data.add_argument("--scaled", action="store_true", help="ours with config.data.scaled_decoding")
    data.add_argument("--json", action="store_true", help="print JSON")

    data = verb("data", None, "prepare data sets, and look at them")
    kinds = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    prepare = verb("prepare", verbs.data_prepare, "make a data set of TFDS with random access", of=kinds)
    prepare.add_argument("kind", metavar="NAME", help="imagenet, imagenet21k, folder, or of any data set of TFDS")
    prepare.add_argument("--source", default="", metavar="DIR", help="with the tars or images")
    prepare.add_argument("--out", required=True, metavar="DIR", help="config.data.data_dir; a local path or gs://")
    prepare.add_argument("--name", default="", help="of the data set that a folder becomes; by default the folder's")
    prepare.add_argument("--workers", type=_count, default=None, metavar="N", help="processes; by default one a core")
    prepare.add_argument("--strict", action="store_true", help="stop at a broken image instead of leaving it out")
    prepare.add_argument("--skip_checksums", action="store_true", help="take ImageNet's tars as they are")

    check = verb(
        "check",
        verbs.data_check,
        "count and measure images, find broken ones and duplicates, draw the stages",
        of=kinds,
    )
    check.add_argument("name", nargs="?", default="", metavar="NAME|DIR", help="of TFDS, or a folder of images")
    check.add_argument("--data_dir", default="", metavar="DIR", help="where the data set of that NAME is")
    check.add_argument("--config", default="", metavar="FILE[:ARGUMENT]", help="its two splits; NAME|DIR replaces its")
    check.add_argument("--picture", default="", metavar="FILE.png", help="draw what its stages make of some photos")
    check.add_argument("--photos", type=_count, default=8, metavar="N", help="in a row of the picture")
    check.add_argument("--small", type=_count, default=128, metavar="PIXELS", help="count images with a side below")
    check.add_argument("--near", type=int, default=10, metavar="BITS", help="of 128 that near duplicates differ in")
    check.add_argument("--json", action="store_true", help="print JSON")

    predict = verb("predict", verbs.predict, "name what is on images")
    predict.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|-", help="-: an image or paths on standard input")
    predict.add_argument("--weights", required=True, metavar="PATH", help="of any format that convert reads, or a run")
    predict.add_argument("--top", type=int, default=5, help="classes of each image")
    predict.add_argument("--batch_size", type=int, default=32)
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object a line")
    form.add_argument("--csv", action="store_true", help="print CSV, a row a class")

    convert = verb("convert", verbs.convert, "convert weights: automl, Keras, timm, torchvision, a run; and back")
    convert.add_argument("source", metavar="SRC", help="a file, a TensorFlow checkpoint or a workdir")
    convert.add_argument("destination", metavar="DST", help="NAME.safetensors or (Keras) NAME.weights.h5")
    convert.add_argument("--architecture", default="auto", help="of a foreign SRC; by default recognised")
    convert.add_argument("--format", default="auto", help="of DST: effv2, timm or keras; by default by its ending")
    convert.add_argument("--head", default="keep", choices=["keep", "drop"], help="the classifier")

    export = verb("export", verbs.export, "write the network for other programs, and compare it with JAX")
    export.add_argument("source", metavar="SRC", help="weights of any format that convert reads, or a run")
    export.add_argument("destination", metavar="DST", help="NAME.stablehlo, .onnx, .tflite, or a SavedModel's folder")
    export.add_argument("--architecture", default="auto", help="of a foreign SRC; by default recognised")
    export.add_argument("--output", default="logits", help="logits, probabilities or features")
    export.add_argument(
        "--preprocessing",
        default="include",
        choices=["include", "exclude"],
        help="include: takes uint8 pixels and normalises them; exclude: takes normalised float32",
    )
    export.add_argument("--image_size", type=int, default=None, metavar="PIXELS", help="by default that of SRC")
    export.add_argument("--compare", nargs="+", default=[], metavar="IMAGE|FOLDER", help="photos to compare on")

    models = verb("models", verbs.models, "print the networks: parameters, MACs, sizes, accuracy")
    models.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_slices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", action="append", required=True, metavar="VERSION:SHAPE", help="such as v5e:4x4")
    parser.add_argument("--num_classes", type=int, default=1000, help="of the data, which need not be at hand")
    parser.add_argument("--cache", default="~/.cache/effv2_jax/plan", help="where figures of programs are kept")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    if not all(word.isdecimal() for word in _words(text)) or not _words(text):
        raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers with commas between them, such as 128,224")
    return [int(word) for word in _words(text)]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of at least 1")
    return int(text)


def load_config(file_and_argument: str, overrides: list[str]) -> Any:
    """The config of a file with overrides applied; each mistake is a UserError that names what would be right."""
    config = _read_config(file_and_argument, overrides)
    check_ranges(config)
    return config


def _read_config(file_and_argument: str, overrides: list[str]) -> Any:
    from absl import flags
    from ml_collections import config_flags

    path = file_and_argument.partition(":")[0]
    if not os.path.exists(path):
        raise UserError(f"config file '{path}' does not exist; the shipped ones are in configs/")
    arguments = ["effv2", f"--config={file_and_argument}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        rest = values(arguments)
    except UserError:
        raise
    except Exception as error:  # whatever the file or the parser of an override may raise
        # Without overrides the file itself is at fault.
        known = [line.partition(" ")[0] for line in _known_fields(file_and_argument)] if overrides else []
        for override in overrides:
            field = override.partition("=")[0].partition(".")[2]
            if field not in known and not any(name.startswith(f"{field}.") for name in known):
                raise UserError(f"config has no field '{field}'{_suggest(field, known)}") from None
        raise UserError(f"config cannot be read: {one_line(error)}") from error
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not an argument; overrides are written --config.FIELD=VALUE")
    _replace_durations(values.config, overrides)
    return values.config


def _replace_durations(config: Any, overrides: Sequence[str]) -> None:
    """Unsets the other units of an overridden duration: --config.total_steps=100 replaces the file's total_epochs."""
    given = [override.lstrip("-").partition("=")[0].partition(".")[2] for override in overrides]
    for path in given:
        *parents, field = path.split(".")
        name, _, unit = field.rpartition("_")
        if unit not in UNITS or not name:
            continue
        section = config
        for parent in parents:
            section = section[parent]
        for other in UNITS:
            sibling = ".".join([*parents, f"{name}_{other}"])
            if sibling not in given and f"{name}_{other}" in section and section is not config.curriculum.listed:
                section[f"{name}_{other}"] = None


def _known_fields(file_and_argument: str) -> list[str]:
    return flat_lines(_read_config(file_and_argument, []))


def _suggest(word: str, known: Sequence[str]) -> str:
    """'; did you mean ...?' or nothing."""
    by_last_part = [name for name in known if name.rpartition(".")[2].endswith(word.rpartition(".")[2])]
    close = (
        difflib.get_close_matches(word, by_last_part, n=1, cutoff=0.8)
        or by_last_part
        or difflib.get_close_matches(word, known, n=1)
    )
    return f"; did you mean {' or '.join(close)}?" if close else "; `effv2 config` prints all fields"
