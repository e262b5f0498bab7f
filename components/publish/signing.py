"""Signs the manifests of versions, so that a server can refuse what others put into its folder.

Ed25519, by the cryptography library. Keys are PEM files, as `openssl genpkey -algorithm ed25519`
and `openssl pkey -pubout` write them.
"""

import base64
from collections.abc import Callable
from pathlib import Path

Sign = Callable[[bytes], bytes]


def signer(key_file: str | Path) -> Sign:
    """Returns what signs a manifest: its bytes give a line of text.

    Args:
        key_file: Private Ed25519 key, PEM without a password.

    Raises:
        ValueError: If the file holds no such key.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ValueError("signing_key needs cryptography; install sigline[signing].") from None
    try:
        key = serialization.load_pem_private_key(Path(key_file).read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(
            f"signing_key must be a PEM file without a password. Received: {key_file}: {error}"
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ValueError(f"signing_key must be an Ed25519 key. Received: {key_file}")
    return lambda content: base64.b64encode(key.sign(content)) + b"\n"
