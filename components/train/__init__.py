"""Trains a model and exports it."""
