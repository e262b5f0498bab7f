"""Checks who signed a version's manifest."""

import base64
import binascii
from pathlib import Path

from sigline.schemas import versions


class Verifier:
    """Knows the public keys of those who may publish."""

    def __init__(self, key_file: str | Path):
        """Reads a file of one or more Ed25519 public keys in PEM.

        Raises:
            ValueError: If it holds none, or others too.
        """
        try:
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric import ed25519
        except ImportError:
            raise ValueError("verify_key needs cryptography; install sigline[signing].") from None
        end = b"-----END PUBLIC KEY-----"
        blocks = [x + end for x in Path(key_file).read_bytes().split(end) if x.strip()]
        try:
            found = [serialization.load_pem_public_key(block.strip()) for block in blocks]
        except ValueError as error:
            raise ValueError(
                f"verify_key must be a PEM file of public keys. Received: {key_file}: {error}"
            ) from None
        keys = [key for key in found if isinstance(key, ed25519.Ed25519PublicKey)]
        if not keys or len(keys) != len(found):
            raise ValueError(f"verify_key must hold Ed25519 public keys. Received: {key_file}")
        self._keys = keys

    def check(self, directory: Path) -> None:
        """Raises ValueError unless one of the keys signed the manifest of a version.

        That its files are those of the manifest is for others to see.
        """
        from cryptography.exceptions import InvalidSignature

        try:
            manifest = (directory / versions.MANIFEST).read_bytes()
            signature = base64.b64decode((directory / versions.SIGNATURE).read_bytes().strip())
        except FileNotFoundError as error:
            raise ValueError(
                f"A version must be signed; it has no {Path(error.filename).name}. "
                f"Received: {directory}"
            ) from None
        except binascii.Error:
            signature = b""
            manifest = b""
        for key in self._keys:
            try:
                key.verify(signature, manifest)
            except InvalidSignature:
                continue
            return
        raise ValueError(
            f"A version must be signed by a key that is trusted. Received: {directory}"
        )
