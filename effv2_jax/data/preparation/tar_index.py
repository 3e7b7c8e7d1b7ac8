"""Random access to the files in a tar and in tars inside it; only headers are read to locate them."""

import dataclasses
import tarfile
from collections.abc import Iterator
from typing import IO

from effv2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Member:
    """A file inside a tar: `size` bytes from `offset` of the outermost tar."""

    name: str  # a path; a tar inside the tar counts as a folder named without '.tar'
    offset: int
    size: int


def tar_members(path: str) -> Iterator[Member]:
    """The files of a local, uncompressed tar in the order in which they are stored.

    Raises:
      UserError: the file cannot be read, or it is compressed, truncated or not a tar.
    """
    try:
        with open(path, "rb") as file:
            yield from _members(file, "", 0)
    except tarfile.TarError as error:
        raise UserError(
            f"'{path}' cannot be read as a tar file: {error}; unpack it first if it is compressed, download it again "
            "if it is truncated"
        ) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None


def _members(file: IO[bytes], prefix: str, start: int) -> Iterator[Member]:
    # 'r:' refuses compression, so that tarfile skips the data of a member by a seek.
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all headers: gigabytes
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
      OSError: the tar cannot be read, or it ends within the member.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        parts = []
        while size and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
    if size:
        raise OSError(f"'{path}' is truncated")
    return b"".join(parts)
