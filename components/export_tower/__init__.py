"""Exports the image tower that a recipe freezes, for its images to be embedded once."""
