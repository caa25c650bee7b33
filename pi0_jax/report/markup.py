"""Makes the HTML of reports: one style, sections and tables.

Text from outside is escaped, unless it is `Html`.
"""

import html
from collections.abc import Sequence
from typing import Any

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse }
td, th { padding: .2em .9em .2em 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.n { text-align: right } table { margin: 1em 0 } img { max-width: 100% } td img { max-width: none }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top }
figcaption { font-size: .85em; color: #555 } a { color: #1f5fa8 } pre { white-space: pre-wrap }
.wrong, .look, .fine { padding: .3em .8em; margin: .3em 0; border-left: .4em solid }
.wrong { border-color: #c02020; background: #fdeaea } .look { border-color: #d9a400; background: #fdf6e0 }
.fine { border-color: #2a8f4d; background: #eaf6ee }
"""


class Html(str):
    """Is markup that is written as it is."""


def escaped(value: Any) -> Html:
    """Returns `value` as escaped text, unless it is Html already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def document(title: str, body: str, head: str = "") -> str:
    """Returns a whole page; `title` is also its heading."""
    text = escaped(title)
    return f"<!doctype html><meta charset=utf-8>{head}<title>{text}</title><style>{_CSS}</style><h1>{text}</h1>\n{body}\n"


def section(title: str, body: str, note: str = "") -> str:
    """Returns a section: its title, a note that is escaped, and a body that is not."""
    return f"<h2>{escaped(title)}</h2>\n" + (f"<p>{escaped(note)}</p>\n" if note else "") + body


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table; numbers stand on the right, and a header of empty names is left out."""

    def cell(value: Any) -> str:
        if isinstance(value, int | float):
            return f"<td class=n>{value:{',' if isinstance(value, int) else '.4g'}}</td>"
        return f"<td>{escaped(value)}</td>"

    head = (
        f"<tr>{''.join(f'<th>{escaped(name)}</th>' for name in header)}</tr>" if any(header) else ""
    )
    return (
        f"<table>{head}"
        + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
        + "</table>"
    )


def picture(source: str, alternative: str, caption: str = "", width: int | None = None) -> Html:
    """Returns a picture, with a caption if there is one.

    Args:
        source: the file, relative to the page.
        alternative: what is said in place of the picture.
        caption: text below it.
        width: CSS pixels; None takes the image's own width.
    """
    size = "" if width is None else f" width={width}"
    image = f'<img src="{escaped(source)}" alt="{escaped(alternative)}"{size}>'
    return Html(
        f"<figure>{image}<figcaption>{escaped(caption)}</figcaption></figure>" if caption else image
    )
