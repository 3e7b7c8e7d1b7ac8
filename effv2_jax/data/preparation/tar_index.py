"""Where files lie inside a tar, found by reading headers only, tars inside it included; and their bytes."""

import dataclasses
import tarfile
from collections.abc import Iterator
from typing import IO

from effv2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Member:
    """A file inside a tar: `size` bytes from `offset` of the outermost tar."""

    name: str  # a path; a tar inside the tar is a folder of its name without '.tar'
    offset: int
    size: int


def tar_members(path: str) -> Iterator[Member]:
    """The files of a local, uncompressed tar in the order in which they lie there.

    Raises:
      UserError: it cannot be read, is compressed, no tar, or cut short.
    """
    try:
        with open(path, "rb") as file:
            yield from _members(file, "", 0)
    except tarfile.TarError as error:
        raise UserError(
            f"'{path}' cannot be read as a tar file: {error}; a compressed one has to be unpacked first, a file cut "
            "short to be downloaded again"
        ) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None


def _members(file: IO[bytes], prefix: str, start: int) -> Iterator[Member]:
    # 'r:' takes no compression; a member's data are passed over by a seek.
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it keeps each header, gigabytes of millions of files
            if not member.isreg() or member.issparse():
                continue
            name = prefix + member.name.removeprefix("./")
            offset = start + member.offset_data
            inner = tar.extractfile(member) if name.endswith(".tar") else None
            if inner is None:
                yield Member(name, offset, member.size)
            else:
                yield from _members(inner, name.removesuffix(".tar") + "/", offset)


def read_member(path: str, offset: int, size: int) -> bytes:
    """The bytes of a member.

    Raises:
      OSError: the tar cannot be read, or ends before the member does.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        parts = []
        while size and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
    if size:
        raise OSError(f"'{path}' ends too early")
    return b"".join(parts)
