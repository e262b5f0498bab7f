"""Recipes by name: the modules of `trainer/recipes`, and those of other packages."""

import importlib
import types

from sigline.schemas import suggestions
from sigline.schemas.gate import Gate
from sigline.trainer.config.train import TrainConfig


def load_recipe(name: str) -> TrainConfig:
    """Returns the configuration of `trainer/recipes/NAME.py`, or of a module such as `a.recipe`.

    Raises:
        ValueError: If there is no such recipe; the message lists those that exist.
    """
    return recipe_module(name).config()


def load_gate(name: str) -> Gate:
    """Returns what a model of a recipe must reach before it is published; see `load_recipe`.

    Raises:
        ValueError: If there is no such recipe, or it has no gate.
    """
    module = recipe_module(name)
    if not hasattr(module, "gate"):
        raise ValueError(
            f"Recipe {name} has no gate() and cannot run as a pipeline. Received: name={name!r}. "
            "Add a function gate() to the recipe, or train it with `sigline train`."
        )
    return module.gate()


def recipe_module(name: str) -> types.ModuleType:
    """Returns `trainer/recipes/NAME.py`, or the module of a name with a dot in it.

    Its docstring is its run card. A module of another package is code that is run: a name with a
    dot must come from who runs the command, never from a model.

    Raises:
        ValueError: If there is no such recipe; the message lists those that exist.
    """
    # Recipes are found by their names, as those of other packages are.
    recipes = importlib.import_module("sigline.trainer.recipes")
    known = recipes.names()
    if name in known:
        return importlib.import_module(f"sigline.trainer.recipes.{name}")
    message = f"Unknown recipe. Received: name={name!r}. Known recipes: {', '.join(known)}"
    if not is_of_other_package(name):
        raise ValueError(f"{message}.{suggestions.did_you_mean(name, known)}")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{message}, and modules that can be imported; this one cannot: {error}. Is its "
            "package installed here?"
        ) from None
    if not hasattr(module, "config"):
        raise ValueError(f"Recipe {name} must have a function config(). Received: {module}")
    return module


def is_of_other_package(name: str) -> bool:
    """Returns whether a recipe's name is that of a module, such as `my_project.recipe`."""
    return "." in name and all(part.isidentifier() for part in name.split("."))
