"""The towers as Keras layers."""
