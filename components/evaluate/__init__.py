"""Evaluation of the exported SavedModel on the eval split, and the gate that blesses it."""
