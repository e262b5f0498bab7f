"""Ingest: from image-text sources to validated, split and sharded records."""
