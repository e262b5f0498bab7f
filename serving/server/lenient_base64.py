"""Base64 as TF Serving reads it (`absl::Base64Unescape`)."""

import base64

_SPACES = b" \t\n\v\f\r"
_PADDING = b"=."


def decode(text: str) -> bytes:
    """Returns the bytes of a base64 text; it may have line breaks and blanks, or no padding.

    Raises:
        ValueError: If it has other characters, as those of the URL-safe alphabet, or the wrong
            length or padding.
    """
    characters = text.encode().translate(None, _SPACES)
    content = characters.rstrip(_PADDING)
    padding, missing = len(characters) - len(content), -len(content) % 4
    if missing == 3:
        raise ValueError(f"{len(content)} characters are no whole number of bytes")
    if padding not in (0, missing):
        raise ValueError(f"{padding} characters of padding in place of {missing}")
    return base64.b64decode(content + b"=" * missing, validate=True)
