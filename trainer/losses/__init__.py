"""Losses over pairs as pure functions of tensors; they know no configuration."""
