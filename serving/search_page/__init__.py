"""The page that searches an index."""
