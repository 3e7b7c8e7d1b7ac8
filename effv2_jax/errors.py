"""Exceptions that are not bugs, each with its exit code, and parts of their messages."""

import contextlib
import difflib
import errno
import importlib.util
from collections.abc import Iterable, Iterator, Sequence

EXIT_MISTAKE = 2  # invalid input; the code that argparse uses
EXIT_UNREADABLE = 66  # EX_NOINPUT of sysexits.h: the command finished, but some images could not be read
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: a required resource is not available now
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class UserError(Exception):
    """Invalid input, reported in one sentence that says what is wrong and how to fix it.

    The command line prints the sentence without a traceback and exits with code 2.
    """


class Unavailable(Exception):
    """Another process or a file system does not respond; the same command may succeed later.

    The command line prints one sentence and exits with EXIT_UNAVAILABLE.
    """


class Preempted(Exception):
    """The process was asked to stop and has saved a checkpoint; the same command resumes from it.

    The command line exits with EXIT_PREEMPTED.
    """


_FULL_OR_READONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_FULL_OR_READONLY_TEXTS = (
    "no space left",
    "quota exceeded",
    "read-only file system",
    "permission denied",
    "not permitted",
)


def is_disk_full_or_readonly(error: BaseException) -> bool:
    """Whether a write failed because the disk is full or the path is read-only, so that a retry would fail too.

    Python's own errors carry a number. TensorStore and TensorFlow only give a text, which is searched instead.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL_OR_READONLY
    return any(text in str(error).lower() for text in _FULL_OR_READONLY_TEXTS)


@contextlib.contextmanager
def disk_errors(sentence: str) -> Iterator[None]:
    """Raises UserError, with `sentence` before the reason, where a disk is full or must not be written."""
    try:
        yield
    except OSError as error:
        if not is_disk_full_or_readonly(error):
            raise
        raise UserError(f"{sentence}: {error}") from error


def check_known(field: str, value: object, known: Iterable[str]) -> None:
    """Raises UserError, with a suggestion, if `value` of `field` is not one of `known`."""
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
    """The text of another library's error on one line of at most `limit` characters; its type if it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."


def join_limited(names: Sequence[str], limit: int = 5) -> str:
    """'a, b, c and 7 more': at most `limit` names."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
