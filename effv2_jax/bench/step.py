"""One training step, and inference, against timm on PyTorch and Keras on JAX: `effv2 bench step`.

Every side has a process of its own, and they take turns, so that a busy machine slows all of them. A training step is
forward and backward through the network with batch norm, cross-entropy, and RMSProp with momentum, on images already in
memory; dropout and stochastic depth are off. Inference computes the logits of a batch.
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
SIDES = {"timm": ("timm", "timm, bfloat16"), "keras": ("keras",)}  # the timed sides of each peer
Steps = dict[str, Callable[[], None]]  # one step of each mode


def bench_step(
    variants: Sequence[str],
    sizes: Sequence[int],
    peers: Sequence[str],
    *,
    batch_size: int,
    steps: int,
    rounds: int,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Times every variant and size.

    Args:
      variants: names of architectures; the prefix 'efficientnetv2-' may be omitted.
      sizes: pixels.
      peers: keys of SIDES.
      batch_size: images.
      steps: of each side in a round.
      rounds: in which the sides take turns.
      log: takes a line of progress.

    Returns:
      Rows {'variant', 'image_size', 'mode', 'images_per_second': {side: median of the rounds}}.

    Raises:
      UserError: an unknown variant or peer, or a library that is not installed.
      Unavailable: the process of a side ended.
    """
    for peer in peers:
        check_known("--peer", peer, SIDES)
        check_installed(peer)
    for size in sizes:
        check_size("image_size", size)
    known = names()
    variants = [name if name in known else f"efficientnetv2-{name}" for name in variants]
    for variant in variants:
        check_known("--variant", variant, known)
    rows = []
    for variant in variants:
        sides = ["ours", *(side for peer in peers if peer_name(peer, variant) for side in SIDES[peer])]
        for size in sizes:
            log(f"{variant}, {size} px: {', '.join(sides)} ...")
            for mode, seconds in _time_sides(variant, size, batch_size, sides, steps, rounds).items():
                rates = {side: steps * batch_size / statistics.median(times) for side, times in seconds.items()}
                rows.append({"variant": variant, "image_size": size, "mode": mode, "images_per_second": rates})
    return rows


def _time_sides(
    variant: str, size: int, batch_size: int, sides: Sequence[str], steps: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by mode and side."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    try:
        for side in sides:
            connection, worker_end = context.Pipe()
            arguments = (worker_end, side, variant, size, batch_size)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            worker_end.close()
            workers[side] = process, connection
            _ask(side, connection, None)  # one side after the other: compilation takes all cores
        seconds: dict[str, dict[str, list[float]]] = {mode: {side: [] for side in sides} for mode in MODES}
        for mode in MODES:
            for _ in range(rounds):
                for side, (_, connection) in workers.items():
                    seconds[mode][side].append(_ask(side, connection, (mode, steps)))
        return seconds
    finally:
        for process, connection in workers.values():
            connection.close()
            process.kill()
            process.join()


def _ask(side: str, connection: Connection, request: tuple[str, int] | None) -> float:
    try:
        connection.send(request)
        return connection.recv()
    except (EOFError, OSError):
        raise Unavailable(f"the process of {side} ended; its error is printed above") from None


def _serve(connection: Connection, name: str, variant: str, size: int, batch_size: int) -> None:
    """Runs in the process of a side: compiles at the first request, None, and answers (mode, steps) with seconds."""
    connection.recv()
    make = {"ours": _ours, "keras": _keras}.get(name, _timm)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, CLASSES, batch_size).astype(np.int32)
    step_of = make(variant, images, labels, name.endswith("bfloat16"))
    for step in step_of.values():
        step()
        step()
    connection.send(0.0)
    while True:
        try:
            mode, steps = connection.recv()
        except EOFError:
            return
        step_of[mode]()  # warms caches and wakes threads
        start = time.perf_counter()
        for _ in range(steps):
            step_of[mode]()
        connection.send(time.perf_counter() - start)


def _ours(variant: str, images: np.ndarray, labels: np.ndarray, use_bfloat16: bool) -> Steps:
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
    variables = jax.tree.map(lambda x: x.copy(), state.variables)  # the step donates the state's own
    model = make_model(config, CLASSES, mesh.devices.flat[0].platform)

    @functools.partial(jax.jit, compiler_options=compiler_options(jax.default_backend()))
    def infer(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, normalize(images, config.data.normalization))

    def train() -> None:
        nonlocal state
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    return {"training": train, "inference": lambda: jax.block_until_ready(infer(variables, batch["image"]))}


def _timm(variant: str, images: np.ndarray, labels: np.ndarray, use_bfloat16: bool) -> Steps:
    """In channels_last, with timm's TensorFlow RMSProp; bfloat16 is by autocast."""
    timm, _ = import_torch_peers()
    import torch
    from timm.optim import RMSpropTF

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(peer_name("timm", variant), num_classes=CLASSES, drop_rate=0.0, drop_path_rate=0.0)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = RMSpropTF(model.parameters(), lr=1e-4, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=1e-5)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # already channels_last in memory
    y = torch.from_numpy(labels).long().to(device)

    def logits() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=use_bfloat16):
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

    def synchronized(step: Callable[[], None]) -> Callable[[], None]:
        def step_and_wait() -> None:
            step()
            torch.cuda.synchronize()

        return step_and_wait if device == "cuda" else step

    return {"training": synchronized(train), "inference": synchronized(infer)}


def _keras(variant: str, images: np.ndarray, labels: np.ndarray, use_bfloat16: bool) -> Steps:
    """On JAX, compiled; always float32."""
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
    x = images.astype(np.float32)  # the network contains the normalisation

    def train() -> None:
        model.train_on_batch(x, labels)

    def infer() -> None:
        model.predict_on_batch(x)

    return {"training": train, "inference": infer}


def step_table(rows: list[dict[str, Any]]) -> RenderableType:
    """One row per variant, size and mode: each side's rate, and our rate over it."""
    sides = list(dict.fromkeys(side for row in rows for side in row["images_per_second"]))
    peers = [side for side in sides if side != "ours"]
    rate_headers = [f"{side}\n(images/s)" for side in sides]
    table = empty_table("network", "size\n(px)", "mode", *rate_headers, *(f"ours /\n{peer}" for peer in peers))
    for row in rows:
        rates = row["images_per_second"]
        cells = [row["variant"], str(row["image_size"]), row["mode"]]
        cells += [f"{rates[side]:.1f}" if side in rates else "" for side in sides]
        cells += [f"{rates['ours'] / rates[peer]:.2f}x" if peer in rates else "" for peer in peers]
        table.add_row(*cells)
    return table
