"""Whether a client asks for a page (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

_HTML = "text/html"
# The ranges that JSON is in, the most specific first.
_JSON_RANGES = ("application/json", "application/*", "*/*")
# Browsers send some 150 characters.
_LONGEST = 1024
# The RFC wants a digit before the point, which some clients leave out.
_WEIGHT = re.compile(r"(?:0(?:\.\d{0,3})?|\.\d{1,3}|1(?:\.0{0,3})?)")


def prefers_page(accept: str) -> bool:
    """Whether a client names text/html and likes it better than JSON, as browsers do.

    Of two weights that are equal, that of the range that is more specific wins; between the two types themselves JSON
    does. Clients that name neither, such as curl and probes, prefer JSON.

    Args:
        accept: the values of the header Accept, joined by commas.
    """
    if len(accept) > _LONGEST:
        return False
    weights = dict(_read_ranges(accept.lower()))
    html = weights.get(_HTML, 0.0)
    named = next((name for name in _JSON_RANGES if name in weights), None)
    if html == 0 or named is None:
        return html > 0
    return html > weights[named] or (html == weights[named] and named != _JSON_RANGES[0])


def _read_ranges(accept: str) -> Iterator[tuple[str, float]]:
    """The ranges of media types and their weights; a range with a malformed weight is left out."""
    for item in accept.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        if name and _WEIGHT.fullmatch(weight):
            yield name, float(weight)
