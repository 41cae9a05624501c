"""Choosing what is worth keeping of a collection: duplicates, quality, classes."""
