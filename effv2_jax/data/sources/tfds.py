"""Any image-classification data set of TFDS, from its ArrayRecord files; TensorFlow is never called."""

import contextlib
import difflib
import re
import sys
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from effv2_jax.data.images.decode import BrokenImage, Picture
from effv2_jax.data.source import Label, Sources
from effv2_jax.errors import UserError, one_line


class TfdsSplit:
    """One split, for example 'train[25021:]'; images are decoded here and not by TFDS.

    Args:
      records: random access to serialized records.
      features: the image and the label, of all that a record holds; an image that TFDS stores encoded comes as bytes.
      image_key, label_key: their names.
      name: of the data set and split, for messages.
    """

    def __init__(self, records: Any, features: Any, image_key: str, label_key: str, name: str):
        import tensorflow_datasets as tfds

        self._several = isinstance(features[label_key], tfds.features.Sequence)
        self.class_names = tuple(class_label(features[label_key]).names)
        self._records, self._features, self._name = records, features, name
        self._image_key, self._label_key = image_key, label_key
        encoded = isinstance(features[image_key], tfds.features.Image)
        self._decoders = {image_key: tfds.decode.SkipDecoding()} if encoded else None

    @property
    def fingerprint(self) -> str:
        return f"{len(self)} records of {self._name}"

    def __len__(self) -> int:
        return len(self._records)

    def load(self, index: int) -> tuple[Picture, Label]:
        record = self._features.deserialize_example_np(self._records[index], decoders=self._decoders)
        image, labels = record[self._image_key], tuple(map(int, np.atleast_1d(record[self._label_key])))
        if not labels or not all(0 <= label < len(self.class_names) for label in labels):
            raise UserError(
                f"{self.describe(index)} has label {' '.join(map(str, labels)) or 'none'}, but its "
                f"{len(self.class_names)} classes are 0 to {len(self.class_names) - 1}; in TFDS -1 is an unknown label"
            )
        picture = Picture(image if isinstance(image, bytes) else _to_rgb(image))
        return picture, labels if self._several else labels[0]

    def describe(self, index: int) -> str:
        return f"record {index} of {self._name}"


def tfds_sources(config: ConfigDict) -> Sources:
    """The two splits of `config.data.name` that the config names.

    Raises:
      UserError: an unknown name, a data set that is not prepared, an unknown or empty split, no image and class label
        in it, or a split whose first record has no label.
    """
    data = config.data
    data_set = _DataSet(data.name, data.data_dir)
    sources = []
    for field in ("train_split", "evaluation_split"):
        source = data_set.split(data[field], f" (config.data.{field})")
        with contextlib.suppress(BrokenImage):
            source.load(0)  # a split without labels is found before training
        sources.append(source)
    return Sources(*sources)


def all_splits(name: str, data_dir: str) -> dict[str, TfdsSplit]:
    """Every split with labels of a prepared data set; a line on standard error names each other split.

    Raises:
      UserError: as `tfds_sources`; no split has labels.
    """
    data_set = _DataSet(name, data_dir)
    found = {}
    for split in data_set.builder.info.splits:
        source = data_set.split(split)
        try:
            with contextlib.suppress(BrokenImage):
                source.load(0)
        except UserError as error:
            print(f"effv2: skipped: {error}", file=sys.stderr)
        else:
            found[split] = source
    if not found:
        raise UserError(f"no split of '{name}' has labels; it has {', '.join(data_set.builder.info.splits)}")
    return found


class _DataSet:
    """A prepared data set of images with labels."""

    def __init__(self, name: str, data_dir: str):
        import tensorflow_datasets as tfds

        self.name = name
        self.builder = _open(name, data_dir)
        self._keys = image_and_label(name, self.builder.info)
        features = self.builder.info.features
        # Of a record only these two are read: others may be images too, and decoding them would take as long.
        self._used = tfds.features.FeaturesDict({key: features[key] for key in self._keys})

    def split(self, split: str, where: str = "") -> TfdsSplit:
        import tensorflow_datasets as tfds

        info = self.builder.info
        try:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            records = self.builder.as_data_source(split=split, deserialize_method=raw)
        except NotImplementedError:
            directory = self.builder.data_dir
            raise UserError(
                f"the data set '{self.name}' in {directory} is in {info.file_format.value} files, which have no "
                f"random access; `tfds convert_format --dataset_version_dir={directory} "
                "--out_file_format=array_record` converts them (it needs apache-beam)"
            ) from None
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"the data set '{self.name}' has no split '{split}'{where}; it has {', '.join(info.splits)}: "
                f"{words_of_tfds(error)}"
            ) from None
        if not len(records):
            raise UserError(f"the split '{split}' of '{self.name}'{where} is empty")
        return TfdsSplit(records, self._used, *self._keys, f"{info.full_name} {split}")


def _open(name: str, data_dir: str) -> Any:
    """The builder of a prepared data set."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError:
        base = name.split("/")[0].split(":")[0]
        root = epath.Path(data_dir) if data_dir else None
        prepared = [path.name for path in root.iterdir()] if root is not None and root.is_dir() else []
        close = difflib.get_close_matches(base, prepared + tfds.list_builders(), n=1)
        hint = f"did you mean '{close[0]}'? " if close and close[0] != base else ""
        place = f"in {data_dir}" if data_dir else "in TFDS's default folder"
        raise UserError(
            f"TFDS has no data set '{name}' (config.data.name), and none of this name and version is prepared {place}; "
            f"{hint}--config.data.data_dir=... sets another folder"
        ) from None
    except Exception as error:  # TFDS raises many kinds for a bad name, configuration or version
        if epath.Path(name).is_dir():
            raise UserError(
                f"config.data.name='{name}' is a folder, but config.data.source='tfds' needs the name of a data set: "
                "--config.data.source=folder reads the images below it"
            ) from None
        if name.startswith(("/", ".", "~")):
            raise UserError(f"there is no folder '{name}'") from None
        raise UserError(f"TFDS cannot open '{name}' (config.data.name): {words_of_tfds(error)}") from None
    if not builder.info.splits:
        out = f" --out={data_dir}" if data_dir else " --out=DIR"
        kind = {"imagenet2012": "imagenet --source=TARS"}.get(name, name)
        raise UserError(
            f"the data set '{name}' is not prepared in {builder.data_dir}; set --config.data.data_dir=... to its "
            f"folder, or prepare it: effv2 data prepare {kind}{out}"
        )
    return builder


def image_and_label(name: str, info: Any) -> tuple[str, str]:
    """The names of the image and the label among the features of a data set, which need not be prepared.

    Raises:
      UserError: it has no such features.
    """
    image_key, label_key = _keys(info.supervised_keys)
    features = info.features or {}
    if not _is_image(features, image_key) or label_key not in features or class_label(features[label_key]) is None:
        raise UserError(
            f"the data set '{name}' has no 8-bit image '{image_key}' with a class label '{label_key}'; "
            f"its features are {', '.join(sorted(features)) or 'none'}"
        )
    return image_key, label_key


def _keys(supervised_keys: Any) -> tuple[str, str]:
    """The names of the image and the label: TFDS's (input, target), if both are plain names."""
    if isinstance(supervised_keys, tuple) and all(isinstance(key, str) for key in supervised_keys[:2]):
        return supervised_keys[0], supervised_keys[1]
    return "image", "label"


def _is_image(features: Any, key: str) -> bool:
    """Whether a feature is an encoded image, or an array of 8-bit pixels, grey or RGB."""
    import tensorflow_datasets as tfds

    if key not in features:
        return False
    feature = features[key]
    if isinstance(feature, tfds.features.Image):
        return feature.np_dtype != np.float32  # TFDS hides their bits in the channels of a PNG
    if not isinstance(feature, tfds.features.Tensor) or feature.np_dtype != np.uint8:
        return False
    return len(feature.shape) == 2 or (len(feature.shape) == 3 and feature.shape[-1] in (1, 3))


def class_label(feature: Any) -> Any:
    """The ClassLabel of a feature that is one or a sequence of them, or None."""
    import tensorflow_datasets as tfds

    one = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return one if isinstance(one, tfds.features.ClassLabel) else None


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W], [H, W, 1] or [H, W, 3] as [H, W, 3]."""
    image = image[..., None] if image.ndim == 2 else image
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def words_of_tfds(error: BaseException) -> str:
    """What TFDS says, for the middle of a sentence: without the builder's arguments, which it puts before."""
    return one_line(re.sub(r'^Failed to construct dataset .*?\}": ', "", " ".join(str(error).split())))
