"""Looking at data: counts, broken images, duplicates, augmented previews."""
