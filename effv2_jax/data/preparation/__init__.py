"""One-time preparation of data sets as ArrayRecord files: ImageNet's tars, folders of images, and TFDS data sets."""

__all__ = ["image_index", "imagenet_facts", "prepare", "prepare_tfds", "shards", "source_layout", "tar_index"]
