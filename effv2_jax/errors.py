"""The one exception that means "the user can fix this", and the most common reason for it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake, told in one clear sentence that says what would be right.

    The command line prints the sentence without a traceback and exits with code 2.
    """


def check_known(field: str, value: object, known: Iterable[str]) -> None:
    """Raises UserError, with a suggestion, where `value` of `field` is none of `known`."""
    known = list(known)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        raise UserError(f"{field} '{value}' is unknown; {hint}")
