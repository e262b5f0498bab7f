"""Pipeline components: rules in plain Python, Beam transforms around them, TFX wiring around those."""
