"""Extension of Griffe that converts docstrings to Markdown."""

import re
from typing import Any

import griffe

# Sections of items, each a name with a text, and sections of text.
ITEMS = ("Args", "Call arguments", "Raises")
TEXTS = ("Returns", "Example", "Examples", "Reference", "References", "Yields")


class MarkdownDocstrings(griffe.Extension):
    """Converts sections in Google's style to headings and lists, and examples to code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Converts the docstring of an object. Griffe calls this for each object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Returns Markdown that shows a docstring as Keras's site does."""
    parts = re.split(rf"^({'|'.join(ITEMS + TEXTS)}):[ ]*$", docstring, flags=re.MULTILINE)
    shown = [as_code(parts[0])]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        shown.append(f"**{title}**\n")
        shown.append(as_list(body) if title in ITEMS else as_code(dedented(body)))
    return "\n".join(shown)


def dedented(body: str) -> str:
    """Removes the indentation of a section's first paragraph. The rest has none."""
    return re.sub(r"^    (?! {4})", "", body, flags=re.MULTILINE)


def as_list(body: str) -> str:
    """Converts the items `    name: text` to a list. Lines without indentation are text."""
    lines = []
    for line in body.strip("\n").split("\n"):
        item = re.match(r"    ([*\w`][^:]*): (.*)", line)
        if item:
            name = item[1].replace("*", "\\*")
            lines.append(f"- **{name}**: {item[2]}")
        elif line.startswith("    "):
            lines.append("  " + line.strip())
        else:
            lines.append(line)
    return as_code("\n".join(lines) + "\n")


def as_code(text: str) -> str:
    """Puts doctests into fences. Each doctest ends at an empty line."""
    lines: list[str] = []
    is_open = False
    for line in [*text.split("\n"), ""]:
        if line.startswith(">>>") and not is_open:
            lines.append("```pycon")
            is_open = True
        elif is_open and not line.strip():
            lines.append("```")
            is_open = False
        lines.append(line)
    return "\n".join(lines[:-1])
