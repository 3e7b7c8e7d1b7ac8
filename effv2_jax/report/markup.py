"""Parts of a page as HTML; every text that is not `Html` is escaped."""

import html
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is already HTML."""


def escape(value: Any) -> Html:
    """For the text of an element or a quoted attribute; a byte of a file name that is not UTF-8 becomes \\udcff."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "backslashreplace").decode()))


def section(title: str, content: str) -> Html:
    """A section with its heading; nothing if it has no content."""
    return Html(f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else "")


def table(headers: Iterable[Any], rows: Iterable[Sequence[Any]], kind: str = "") -> Html:
    """A table whose rows begin with their header; `kind` is its CSS class."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "\n".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return Html(
        f'<div class=scroll><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def paragraph(text: str) -> Html:
    """Small text in a pale colour."""
    return Html(f"<p class=pale>{escape(text)}</p>")


def swatch(color: str, text: str) -> Html:
    """An entry of a legend."""
    return Html(f'<span><i class=swatch style="background:{color}"></i>{escape(text)}</span>')
