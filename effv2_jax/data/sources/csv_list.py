"""Images listed in CSV files with the columns `file` and `label`: `DIR/SPLIT.csv`, files below DIR."""

import csv

from etils import epath
from ml_collections import ConfigDict

from effv2_jax.data.source import Sources
from effv2_jax.data.sources.folder import Folder
from effv2_jax.errors import UserError

COLUMNS = ("file", "label")


def csv_sources(config: ConfigDict) -> Sources:
    """The sources of two CSV files. Integer labels are class numbers from 0 to the largest; others are class names.

    Raises:
      UserError: a file does not exist, lacks a column, or has no rows, or the labels mix numbers and names.
    """
    data = config.data
    root = epath.Path(data.name)
    rows = [_read(root / f"{split}.csv") for split in (data.train_split, data.evaluation_split)]
    labels = {label for part in rows for _, label in part}
    numbers = {label for label in labels if label.isdecimal()}
    if numbers and numbers != labels:
        name = min(labels - numbers)
        raise UserError(f"the labels in '{root}' mix numbers and names, such as '{name}'; use only one of the two")
    names = tuple(map(str, range(max(map(int, numbers)) + 1))) if numbers else tuple(sorted(labels))
    label_of = {name: label for label, name in enumerate(names)}

    def source(part: list[tuple[str, str]]) -> Folder:
        part_labels = [label_of[str(int(label)) if numbers else label] for _, label in part]
        return Folder(str(root), [file for file, _ in part], part_labels, names)

    return Sources(*map(source, rows))


def _read(path: epath.Path) -> list[tuple[str, str]]:
    if not path.exists():
        raise UserError(
            f"there is no '{path}'; config.data.source='csv' reads DIR/SPLIT.csv, where DIR is config.data.name and "
            "SPLIT is config.data.train_split or config.data.evaluation_split"
        )
    with path.open("r") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
        if missing:
            raise UserError(f"'{path}' has no column {' and no column '.join(missing)} in its first line")
        rows = [(row["file"] or "", row["label"] or "") for row in reader]
    if not rows or not all(file and label for file, label in rows):
        raise UserError(f"'{path}' has no rows, or a row without a file or label")
    return rows
