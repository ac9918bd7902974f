"""Our docstrings as Markdown: what Griffe's reading of Google style does not know.

`Example:` stands before doctests that are not indented, which Markdown would take for quotations;
`Call arguments:` and `References:` are sections that Griffe would show as folded boxes, and
`Returns:` of a class, which tells what a call gives, is a section that it refuses.
"""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n\S.*)*", re.M)
_EXAMPLE = re.compile(r"^(Examples?):$", re.M)
_ENTRY = re.compile(r"^(?P<name>[*\w]+): ", re.M)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by Griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, of_class=obj.is_class)


def markdown(docstring: str, of_class: bool = False) -> str:
    """The docstring with doctests fenced and our own sections as bold titles."""
    text = _DOCTEST.sub(lambda run: f"```pycon\n{run[0]}\n```", docstring)
    text = _EXAMPLE.sub(r"**\1:**", text)
    for title in ("Call arguments", "References", *(("Returns",) if of_class else ())):
        section = re.compile(rf"^{title}:\n(?P<body>(?:    .*\n?|\n(?=    ))+)", re.M)
        text = section.sub(lambda found, title=title: _titled(title, found["body"]), text)
    return text


def _titled(title: str, body: str) -> str:
    text = re.sub(r"^    ", "", body, flags=re.M).rstrip()
    if title == "Call arguments":
        text = _ENTRY.sub(r"* `\g<name>`: ", text)
    return f"**{title}:**\n\n{text}\n\n"
