"""Checks of arguments that need none of the libraries that take long to import."""

import argparse
from pathlib import Path
from typing import NoReturn

from sigline.schemas import suggestions

# One of them is in a folder of sigline's weights, and of Hugging Face's.
_OF_WEIGHTS = ("parameters.safetensors", "config.json")


class Parser(argparse.ArgumentParser):
    """A parser that suggests the option or command that was meant."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message, as argparse does."""
        super().error(message + self._meant(message))

    def _meant(self, message: str) -> str:
        words = message.split()
        if message.startswith("unrecognized arguments:"):
            unknown = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
            known = [option for option in self._options() if option.startswith("--")]
            found = suggestions.did_you_mean(unknown[0], known) if unknown else ""
            return f".{found}" if found else ""
        if "invalid choice:" in message:
            received = message.partition("invalid choice:")[2].split("(choose from")
            name = received[0].strip().strip("'\"")
            choices = [part.strip().strip("'\"") for part in received[-1].rstrip(")").split(",")]
            found = suggestions.did_you_mean(name, choices)
            return f".{found}" if found else ""
        return ""

    def _options(self) -> list[str]:
        """Returns the options of this parser and of all commands below it."""
        names = []
        for action in self._actions:
            names += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    names += parser._options() if isinstance(parser, Parser) else []
        return names


def check_file(path: Path | None, option: str) -> None:
    """Refuses a path that leads to no file; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is not None and not path.is_file():
        kind = "a folder is there" if path.is_dir() else "there is no such file"
        raise ValueError(f"{option} must be a file; {kind}. Received: {option} {path}")


def check_folder(path: Path | None, option: str, *, holds: str = "") -> None:
    """Refuses a path that leads to no folder, or to one without a file of a pattern; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is None:
        return
    if not path.is_dir():
        kind = "a file is there" if path.exists() else "there is no such folder"
        raise ValueError(f"{option} must be a folder; {kind}. Received: {option} {path}")
    if holds and not any(path.glob(holds)):
        raise ValueError(f"{option} must be a folder that holds {holds}. Received: {option} {path}")


def check_absent(path: Path | None, option: str) -> None:
    """Refuses a path where something is already; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is not None and (path.exists() or path.is_symlink()):
        raise ValueError(f"{option} must not exist yet. Received: {option} {path}")


def check_there(path: Path | None, option: str) -> None:
    """Refuses a path where nothing is; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is not None and not path.exists():
        raise ValueError(f"{option} must be there. Received: {option} {path}")


def check_weights(path: Path, option: str) -> None:
    """Refuses what can be no weights.

    Raises:
        ValueError: With the option and the path.
    """
    check_there(path, option)
    is_file = path.is_file() and path.suffix == ".npz"
    if not is_file and not any((path / name).is_file() for name in _OF_WEIGHTS):
        raise ValueError(
            f"{option} must be a folder with {' or '.join(_OF_WEIGHTS)}, or an .npz of big_vision. "
            f"Received: {option} {path}"
        )


def positive(text: str) -> int:
    """Reads a whole number of at least 1, as the type of an option.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    number = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number


def port(text: str) -> int:
    """Reads the number of a port, 0 for a free one, as the type of an option.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    number = int(text) if text.strip().isdecimal() else -1
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535, not {text!r}")
    return number
