"""Serves a candidate and asks it, before it is published."""
