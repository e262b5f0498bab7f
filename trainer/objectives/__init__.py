"""What a model learns by: objectives, and the frozen models that they ask."""
