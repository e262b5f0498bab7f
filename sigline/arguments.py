"""Checks of command line arguments, without any import that takes long."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from sigline.schemas import suggestions

# Files of which a folder of weights has one: sigline's own, and Hugging Face's.
_WEIGHT_FILES = ("parameters.safetensors", "config.json")


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the option or command that was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses arguments; a command itself refuses those that it does not know.

        argparse leaves that to the parser of all commands, which knows the options of none.
        """
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and not self._has_commands():
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _has_commands(self) -> bool:
        return any(isinstance(action, argparse._SubParsersAction) for action in self._actions)

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message, as argparse does."""
        super().error(message + self._suggestion(message))

    def _suggestion(self, message: str) -> str:
        """Returns a sentence to append to an error of argparse; empty without a near name."""
        words = message.split()
        if message.startswith("unrecognized arguments:"):
            unknown = [word.partition("=")[0] for word in words[2:] if word.startswith("--")]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            suggestion = suggestions.did_you_mean(unknown[0], known) if unknown else ""
            return f".{suggestion}" if suggestion else ""
        if "invalid choice:" in message:
            received = message.partition("invalid choice:")[2].split("(choose from")
            name = received[0].strip().strip("'\"")
            choices = [part.strip().strip("'\"") for part in received[-1].rstrip(")").split(",")]
            suggestion = suggestions.did_you_mean(name, choices)
            return f".{suggestion}" if suggestion else ""
        return ""


def check_file(path: Path | None, option: str) -> None:
    """Checks that a path is that of a file; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is not None and not path.is_file():
        kind = "a folder is there" if path.is_dir() else "there is no such file"
        raise ValueError(f"{option} must be a file; {kind}. Received: {option} {path}")


def check_folder(path: Path | None, option: str, *, holds: str = "") -> None:
    """Checks that a path is a folder, with a file that matches a pattern if `holds`; None passes.

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
    """Checks that nothing exists at a path; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is not None and (path.exists() or path.is_symlink()):
        raise ValueError(
            f"{option} must not exist yet; choose another path, or move it away. "
            f"Received: {option} {path}"
        )


def check_exists(path: Path | None, option: str) -> None:
    """Checks that a file or folder exists at a path; None passes.

    Raises:
        ValueError: With the option and the path.
    """
    if path is not None and not path.exists():
        raise ValueError(
            f"{option} must exist; there is no such file or folder. Received: {option} {path}"
        )


def check_weights(path: Path, option: str) -> None:
    """Checks that a path can be that of weights.

    Raises:
        ValueError: With the option and the path.
    """
    check_exists(path, option)
    is_file = path.is_file() and path.suffix == ".npz"
    if not is_file and not any((path / name).is_file() for name in _WEIGHT_FILES):
        raise ValueError(
            f"{option} must be a folder with {' or '.join(_WEIGHT_FILES)}, or an .npz file of "
            f"big_vision. Received: {option} {path}"
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
