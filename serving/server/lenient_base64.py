"""Base64 decoding as lenient as TF Serving's (`absl::Base64Unescape`)."""

import base64

_SPACES = b" \t\n\v\f\r"
_PADDING = b"=."


def decode(text: str) -> bytes:
    """Returns the bytes of a base64 text, which may have white space, or lack padding.

    Raises:
        ValueError: If it has other characters, such as those of the URL-safe alphabet, or a wrong
            length or padding.
    """
    characters = text.encode().translate(None, _SPACES)
    content = characters.rstrip(_PADDING)
    padding, missing = len(characters) - len(content), -len(content) % 4
    if missing == 3:
        raise ValueError(
            f"{len(content)} characters do not make a whole number of bytes; is the text cut off?"
        )
    if padding not in (0, missing):
        raise ValueError(
            f"there must be {missing} characters of padding, or none. Received: {padding}"
        )
    return base64.b64decode(content + b"=" * missing, validate=True)
