"""Signs versions and verifies signatures, so that a server refuses versions of strangers.

The kind of a key decides the format:

- A key of an elliptic curve (P-256, P-384, P-521) signs all files of a version in the OpenSSF model
  signing format, by its library: `model.sig`, which `model_signing verify key` checks too.
- An Ed25519 key, which that format lacks, signs the manifest, which has the digest of every file:
  `sigline_manifest.sig`, the signature in Base64.

Keys are PEM files, as `openssl genpkey` and `openssl pkey -pubout` write them.
"""

import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sigline.schemas import versions

_PUBLIC_END = b"-----END PUBLIC KEY-----"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_KINDS = "Ed25519, or of the elliptic curve P-256, P-384 or P-521"
# Largest signature that is read. One that names a hundred thousand files has 20 MB.
_MAX_SIGNATURE_BYTES = 64 * 2**20


class Signer:
    """Signs versions with one private key.

    Attributes:
        file: Name of the signature in a version's folder.
    """

    def __init__(self, key_file: str | Path):
        """Reads a private key.

        Args:
            key_file: PEM without a password: Ed25519, or P-256, P-384 or P-521.

        Raises:
            ValueError: If the file holds no such key.
        """
        serialization, ed25519, _ = _cryptography("signing_key")
        from cryptography.exceptions import UnsupportedAlgorithm

        try:
            key = serialization.load_pem_private_key(Path(key_file).read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(
                f"signing_key must be a PEM file without a password. Received: {key_file}: {error}"
            ) from None
        self._verifier = Verifier.of_keys(
            [key.public_key()], f"signing_key must be {_KINDS}", key_file
        )
        self._key, self._key_file = key, Path(key_file)
        self._signs_manifest = isinstance(key, ed25519.Ed25519PrivateKey)
        self.file = versions.SIGNATURE if self._signs_manifest else versions.MODEL_SIGNATURE

    def sign(self, folder: Path, manifest: str) -> bytes:
        """Returns the signature of a version, to be stored as `file`.

        Args:
            folder: All files of the version, with its manifest.
            manifest: The expected manifest. The signature is for the model that was read, even if
                others can write to the folder.

        Raises:
            RuntimeError: If the folder does not match the manifest.
        """
        if self._signs_manifest:
            return base64.b64encode(self._key.sign(manifest.encode())) + b"\n"
        library = _model_signing("signing_key")
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / versions.MODEL_SIGNATURE
            config = library.signing.Config().use_elliptic_key_signer(private_key=self._key_file)
            hashing = library.hashing.Config().set_ignored_paths(
                paths=[versions.SIGNATURE, versions.MODEL_SIGNATURE], ignore_git_paths=False
            )
            config.set_hashing_config(hashing).sign(folder, path)
            signature = path.read_bytes()
        if _covered(signature) != _expected(manifest):
            raise RuntimeError(f"{folder} changed while it was signed.")
        return signature

    def has_signed(self, folder: Path) -> bool:
        """Returns whether a version has a signature by this key that matches its files."""
        try:
            self._verifier.check(folder)
        except ValueError:
            return False
        return True


class Verifier:
    """Verifies signatures by the public keys of those who may publish."""

    def __init__(self, key_file: str | Path):
        """Reads a file of one or more public keys in PEM.

        Args:
            key_file: Public keys: Ed25519, P-256, P-384 or P-521, also several kinds.

        Raises:
            ValueError: If it holds no key, or a key of another kind.
        """
        serialization, _, _ = _cryptography("verify_key")
        parts = Path(key_file).read_bytes().split(_PUBLIC_END)
        blocks = [part + _PUBLIC_END for part in parts if part.strip()]
        try:
            keys = [serialization.load_pem_public_key(block.strip()) for block in blocks]
        except ValueError as error:
            raise ValueError(
                f"verify_key must be a PEM file of public keys. Received: {key_file}: {error}"
            ) from None
        self._take(keys, f"verify_key must hold public keys, {_KINDS}", key_file)

    @classmethod
    def of_keys(cls, keys: Sequence[Any], expectation: str, source: str | Path) -> "Verifier":
        """Returns a verifier for public keys of the cryptography library.

        Args:
            keys: The keys.
            expectation: Beginning of the error message if there is no key, or another kind.
            source: Where the keys are from, for that message.

        Raises:
            ValueError: If there is no key, or one of another kind.
        """
        verifier = cls.__new__(cls)
        verifier._take(keys, expectation, source)
        return verifier

    def _take(self, keys: Sequence[Any], expectation: str, source: str | Path) -> None:
        serialization, ed25519, ec = _cryptography("verify_key")
        self._manifest_keys = [x for x in keys if isinstance(x, ed25519.Ed25519PublicKey)]
        curves = [x for x in keys if isinstance(x, ec.EllipticCurvePublicKey)]
        self._model_keys = [
            x.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            for x in curves
            if x.curve.name in _CURVES
        ]
        if not keys or len(self._manifest_keys) + len(self._model_keys) != len(keys):
            raise ValueError(f"{expectation}. Received: {source}")
        if self._model_keys:
            _model_signing("verify_key")

    def check(self, directory: Path) -> None:
        """Raises ValueError unless one of the keys signed a version.

        An Ed25519 key signs only the manifest. That the files match it must be checked separately.
        """
        if not (directory / versions.MANIFEST).is_file():
            raise ValueError(
                f"A version must be signed; it has no {versions.MANIFEST}. Received: {directory}"
            )
        names = [versions.SIGNATURE] * bool(self._manifest_keys)
        names += [versions.MODEL_SIGNATURE] * bool(self._model_keys)
        there = [name for name in names if _is_small_file(directory / name)]
        if not there:
            raise ValueError(
                f"A version must be signed; it has no {' or '.join(names)}. Received: {directory}"
            )
        if versions.SIGNATURE in there and self._signed_manifest(directory):
            return
        reason = ""
        if versions.MODEL_SIGNATURE in there:
            reason = self._why_not_signed(directory)
            if not reason:
                return
        raise ValueError(
            f"A version must be signed by a key that is trusted. Received: {directory}{reason}"
        )

    def _signed_manifest(self, directory: Path) -> bool:
        from cryptography.exceptions import InvalidSignature

        manifest = (directory / versions.MANIFEST).read_bytes()
        try:
            signature = base64.b64decode((directory / versions.SIGNATURE).read_bytes().strip())
        except binascii.Error:
            return False
        for key in self._manifest_keys:
            try:
                key.verify(signature, manifest)
            except InvalidSignature:
                continue
            return True
        return False

    def _why_not_signed(self, directory: Path) -> str:
        """Returns why no key of an elliptic curve signed all files; empty if one did."""
        path = directory / versions.MODEL_SIGNATURE
        reason = ""
        for key in self._model_keys:
            reason = _why_not_by(key, directory, path)
            if not reason:
                break
        return reason


def _why_not_by(key: bytes, directory: Path, signature: Path) -> str:
    library = _model_signing("verify_key")
    with tempfile.NamedTemporaryFile(suffix=".pub") as public:
        public.write(key)
        public.flush()
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=public.name)
        try:
            config.verify(directory, signature)
            # Other tools may write signatures that cover only some of the files.
            manifest = (directory / versions.MANIFEST).read_text()
            missing = _expected(manifest).items() - _covered(signature.read_bytes()).items()
        # A hostile file can make the library raise anything, so that every exception is a refusal.
        except Exception as error:
            return f": {type(error).__name__}: {str(error) or 'it is by another key'}"
    return f": {versions.MODEL_SIGNATURE} leaves out {min(missing)[0]}" if missing else ""


def _expected(manifest: str) -> dict[str, str]:
    """Returns the SHA-256 by name of the files that a signature must cover, by the manifest."""
    own = hashlib.sha256(manifest.encode()).hexdigest()
    return {**json.loads(manifest)["files"], versions.MANIFEST: own}


def _covered(signature: bytes) -> Mapping[str, str]:
    """Returns the SHA-256 by name of the files that a signature names, if it is one of files."""
    payload = base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"])
    resources = json.loads(payload)["predicate"]["resources"]
    return {item["name"]: item["digest"] for item in resources if item["algorithm"] == "sha256"}


def _is_small_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_SIGNATURE_BYTES


def _cryptography(argument: str) -> tuple[Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    except ImportError:
        raise ValueError(f"{argument} needs cryptography; install sigline[signing].") from None
    return serialization, ed25519, ec


def _model_signing(argument: str) -> Any:
    try:
        import model_signing
    except ImportError:
        raise ValueError(
            f"{argument} of an elliptic curve needs model-signing; install sigline[signing]."
        ) from None
    return model_signing
