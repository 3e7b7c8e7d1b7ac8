"""One training step, and inference, against timm on PyTorch and Keras on JAX: `effv2 bench step`.

Every side sits in a process of its own and waits; they take turns, so that a busy machine slows all of them. A step is
forward and backward through the network with batch norm, cross-entropy and RMSProp with momentum, on images that are at
hand; dropout and stochastic depth are off. Inference is the logits of a batch.
"""

import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from rich.console import RenderableType

from effv2_jax.bench.peers import check_installed, check_size, import_torch_peers, peer_name
from effv2_jax.errors import Unavailable, check_known
from effv2_jax.monitoring.tables import empty_table
from effv2_jax.network.architecture import names

CLASSES = 1000
MODES = ("training", "inference")
# What a peer is timed as.
SIDES = {"timm": ("timm", "timm, bfloat16"), "keras": ("keras",)}
Side = dict[str, Callable[[], None]]  # a mode's step


def measure(
    variants: Sequence[str],
    sizes: Sequence[int],
    peers: Sequence[str],
    batch_size: int,
    steps: int,
    rounds: int,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Times every variant and size.

    Args:
      variants: names of architectures; the beginning 'efficientnetv2-' may be left out.
      sizes: pixels.
      peers: keys of SIDES.
      batch_size: images.
      steps: of one side in a round.
      rounds: of all sides in turn.
      log: takes a line of progress.

    Returns:
      Rows {'variant', 'image_size', 'mode', 'images_per_second': {side: median of the rounds}}.

    Raises:
      UserError: an unknown variant or peer, or a library that is not installed.
      Unavailable: a process that worked on a side ended.
    """
    for peer in peers:
        check_known("--peer", peer, SIDES)
        check_installed(peer)
    for size in sizes:
        check_size("image_size", size)
    full = [name if name in names() else f"efficientnetv2-{name}" for name in variants]
    for name in full:
        check_known("--variant", name, names())
    rows = []
    for variant in full:
        sides = ["ours", *(side for peer in peers if peer_name(peer, variant) for side in SIDES[peer])]
        for size in sizes:
            log(f"{variant}, {size} px: {', '.join(sides)} ...")
            rows += _compare(variant, size, batch_size, sides, steps, rounds)
    return rows


def _compare(
    variant: str, size: int, batch_size: int, sides: Sequence[str], steps: int, rounds: int
) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    workers = {}
    try:
        for side in sides:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, side, variant, size, batch_size), daemon=True)
            process.start()
            there.close()
            workers[side] = process, here
            _ask(side, here, None)  # one after the other: compilation takes all cores
        rows = []
        for mode in MODES:
            found: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(rounds):
                for side, (_, connection) in workers.items():
                    found[side].append(_ask(side, connection, (mode, steps)))
            rates = {side: steps * batch_size / statistics.median(seconds) for side, seconds in found.items()}
            rows.append({"variant": variant, "image_size": size, "mode": mode, "images_per_second": rates})
        return rows
    finally:
        for process, connection in workers.values():
            connection.close()
            process.kill()
            process.join()


def _ask(side: str, connection: Connection, question: Any) -> float:
    try:
        connection.send(question)
        return connection.recv()
    except (EOFError, OSError):
        raise Unavailable(f"the process of {side} ended; its own message is above") from None


def _serve(connection: Connection, name: str, variant: str, size: int, batch_size: int) -> None:
    """Answers None, once all is compiled, and (mode, steps) with seconds."""
    connection.recv()
    make = _ours if name == "ours" else _keras if name == "keras" else _timm
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, CLASSES, batch_size).astype(np.int32)
    side = make(variant, images, labels, name.endswith("bfloat16"))
    for step in side.values():
        step()
        step()
    connection.send(0.0)
    while True:
        try:
            mode, steps = connection.recv()
        except EOFError:
            return
        side[mode]()  # caches, and threads that slept
        start = time.perf_counter()
        for _ in range(steps):
            side[mode]()
        connection.send(time.perf_counter() - start)


def _ours(variant: str, images: np.ndarray, labels: np.ndarray, half: bool) -> Side:
    import jax

    from effv2_jax.config import defaults, duration
    from effv2_jax.curriculum import make_curriculum
    from effv2_jax.network.cpu_kernels import compiler_options
    from effv2_jax.network.model import make_model, normalize
    from effv2_jax.runtime.compiler import Compiler
    from effv2_jax.runtime.mesh import make_mesh, put_batch

    config = defaults()
    config.model.variant = variant
    config.global_batch_size = config.evaluation.batch_size = len(images)
    config.ema.decay = 0.0
    duration(config, "total", steps=1000)
    duration(config.schedule, "warmup", steps=10)
    duration(config.schedule, "decay", steps=100)
    curriculum = config.curriculum
    curriculum.num_stages = 1
    curriculum.image_size = images.shape[1:3]
    curriculum.dropout_rate, curriculum.survival_probability = (0.0, 0.0), (1.0, 1.0)
    stages, mesh = make_curriculum(config, len(images)), make_mesh()
    compiler = Compiler(config, stages, CLASSES, len(images), mesh)
    train_step = compiler.train_step(stages.stages[0])
    batch = put_batch({"image": images, "label": labels}, mesh)
    state = compiler.initial_state()
    variables = jax.tree.map(lambda x: x.copy(), state.variables)  # the step takes the state's own
    model = make_model(config, CLASSES, mesh.devices.flat[0].platform)

    @functools.partial(jax.jit, compiler_options=compiler_options(jax.default_backend()))
    def infer(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, normalize(images, config.data.normalization))

    def train() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    return {"training": train, "inference": lambda: jax.block_until_ready(infer(variables, batch["image"]))}


def _timm(variant: str, images: np.ndarray, labels: np.ndarray, half: bool) -> Side:
    """In channels_last, timm's TensorFlow RMSProp; with `half` in bfloat16 by autocast."""
    timm, _ = import_torch_peers()
    import torch
    from timm.optim import RMSpropTF

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(peer_name("timm", variant), num_classes=CLASSES, drop_rate=0.0, drop_path_rate=0.0)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = RMSpropTF(model.parameters(), lr=1e-4, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=1e-5)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # channels_last as it lies
    y = torch.from_numpy(labels).long().to(device)

    def logits() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return model((x.float() - 128) / 128)

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        loss(logits().float(), y).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            logits()

    def waiting(step: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            step()
            torch.cuda.synchronize()

        return both if device == "cuda" else step

    return {"training": waiting(train), "inference": waiting(infer)}


def _keras(variant: str, images: np.ndarray, labels: np.ndarray, half: bool) -> Side:
    """On JAX, compiled."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    make = getattr(keras.applications, str(peer_name("keras", variant)))
    model = make(weights=None, classes=CLASSES, classifier_activation=None, input_shape=images.shape[1:])
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    model.compile(
        keras.optimizers.RMSprop(1e-4, rho=0.9, momentum=0.9, epsilon=1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    x = images.astype(np.float32)  # the network normalises

    def train() -> None:
        model.train_on_batch(x, labels)

    def infer() -> None:
        model.predict_on_batch(x)

    return {"training": train, "inference": infer}


def step_table(rows: list[dict[str, Any]]) -> RenderableType:
    """A row a variant, size and mode; ours, then each side's rate and how many times it ours is."""
    sides = list(dict.fromkeys(side for row in rows for side in row["images_per_second"]))
    table = empty_table(
        *("network", "size\n(px)", "mode"),
        *(f"{side}\n(images/s)" for side in sides),
        *(f"ours /\n{side}" for side in sides if side != "ours"),
    )
    for row in rows:
        rates = row["images_per_second"]
        table.add_row(
            *(row["variant"], str(row["image_size"]), row["mode"]),
            *(f"{rates[side]:.1f}" if side in rates else "" for side in sides),
            *(f"{rates['ours'] / rates[side]:.2f}x" if side in rates else "" for side in sides if side != "ours"),
        )
    return table
