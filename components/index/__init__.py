"""Embeds a corpus and makes it searchable by texts and by images."""
