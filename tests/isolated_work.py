"""What tests do in another process, which imports it by name."""

import os
import signal

from effv2_jax.errors import UserError


def mark():
    os.environ["EFFV2_MARK"] = "set"


def work(number):
    return os.getpid(), os.environ.get("EFFV2_MARK"), number


def fail():
    raise UserError("a mistake")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
