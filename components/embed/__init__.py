"""Embeds the images of records once, for training that does not change the image tower."""
