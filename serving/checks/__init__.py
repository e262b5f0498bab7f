"""Checks that a candidate model can be served: TF Serving's loader, and test requests."""
