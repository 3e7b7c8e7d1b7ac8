"""What each verb of `effv2` does with its arguments: calls the room of its name, and prints. Each imports what it needs
when it runs."""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effv2_jax.config import flat_lines, to_dict
from effv2_jax.errors import EXIT_UNREADABLE, UserError
from effv2_jax.files import check_place


def train(args: argparse.Namespace) -> None:
    if args.num_processes and not args.coordinator:
        raise UserError("--num_processes needs --coordinator=HOST:PORT of process 0")
    if args.wandb is not None:
        from effv2_jax.monitoring.wandb_writer import check_installed

        check_installed()
    # The first thing that a process does with JAX.
    if args.distributed or args.coordinator:
        from effv2_jax.runtime.processes import initialize_processes

        initialize_processes(args.coordinator, args.num_processes, args.process_id, args.timeout)
    from effv2_jax.checkpoints.manager import silence_background_threads
    from effv2_jax.train import train

    silence_background_threads()
    train(args.config, args.workdir, force=args.force, wandb_project=args.wandb)


def evaluate(args: argparse.Namespace) -> None:
    if bool(args.weights) != bool(args.config):
        raise UserError("--weights and --config go together; a run is evaluated by --workdir alone")
    if args.weights and args.step != "latest":
        raise UserError("--step is of a --workdir; of a run, --weights takes the best step")
    from effv2_jax.evaluate import confidence_interval, evaluate_run, evaluate_weights
    from effv2_jax.monitoring.progress import describe_results

    if args.weights:
        bundle, results = evaluate_weights(args.weights, args.config)
        what: dict[str, Any] = {"weights": args.weights, "architecture": bundle.architecture.name}
        title = f"{args.weights} {bundle.architecture.name}"
    else:
        step, results = evaluate_run(args.workdir, args.step)
        what, title = {"step": step}, f"step {step}"
    intervals = {name: confidence_interval(shares["top1"], int(shares["count"])) for name, shares in results.items()}
    if args.json:
        print(json.dumps(what | results | {"top1_interval_95": intervals}))
    else:
        print(f"{title} | {describe_results(results)}")
        words = ", ".join(f"{name} {low:.2%} to {high:.2%}" for name, (low, high) in intervals.items())
        print(f"95 % interval of top-1: {words}")
    if unreadable := int(max(shares["unreadable"] for shares in results.values())):
        print(f"effv2: {unreadable} images could not be read", file=sys.stderr)
        sys.exit(EXIT_UNREADABLE)


def report(args: argparse.Namespace) -> None:
    from effv2_jax.report.page import write_report

    write_report(args.workdirs, args.out, not args.no_confusion, _log)
    print(f"report of {len(args.workdirs)} run{'s' * (len(args.workdirs) > 1)}: {args.out}")


def config(args: argparse.Namespace) -> None:
    print(json.dumps(to_dict(args.config), indent=1) if args.json else "\n".join(flat_lines(args.config)))


def stages(args: argparse.Namespace) -> None:
    from effv2_jax.config.validate import validate
    from effv2_jax.curriculum import make_curriculum
    from effv2_jax.monitoring import tables

    _check_picture(args.picture, ".png", ".svg")
    num_examples = args.config.data.num_examples
    if not num_examples:
        from effv2_jax.data.sources import make_sources

        num_examples = len(make_sources(args.config).train)
    validate(args.config, num_examples=num_examples)
    curriculum = make_curriculum(args.config, num_examples)
    if args.picture:
        from effv2_jax.monitoring.plots import draw_curriculum

        draw_curriculum(curriculum, args.picture, args.config.global_batch_size / num_examples)
        _log(f"picture: {args.picture}")
    if args.json:
        print(json.dumps(tables.stages_json(curriculum, args.config, num_examples), indent=1))
    else:
        print(tables.to_text(tables.stages_table(curriculum, args.config, num_examples)), end="")


def _check_picture(file: str, *endings: str) -> None:
    """Before the work that a picture comes after."""
    if file and not file.endswith(endings):
        raise UserError(f"--picture needs a name that ends in {' or '.join(endings)}, not '{file}'")
    if file:
        check_place(f"--picture={file}", Path(file))
        if not os.access(Path(file).parent, os.W_OK):
            raise UserError(f"--picture={file} cannot be written: the folder '{Path(file).parent}' is not yours")


def plan(args: argparse.Namespace) -> None:
    from effv2_jax.monitoring import tables
    from effv2_jax.planning.plan import plan, plan_table

    results = plan(args.config, args.topology, _programs(args), args.images_per_core)
    table = plan_table(results, args.price_per_chip_hour)
    print(json.dumps(results, indent=1) if args.json else tables.to_text(table), end="")


def _programs(args: argparse.Namespace) -> Any:
    from effv2_jax.planning.cost_model import Programs

    num_examples = args.config.data.num_examples
    if not num_examples:
        raise UserError("the length of an epoch is not known: --config.data.num_examples=N tells it")
    return Programs(args.num_classes, num_examples, Path(args.cache).expanduser(), _log)


def bench_program(args: argparse.Namespace) -> None:
    from effv2_jax.bench import program
    from effv2_jax.monitoring import tables

    rows = program.measure(args.config, args.topology, _programs(args))
    print(json.dumps(rows, indent=1) if args.json else tables.to_text(program.program_table(rows)), end="")


def bench_stages(args: argparse.Namespace) -> None:
    from effv2_jax.bench import stages
    from effv2_jax.monitoring import tables

    with contextlib.ExitStack() as stack:
        workdir = args.workdir or stack.enter_context(tempfile.TemporaryDirectory())
        results = stages.measure(args.config, Path(workdir), _log)
    print(json.dumps(results, indent=1) if args.json else tables.to_text(stages.stages_table(results)), end="")


def bench_step(args: argparse.Namespace) -> None:
    from effv2_jax.bench import step
    from effv2_jax.monitoring import tables

    rows = step.measure(args.variant, args.image_size, args.peer, args.batch, args.steps, args.rounds, _log)
    print(json.dumps(rows, indent=1) if args.json else tables.to_text(step.step_table(rows)), end="")


def bench_input(args: argparse.Namespace) -> None:
    from effv2_jax.bench import input
    from effv2_jax.monitoring import tables

    results = input.measure(
        args.folder, args.image_size, args.workers, args.peer, args.batch, args.batches, args.rounds, args.scaled, _log
    )
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for table in input.input_tables(results):
        print(tables.to_text(table), end="")


def bench_parity(args: argparse.Namespace) -> None:
    from effv2_jax.bench import parity
    from effv2_jax.monitoring import tables

    rows = parity.measure(args.variant, args.peer, args.size, _log)
    if args.json or args.page:
        print(json.dumps(rows, indent=1) if args.json else parity.page(rows), end="")
        return
    for headers, cells in parity.tables(rows):
        table = tables.empty_table(*headers)
        for row in cells:
            table.add_row(*row)
        print(tables.to_text(table), end="")


def data_prepare(args: argparse.Namespace) -> None:
    from effv2_jax.data.pipeline import available_cores
    from effv2_jax.data.preparation import prepare
    from effv2_jax.data.preparation.imagenet_facts import imagenet, imagenet21k

    published = {"imagenet": imagenet, "imagenet2012": imagenet, "imagenet21k": imagenet21k}.get(args.kind)
    if args.name and args.kind != "folder":
        raise UserError(f"--name is for a folder; '{args.kind}' has a name")
    if not args.source and (published or args.kind == "folder"):
        raise UserError(f"'effv2 data prepare {args.kind}' needs --source=DIR with its tars or images")
    settings = prepare.Settings(args.workers or available_cores(), args.strict, not args.skip_checksums)
    if published:
        result = prepare.prepare_imagenet(published(), args.source, args.out, settings)
    elif args.kind == "folder":
        result = prepare.prepare_folder(args.source, args.out, args.name, settings)
    else:
        from effv2_jax.data.preparation.prepare_tfds import prepare_by_tfds

        result = prepare_by_tfds(args.kind, args.out, args.source)
    print(prepare.describe(result, args.out))


def data_check(args: argparse.Namespace) -> None:
    from effv2_jax.data.inspection.check import check, check_tables
    from effv2_jax.monitoring import tables

    if not args.name and not args.config:
        raise UserError("effv2 data check needs the name of a data set, a folder, or --config=FILE")
    if args.picture and not args.config:
        raise UserError("--picture shows the stages of a curriculum: --config=FILE has them")
    _check_picture(args.picture, ".png")
    if not 0 <= args.near <= 128:
        raise UserError(f"--near={args.near} must be between 0 and 128")
    sources = _sources_to_check(args)
    if args.picture:
        from effv2_jax.config.validate import validate
        from effv2_jax.curriculum import make_curriculum
        from effv2_jax.data.inspection.preview import stage_rows
        from effv2_jax.monitoring.plots import draw_rows

        train = sources[args.config.data.train_split]
        validate(args.config, num_examples=len(train))
        rows = stage_rows(args.config, make_curriculum(args.config, len(train)), train, args.photos)
        draw_rows([(row.title, row.images) for row in rows], args.picture)
        _log(f"picture: {args.picture}")
    results = check(sources, args.small, args.near)
    print(json.dumps(results, indent=1) if args.json else tables.to_text(check_tables(results)), end="")
    if unreadable := sum(len(split["broken"]) for split in results["splits"].values()):
        print(f"effv2: {unreadable} images could not be read", file=sys.stderr)
        sys.exit(EXIT_UNREADABLE)


def _sources_to_check(args: argparse.Namespace) -> dict[str, Any]:
    """The sources by the names of their splits."""
    from etils import epath

    is_folder = bool(args.name) and not args.data_dir and epath.Path(args.name).is_dir()
    if args.config:
        from effv2_jax.data.sources import make_sources

        data = args.config.data
        if args.name:
            data.name, data.source = args.name, "folder" if is_folder else "tfds"
        if args.data_dir:
            data.data_dir = args.data_dir
        if data.train_split == data.evaluation_split:
            raise UserError(
                f"config.data.train_split and config.data.evaluation_split are both '{data.train_split}', and what is "
                "checked are two splits: --config.data.evaluation_split=... names another"
            )
        sources = make_sources(args.config)
        return {data.train_split: sources.train, data.evaluation_split: sources.evaluation}
    if is_folder:
        from effv2_jax.data.sources.folder import all_splits

        return dict(all_splits(args.name))
    from effv2_jax.data.sources import tfds as tfds_source

    return dict(tfds_source.all_splits(args.name, args.data_dir))


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # at once: print writes the end of a line apart, and several threads log
    sys.stderr.flush()


def predict(args: argparse.Namespace) -> None:
    import csv
    import dataclasses

    from effv2_jax.predict import find_images, predict
    from effv2_jax.weights import read_weights

    for stream in (sys.stdout, sys.stderr):  # names of files may be any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    images = find_images(args.images)
    bundle = read_weights(args.weights)
    unreadable = 0
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        table.writerow(["file", "rank", "label", "name", "probability"])
    for number, prediction in enumerate(predict(bundle, images, args.top, args.batch_size), 1):
        classes = list(zip(prediction.labels, prediction.names, prediction.probabilities, strict=True))
        if prediction.error:
            unreadable += 1
            print(f"effv2: skipped {prediction.file}: {prediction.error}", file=sys.stderr)
        elif args.json:
            print(json.dumps({key: value for key, value in dataclasses.asdict(prediction).items() if key != "error"}))
        elif args.csv:
            table.writerows([prediction.file, rank, *row] for rank, row in enumerate(classes, 1))
        else:
            print(prediction.file, *(f"  {share:6.1%} {name}" for _, name, share in classes), sep="\n")
        if sys.stderr.isatty() and not sys.stdout.isatty():
            print(f"\r{number}/{len(images)}", end="\n" if number == len(images) else "", file=sys.stderr)
    if unreadable:
        print(f"effv2: {unreadable} of {len(images)} images could not be read", file=sys.stderr)
        sys.exit(EXIT_UNREADABLE)


def convert(args: argparse.Namespace) -> None:
    from effv2_jax.weights import read_weights, write_weights
    from effv2_jax.weights.files import format_of, lost_metadata

    format_of(args.destination)  # before SRC is read
    if os.path.exists(args.destination) and os.path.samefile(args.source, args.destination):
        raise UserError(f"'{args.destination}' is the source itself; name another destination")
    bundle = read_weights(args.source, args.architecture)
    if args.head == "drop":
        bundle = bundle.without_head()
    write_weights(bundle, args.destination, args.format)
    if lost := lost_metadata(bundle, args.format if args.format != "auto" else format_of(args.destination)):
        print(f"effv2: {args.destination} does not tell {lost}; whoever reads it has to know", file=sys.stderr)
    head = f"{bundle.num_classes} classes" if bundle.num_classes else "no classifier"
    which = "averaged weights" if "ema" in bundle.sets else "weights"
    print(f"{which} of {bundle.architecture.name}, {head}, {bundle.preprocess.image_size} px: {args.destination}")


def export(args: argparse.Namespace) -> None:
    import dataclasses

    from effv2_jax.data.images.decode import BrokenImage
    from effv2_jax.export import Program, export
    from effv2_jax.predict import find_images
    from effv2_jax.weights import read_weights

    images = find_images(args.compare)
    bundle = read_weights(args.source, args.architecture)
    if args.image_size is not None:
        if args.image_size < 32:
            raise UserError(f"--image_size={args.image_size} is too small; the network halves it five times")
        preprocess = dataclasses.replace(bundle.preprocess, image_size=args.image_size)
        bundle = dataclasses.replace(bundle, preprocess=preprocess)
    program = Program(bundle, args.output, args.preprocessing == "include")

    def pixels() -> Iterator[Any]:
        for name, image in images.items():
            try:
                yield bundle.preprocess.pixels(image)
            except (BrokenImage, OSError) as error:
                raise UserError(f"'{name}' is no readable image: {error}") from None

    result = export(program, args.destination, pixels())
    print(f"{bundle.architecture.name}, {args.output}, {bundle.preprocess.image_size} px: {args.destination}")
    what = f"{result.images} images" if images else f"{result.images} images of noise"
    print(
        f"{result.runtime} against JAX on {what}: largest difference {result.difference:.2g}, with {args.output} up to "
        f"{result.largest:.3g}; the same largest output on {result.same_best}"
    )


def models(args: argparse.Namespace) -> None:
    from effv2_jax.monitoring import tables
    from effv2_jax.network import architecture

    names = architecture.names()
    if args.json:
        print(json.dumps(tables.models_json(names), indent=1))
    else:
        print(tables.to_text(tables.models_table(names)), end="")
