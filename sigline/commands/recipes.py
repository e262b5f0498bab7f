"""`sigline recipes`: lists the recipes, or shows one with its settings."""

import argparse


def add_parser(commands) -> None:
    """Adds the command."""
    recipes = commands.add_parser("recipes", help="list the recipes, or show one with its settings")
    recipes.add_argument("name", nargs="?", help="recipe to show")
    recipes.set_defaults(run=_recipes)


def _recipes(arguments: argparse.Namespace) -> int:
    from sigline.trainer import config as trainer_config
    from sigline.trainer import recipes

    if arguments.name is not None:
        module = trainer_config.recipe_module(arguments.name)
        print(f"{str(module.__doc__).strip()}\n\n{module.config().to_json()}")
        return 0
    names = recipes.names()
    for name in names:
        card = str(trainer_config.recipe_module(name).__doc__).strip()
        print(f"{name:{max(map(len, names))}}  {card.splitlines()[0]}")
    return 0
