"""Several processes: how they join, and wait for each other with a timeout."""

import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # its key-value store has no public name

from effv2_jax.errors import EXIT_UNAVAILABLE, Unavailable, UserError, one_line

# Why processes do not find each other, the most frequent cause first.
ADVICE = (
    "The usual causes: the command was not started on every host; a process of an earlier run still holds the TPU "
    "(`sudo lsof -w /dev/accel0` finds it, and /tmp/libtpu_lockfile may be left over: jax issue 10192); a firewall "
    "blocks the coordinator's port (JAX takes 8482 since 0.8.1, Google Cloud's rules open 8476: jax issue 35905; "
    "--coordinator=HOST:8476 takes that); a proxy variable such as HTTP_PROXY is set."
)


def initialize_processes(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, timeout: int = 300
) -> None:
    """Joins this process to the others of the run. Call it before any other use of JAX.

    Without arguments JAX finds the other processes itself on Cloud TPU slices and under Slurm, MPI and Kubernetes.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: in the run.
      process_id: of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: arguments that contradict each other, or other processes that JAX cannot find.
      Unavailable: the coordinator's port is in use. If other processes do not join in time, this one exits with
        EXIT_UNAVAILABLE.
    """
    if timeout < 1:
        raise UserError(f"--timeout is {timeout}; it must be at least 1 second")
    if coordinator and not 0 <= process_id < num_processes:
        raise UserError(
            "--coordinator needs --num_processes=N and --process_id from 0 to N - 1, "
            f"not {num_processes} and {process_id}"
        )
    host, _, port = coordinator.rpartition(":")
    if coordinator and not (host and port.isdigit()):
        raise UserError(f"--coordinator is '{coordinator}'; it must be HOST:PORT of process 0")
    peers: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    # JAX aborts the process at its own timeout, so ours is shorter.
    watchdog = threading.Timer(timeout, _give_up, (coordinator, timeout))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(**(peers if coordinator else {}), initialization_timeout=timeout + 60)
    except RuntimeError as error:
        raise Unavailable(
            f"this process cannot join the others at {coordinator or distributed.global_state.coordinator_address}: "
            f"{one_line(error)}; another process may hold that port"
        ) from None
    except ValueError as error:
        raise UserError(
            f"this process cannot join the others: {one_line(error)} If JAX cannot find them itself, give each "
            "process --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from None
    finally:
        watchdog.cancel()
    # Every process prints it, so that each log shows whose it is.
    print(
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()} (pid {os.getpid()}) with "
        f"{jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )


def _give_up(coordinator: str, timeout: int) -> None:
    """Exits with a message that names the process that did not join, as far as it is known."""
    state = distributed.global_state
    address = coordinator or state.coordinator_address or ""
    host, _, port = address.rpartition(":")
    missing = "the others, whose coordinator is not known"
    if state.service is not None:
        missing = f"a process from 1 to {state.num_processes - 1}" if state.num_processes > 2 else "process 1"
    elif port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            missing = f"a process other than 0, whose coordinator at {address} answers"
        except OSError as error:
            missing = f"process 0: its coordinator at {address} does not answer ({error})"
    print(f"effv2: error: waited {timeout} s for {missing}. {ADVICE}", file=sys.stderr, flush=True)
    os._exit(EXIT_UNAVAILABLE)


def wait_for_all(name: str, timeout: int = 1800) -> None:
    """Waits until every process has called it, so that none waits forever in its first collective operation.

    Args:
      name: of the barrier, for messages; used once per run.
      timeout: seconds.

    Raises:
      Unavailable: the timeout has passed; names the missing processes.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    try:
        client.wait_at_barrier(f"effv2_jax/{name}", timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        names = re.search(r"timed out task names:([\d,\s]+)", str(error))
        missing = ", ".join(re.findall(r"\d+", names[1])) if names else f"one of {jax.process_count()}"
        raise Unavailable(
            f"process {jax.process_index()} waited {timeout} s at '{name}' for process {missing}: {one_line(error)}"
        ) from None


def on_first_process(name: str, call: Callable[[], None], timeout: int = 1800) -> None:
    """Makes the first process call a function while the others wait. If the call fails, it fails on all of them.

    Args:
      name: of the call, for messages; used once per run.
      call: the function.
      timeout: seconds that the others wait.

    Raises:
      UserError: of `call`.
      Unavailable: on the others, if `call` raises another exception or does not return in time.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return call()
    key = f"effv2_jax/{name}"
    if jax.process_index() == 0:
        outcome = "failed"
        try:
            call()
            outcome = "done"
        except UserError as error:
            outcome = f"error: {error}"
            raise
        finally:
            client.key_value_set(key, outcome)
        return None
    try:
        outcome = client.blocking_key_value_get(key, timeout * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise Unavailable(
            f"process {jax.process_index()} waited {timeout} s for process 0 and '{name}': {one_line(error)}"
        ) from None
    if outcome.startswith("error: "):
        raise UserError(outcome.removeprefix("error: "))
    if outcome != "done":
        raise Unavailable(f"process 0 failed at '{name}'; its log says why")
    return None


def this_process() -> dict[str, int]:
    """{'process_index', 'process_count'}, the keyword arguments of input pipelines."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
