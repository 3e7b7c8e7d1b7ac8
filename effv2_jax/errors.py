"""The exceptions that are no bugs: "the user can fix this", and "asked to leave"."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake, told in one clear sentence that says what would be right.

    The command line prints the sentence without a traceback and exits with code 2.
    """


EXIT_MISTAKE = 2  # as argparse has it
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(Exception):
    """The process was asked to leave and has saved: the same command goes on.

    The command line exits with EXIT_PREEMPTED.
    """


def check_known(field: str, value: object, known: Iterable[str]) -> None:
    """Raises UserError, with a suggestion, where `value` of `field` is none of `known`."""
    known = list(known)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        raise UserError(f"{field} '{value}' is unknown; {hint}")
