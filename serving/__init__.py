"""Serving of exported models: checks, an embedded server and a client."""
