"""Faces: readers, shards, batches."""
