"""Decoding, cropping and augmenting one image."""
