"""Publishing of blessed models as version directories that appear whole or not at all."""
