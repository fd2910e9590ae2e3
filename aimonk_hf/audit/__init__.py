"""Checks of a data set: images, labels, duplicates, signal, suspect labels."""
