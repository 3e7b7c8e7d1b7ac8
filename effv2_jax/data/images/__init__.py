"""Decoding, cropping and augmentation of one image."""

__all__ = ["crop", "decode", "ops", "randaugment"]
