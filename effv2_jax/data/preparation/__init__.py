"""Data sets made once: ImageNet's tars, folders and TFDS data sets as ArrayRecord."""
