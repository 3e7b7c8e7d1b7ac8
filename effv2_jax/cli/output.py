"""Output that several commands share: log lines, pictures, the exit after unreadable images."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from effv2_jax.errors import EXIT_UNREADABLE, UserError


def log(line: str) -> None:
    """Writes a line to stderr in one piece: several threads log, and print writes the line's end separately."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def check_picture(file: str, *endings: str) -> None:
    """Raises UserError, before the work, if --picture=FILE has another ending or cannot be written."""
    if not file:
        return
    from effv2_jax.files import check_place

    if not file.endswith(endings):
        raise UserError(f"--picture needs a name that ends in {' or '.join(endings)}, not '{file}'")
    check_place(f"--picture={file}", Path(file))
    if not os.access(Path(file).parent, os.W_OK):
        raise UserError(f"--picture={file} cannot be written: the folder '{Path(file).parent}' is not writable")


def exit_unreadable(images: str) -> NoReturn:
    """Exits with the code for unreadable images; `images` is their number, such as '3' or '3 of 10'."""
    print(f"effv2: {images} images could not be read", file=sys.stderr)
    sys.exit(EXIT_UNREADABLE)
