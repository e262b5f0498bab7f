"""Pipeline components: rules in plain Python, Beam transforms around them, TFX around those."""
