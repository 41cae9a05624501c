"""Triplets by composing: cut-outs pasted on photos with their shadows and reflections, so that the clean plate is known exactly."""
