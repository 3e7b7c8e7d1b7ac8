"""A stand-in for a bucket: paths that begin with gs:// lie in a local folder, for all that goes through epath."""

from pathlib import Path
from typing import Any

from etils.epath import backend


class Bucket(backend._OsPathBackend):
    """What etils asks for gs://, with its paths put into a folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def here(path: Any) -> Any:
            return path.replace("gs://", f"{self._folder}/") if isinstance(path, str) else path

        return lambda *paths, **options: found(*map(here, paths), **options)
