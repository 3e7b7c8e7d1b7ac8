"""Any image-classification data set of TFDS, from its ArrayRecord files; TensorFlow is never called."""

import difflib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from effv2_jax.data.decode import decode
from effv2_jax.data.sources import Sources
from effv2_jax.errors import UserError


class TfdsSplit:
    """One split, for example 'train[25021:]'; images are decoded here and not by TFDS."""

    def __init__(self, records: Any, name: str, image_key: str, label_key: str, class_names: tuple[str, ...]):
        self.class_names = class_names
        self._records, self._name = records, name
        self._image_key, self._label_key = image_key, label_key

    def __len__(self) -> int:
        return len(self._records)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        record = self._records[index]
        label = int(record[self._label_key])
        if not 0 <= label < len(self.class_names):
            raise UserError(f"{self.describe(index)} has label {label}, outside its {len(self.class_names)} classes")
        return decode(record[self._image_key]), label

    def describe(self, index: int) -> str:
        return f"record {index} of {self._name}"


def tfds_sources(config: ConfigDict) -> Sources:
    """The two splits of `config.data.name` that the config names.

    Raises:
      UserError: an unknown name, a data set that is not prepared, an unknown split, or no image and label in it.
    """
    import tensorflow_datasets as tfds

    data = config.data
    directory = data.data_dir or None
    try:
        builder = tfds.builder(data.name, data_dir=directory, file_format="array_record", try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError:
        close = difflib.get_close_matches(data.name, tfds.list_builders(), n=1)
        hint = f"did you mean '{close[0]}'?" if close else "`tfds list` prints all"
        raise UserError(f"TFDS has no data set '{data.name}' (config.data.name); {hint}") from None
    except Exception as error:
        raise UserError(f"TFDS cannot open '{data.name}' (config.data.name): {error}") from None
    info = builder.info
    if not info.splits:
        raise UserError(
            f"the data set '{data.name}' is not prepared in {builder.data_dir}; run `tfds build {data.name} "
            "--file_format=array_record`, or name its place by --config.data.data_dir=..."
        )
    image_key, label_key = info.supervised_keys or ("image", "label")
    features = info.features
    if not isinstance(features.get(image_key), tfds.features.Image) or not isinstance(
        features.get(label_key), tfds.features.ClassLabel
    ):
        raise
        UserError(f"the data set '{data.name}' has no image with a class label; its features are {list(features)}")
    class_names = tuple(features[label_key].names)

    def split(field: str) -> TfdsSplit:
        try:
            records = builder.as_data_source(split=data[field], decoders={image_key: tfds.decode.SkipDecoding()})
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"the data set '{data.name}' has no split '{data[field]}' (config.data.{field}); "
                f"it has {', '.join(info.splits)}: {error}"
            ) from None
        except NotImplementedError:
            raise UserError(
                f"the data set '{data.name}' in {builder.data_dir} is in {info.file_format.value} files, which have no "
                f"random access; `tfds build {data.name} --file_format=array_record` makes files that do"
            ) from None
        if not len(records):
            raise UserError(f"the split '{data[field]}' of '{data.name}' (config.data.{field}) is empty")
        return TfdsSplit(records, f"{info.full_name} {data[field]}", image_key, label_key, class_names)

    return Sources(split("train_split"), split("evaluation_split"))
