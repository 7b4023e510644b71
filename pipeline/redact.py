"""The one place that takes secrets out of text before it is shown or stored."""

import re


def redacted(text: str) -> str:
    """Text without the passwords and the query strings (often signatures) of the URLs in it."""
    text = re.sub(r"://[^/?#\s'\"]+@", "://", text)  # to the last @: passwords may hold one
    return re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\"]*", r"\1?...", text)
