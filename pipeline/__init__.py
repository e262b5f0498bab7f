"""Wiring of the components into TFX pipelines, and what runs them."""
