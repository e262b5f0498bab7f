"""Chooses the pairs to train on: by similarity, by balance, by nearness to a target."""
