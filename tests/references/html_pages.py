"""Pages of reports, as tests of every report read them."""

import copy
import html.parser

HOSTILE = "<script>alert(1)</script>\"'& שלום"


class Tags(html.parser.HTMLParser):
    """Collects tags with the names of their attributes, and all texts and values."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.values = [], "", set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))
        self.values |= {value for _, value in attrs}

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        self.text += data


def paths(value, path=()):
    """Yields the ways to all names of dictionaries."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from paths(inner, (*path, name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from paths(inner, (*path, i))


def without(content, path):
    """Returns a copy of content that lacks one name."""
    lacking = copy.deepcopy(content)
    holder = lacking
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    return lacking
