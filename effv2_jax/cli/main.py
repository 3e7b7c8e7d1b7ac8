"""The command `effv2`: its entry point, exit codes and signals."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Iterator, Sequence

from effv2_jax.cli.parser import parse_arguments
from effv2_jax.errors import EXIT_MISTAKE, EXIT_PREEMPTED, EXIT_UNAVAILABLE, Preempted, Unavailable, UserError

SHUTDOWN_TIMEOUT = 20.0  # seconds that a process waits for the others before it exits
INTERRUPTED = "effv2: interrupted; a training run resumes from its last checkpoint, a preparation from its last shard"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line in this process; an error exits with one sentence and the exit code of its exception."""
    with _exit_codes():
        _run(parse_arguments(sys.argv[1:] if arguments is None else list(arguments)))


def entry() -> None:
    """The installed command: `main` with an allocator that suits JAX, and an exit that waits for no thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle_interrupt)
    try:
        with _exit_codes():
            args = parse_arguments(sys.argv[1:])  # --help and invalid arguments end here, before the restart
            from effv2_jax.runtime.memory import use_huge_pages

            use_huge_pages()
            _run(args)
    except SystemExit as error:
        if error.code:
            shut_down(int(error.code))
        raise
    except BaseException:
        traceback.print_exc()
        shut_down(1)


def shut_down(code: int) -> None:
    """Ends this process without waiting for its threads.

    A compilation in the background, or a write to a full disk, may take minutes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # Processes that exit at the same time shut down together: a process whose peers vanish reports a failure.
        threading.Timer(SHUTDOWN_TIMEOUT, os._exit, (code,)).start()
        sys.modules["jax"].distributed.shutdown()
    os._exit(code)


def _run(args: argparse.Namespace) -> None:
    if any("gs://" in str(value) for value in vars(args).values()):
        from effv2_jax.files import check_bucket_support

        check_bucket_support()
    if getattr(args, "config", ""):
        from effv2_jax.cli.load_config import load_config

        args.config = load_config(args.config, args.overrides)
    args.run(args)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turns the exceptions of `errors`, and a few of the system's, into one sentence and an exit code."""
    try:
        yield
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
    except OSError as error:
        # The disk is full, or an argument is too long to be a path.
        if error.errno not in (errno.ENAMETOOLONG, errno.ENOSPC):
            raise
        place = f": {str(error.filename)[:100]}..." if error.filename else ""
        print(f"effv2: error: {error.strerror}{place}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _handle_interrupt(signum: int, frame: types.FrameType | None) -> None:
    """Ctrl-C raises KeyboardInterrupt; during an import, where libraries swallow exceptions, it exits at once."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, f"{INTERRUPTED}\n".encode())  # print is not reentrant, and the signal may interrupt one
            os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    entry()
