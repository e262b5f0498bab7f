"""Fetches the images of tables of URLs into WebDataset shards, which ingest reads."""
