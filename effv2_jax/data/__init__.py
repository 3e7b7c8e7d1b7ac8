"""Input: sources, decoding, augmentation and batches."""
