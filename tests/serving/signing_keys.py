"""Pairs of keys in files, as openssl writes them."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

_CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


def write(folder: Path, name: str, key: Any = "Ed25519") -> tuple[Path, Path]:
    """Writes a private and a public key: of a kind, or one that is at hand; returns the files."""
    if key == "Ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif isinstance(key, str):
        key = ec.generate_private_key(_CURVES[key]())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public
