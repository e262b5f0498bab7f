"""Seeded scenes with captions: embedded data for tests, benchmarks and first steps."""
