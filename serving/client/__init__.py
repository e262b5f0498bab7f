"""The client of sigline's server and of TF Serving; these names are the public ones."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigline.serving.client.client import AsyncClient, Client, image_files, passed_over
    from sigline.serving.client.transport import ClientTls, Options, RequestError

__all__ = [
    "AsyncClient",
    "Client",
    "ClientTls",
    "Options",
    "RequestError",
    "image_files",
    "passed_over",
]
_TRANSPORT = ("ClientTls", "Options", "RequestError")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: gRPC and NumPy take a while to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "transport" if name in _TRANSPORT else "client"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
