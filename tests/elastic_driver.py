"""`effv2 ARGUMENTS` that leaves after a given step, and records what it draws, saves and restores.

    python elastic_driver.py STOP RECORDS ARGUMENT...

RECORDS receives a JSON line a training step from each process: the digest of every example of its part of the batch, in
order; and one for each state saved or restored.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from effv2_jax import train
from effv2_jax.checkpoints.manager import Checkpoints
from effv2_jax.cli.main import entry
from effv2_jax.runtime.preemption import Preemption


def digest(*arrays):
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def examples(batch):
    return [digest(image, label) for image, label in zip(batch["image"], batch["label"], strict=True)]


def main():
    stop, folder, *arguments = sys.argv[1:]
    put_batch, save, restore = train.put_batch, Checkpoints.save, Checkpoints.restore
    made = 0  # steps

    def record(**values):
        with (Path(folder) / f"{jax.process_index()}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def recording_put_batch(batch, mesh):
        nonlocal made
        record(kind="batch", examples=examples(batch))
        made += 1
        return put_batch(batch, mesh)

    def recording_save(self, step, state, *rest):
        record(kind="save", step=step, state=digest(*jax.tree.leaves(state)), devices=jax.device_count())
        save(self, step, state, *rest)

    def recording_restore(self, step, abstract_state):
        nonlocal made
        state, run = restore(self, step, abstract_state)
        made = step
        record(kind="restore", step=step, state=digest(*jax.tree.leaves(state)), devices=jax.device_count())
        return state, run

    train.put_batch, Checkpoints.save, Checkpoints.restore = recording_put_batch, recording_save, recording_restore
    Preemption.reached = lambda self: made == int(stop)
    sys.argv = ["effv2", *arguments]
    entry()


if __name__ == "__main__":
    main()
