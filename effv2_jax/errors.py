"""The exceptions that are no bugs, each with its exit code."""

import difflib
import errno
import importlib.util
from collections.abc import Iterable

EXIT_MISTAKE = 2  # as argparse has it
EXIT_UNREADABLE = 66  # EX_NOINPUT of sysexits.h: some of the images could not be read; the others were
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: something that is needed is not there
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


class UserError(Exception):
    """A user's mistake, told in one clear sentence that says what would be right.

    The command line prints the sentence without a traceback and exits with code 2.
    """


class Unavailable(Exception):
    """Nobody's mistake, told in one sentence: another process or a file system does not answer. It may the next time.

    The command line exits with EXIT_UNAVAILABLE.
    """


class Preempted(Exception):
    """The process was asked to leave and has saved: the same command goes on.

    The command line exits with EXIT_PREEMPTED.
    """


_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_NO_WRITING_TEXTS = ("no space left", "quota exceeded", "read-only file system", "permission denied", "not permitted")


def is_disk_full_or_readonly(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a place must not be written: another try would say so again.

    By the number where Python raised it, else by the text, which is all that TensorStore and TensorFlow give.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_WRITING
    return any(text in str(error).lower() for text in _NO_WRITING_TEXTS)


def check_known(field: str, value: object, known: Iterable[str]) -> None:
    """Raises UserError, with a suggestion, where `value` of `field` is none of `known`."""
    known = list(known)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        raise UserError(f"{field} '{value}' is unknown; {hint}")


_TITLES = {"tensorflow": "TensorFlow", "torch": "PyTorch"}


def require(package: str, extra: str, purpose: str) -> None:
    """Raises UserError, which names the extra of effv2_jax, where a package that `purpose` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        title = _TITLES.get(package, package)
        raise UserError(f"{purpose} needs {title}: pip install 'effv2_jax[{extra}]'")


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Another library's message for the middle of a sentence: at most `limit` characters, or the error's type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."
