#!/usr/bin/env bash
# Title: TensorBoard's EventAccumulator returns 10 random points of a scalar, depending on who wrote it
#
# Versions: tensorboard 2.21.0, numpy 2.4.6, protobuf 7.36.2, Python 3.11; tensorboard 2.20.0 does the same
#
# Behaviour: a scalar has two forms in an event file. Writers of TensorFlow 1's form (PyTorch, tensorboardX) set
#   `simple_value`; writers of TensorFlow 2's form (tf.summary, clu) set a rank-0 tensor. The TensorBoard page shows both
#   alike. `EventAccumulator(folder).Reload()` with its defaults returns up to 10,000 points of the first form, but
#   only 10 of the second: nine random ones and the last. Nothing is logged, so a script that computes a best or a mean
#   value from them gives a wrong number. `EventAccumulator(folder, size_guidance={"tensors": 0})` returns all points.
#
# Output seen (2026-11-28):
#   simple_value, defaults: 1000 of 1000 points, best 1.000 at step 400
#   tensor, defaults: 10 of 1000 points, best 0.952 at step 352
#   tensor, size_guidance={'tensors': 0}: 1000 of 1000 points, best 1.000 at step 400
#   steps of the 10: 225 304 352 505 668 789 818 924 929 999
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    tensorboard==2.21.0 numpy==2.4.6 protobuf==7.36.2
cat >"$folder/show.py" <<'PYTHON'
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

folder = sys.argv[1]
writer = EventFileWriter(folder)
for step in range(1000):
    accuracy = 1 - abs(step - 400) / 1000  # the best is 1.0 at step 400
    for summary in (
        Summary(value=[Summary.Value(tag="accuracy/simple_value", simple_value=accuracy)]),
        scalar_pb("accuracy/tensor", accuracy),
    ):
        writer.add_event(Event(step=step, wall_time=float(step), summary=summary))
writer.close()


def show(title, events, value_of):
    best = max(events, key=value_of)
    print(f"{title}: {len(events)} of 1000 points, best {value_of(best):.3f} at step {best.step}")
    return len(events)


def tensor_value(event):
    return event.tensor_proto.float_val[0]


default = EventAccumulator(folder).Reload()
unlimited = EventAccumulator(folder, size_guidance={"tensors": 0}).Reload()
counts = [
    show("simple_value, defaults", default.Scalars("accuracy/simple_value"), lambda event: event.value),
    show("tensor, defaults", default.Tensors("accuracy/tensor"), tensor_value),
    show("tensor, size_guidance={'tensors': 0}", unlimited.Tensors("accuracy/tensor"), tensor_value),
]
print("steps of the 10:", *(event.step for event in default.Tensors("accuracy/tensor")))
if counts != [1000, 10, 1000]:
    sys.exit(f"the behaviour has changed: {counts} points")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/events"
