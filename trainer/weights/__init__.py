"""Weights of other projects: which tensor of theirs is which parameter of ours."""
