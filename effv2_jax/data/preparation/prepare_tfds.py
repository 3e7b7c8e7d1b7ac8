"""A data set that TFDS downloads and prepares by itself, in files with random access."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from effv2_jax.data.preparation.prepare import INFO, Prepared
from effv2_jax.data.sources.tfds import class_label, image_and_label, words_of_tfds
from effv2_jax.errors import Unavailable, UserError, is_disk_full_or_readonly, require
from effv2_jax.files import is_remote, write_folder


def prepare_by_tfds(name: str, out: epath.PathLike, source: str = "") -> Prepared:
    """Downloads and prepares a data set as TFDS does it, in files with random access.

    Args:
      name: of the data set in TFDS.
      out: a local or gs:// folder; for gs:// the data set is first written to a temporary folder.
      source: the folder of the files that TFDS requires to be downloaded by hand.

    Raises:
      UserError: an unknown name, configuration or version; no image with a class label in it; TensorFlow or a manual
        download is missing; the data set exists already in files without random access.
      Unavailable: it cannot be downloaded.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    with contextlib.ExitStack() as stack:
        remote = is_remote(out)
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if remote else os.path.abspath(out)
        config = tfds.download.DownloadConfig(manual_dir=source or None, try_download_gcs=False)
        builder = _builder(name, folder)
        image_and_label(name, builder.info)  # before it is downloaded
        final = epath.Path(out) / os.path.relpath(builder.data_dir, folder)
        try:
            if not (final / INFO).exists():
                require("tensorflow", "tensorflow", f"preparing '{name}' by TFDS")
                builder.download_and_prepare(download_config=config, file_format="array_record")
        except AssertionError as error:  # how TFDS reports that files are missing
            raise UserError(
                f"TFDS cannot prepare '{name}': {words_of_tfds(error)}; pass their folder as --source=DIR"
            ) from None
        except (ImportError, NonMatchingChecksumError) as error:  # a missing package that only this data set needs
            raise UserError(f"TFDS cannot prepare '{name}': {words_of_tfds(error)}") from None
        except (OSError, tfds.download.DownloadError) as error:
            if is_disk_full_or_readonly(error):
                raise UserError(f"'{folder}' cannot be written: {words_of_tfds(error)}") from None
            raise Unavailable(f"TFDS cannot prepare '{name}' now: {words_of_tfds(error)}") from None
        if remote and not (final / INFO).exists():
            write_folder(Path(builder.data_dir), final, last=INFO)
    info = tfds.builder_from_directory(str(final)).info
    formats = sorted(known.value for known in info.available_file_formats())
    if "array_record" not in formats:
        raise UserError(
            f"'{final}' already holds the data set, in {' and '.join(formats)} files, which have no random access; "
            "choose another --out"
        )
    _, label = image_and_label(name, info)
    classes = class_label(info.features[label]).num_classes
    examples = {split: part.num_examples for split, part in info.splits.items()}
    return Prepared(name, str(final), classes, examples, [], [], [])


def _builder(name: str, folder: str) -> Any:
    """TFDS's builder of a data set, prepared or not."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=folder, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError:
        raise UserError(
            f"'{name}' is neither imagenet, imagenet21k, folder nor a data set of TFDS; "
            "'effv2 data prepare folder --source=DIR' takes any folder of images"
        ) from None
    except OSError as error:
        raise Unavailable(f"TFDS cannot open '{name}' now: {words_of_tfds(error)}") from None
    except Exception as error:  # TFDS raises many kinds for a bad name, configuration or version
        raise UserError(f"TFDS cannot open '{name}': {words_of_tfds(error)}") from None
