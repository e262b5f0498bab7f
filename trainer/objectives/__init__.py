"""What a model learns: the losses that a configuration asks for, and teachers."""
