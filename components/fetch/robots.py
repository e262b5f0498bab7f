"""The X-Robots-Tag header, by which sites forbid to take their images.

It is honoured as img2dataset does; the crawler's own text about it is at
https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag.
"""

import re
from collections.abc import Iterable

# Directives of X-Robots-Tag with a value: the colon after them does not end a crawler's name.
_VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
# Names of crawlers; dates, which hold colons too, do not match.
_CRAWLER = re.compile(r"[a-z*][a-z0-9_.-]*")


def opted_out(values: Iterable[str], token: str, directives: Iterable[str]) -> str | None:
    """Returns the first directive of X-Robots-Tag headers that forbids to take an image.

    Args:
        values: Values of the headers: directives, or `crawler: directives`, separated by commas.
        token: The crawler that is asking.
        directives: Those that forbid it.
    """
    forbidden = {name.lower() for name in directives}
    for value in values:
        addressed = True
        for item in value.lower().split(","):
            name, colon, rest = (part.strip() for part in item.partition(":"))
            if colon and name not in _VALUED and _CRAWLER.fullmatch(name):
                # A crawler's name applies to all directives up to the next name.
                addressed, name = name in (token.lower(), "*"), rest.partition(":")[0].strip()
            # The directive `none` stands for `noindex` and `nofollow`.
            if addressed and (name in forbidden or (name == "none" and "noindex" in forbidden)):
                return name
    return None
