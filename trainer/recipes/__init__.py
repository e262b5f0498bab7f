"""Recipes: one small file each, found by name; adding one needs no registration."""

import pkgutil


def names() -> list[str]:
    """Returns the names of all recipes, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
