"""The data gate: stops a pipeline whose data is not fit to train on."""
