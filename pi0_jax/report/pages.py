"""Makes HTML pages of one style, and writes them so that they appear only when they are whole.

Text from outside is escaped, unless it is `Html`.
"""

import contextlib
import html
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pi0_jax.errors import InputError
from pi0_jax.files import new_path

PAGE = "index.html"
_DOCUMENT = """<!doctype html><meta charset=utf-8>{head}<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222 }}
h1 {{ font-size: 1.5em }} h2 {{ font-size: 1.15em; margin-top: 2em }}
table {{ border-collapse: collapse }}
td, th {{ padding: .2em .9em .2em 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }}
td.n {{ text-align: right }} table {{ margin: 1em 0 }} img {{ max-width: 100% }} td img {{ max-width: none }}
figure {{ display: inline-block; margin: 0 1em 1em 0; vertical-align: top }}
figcaption {{ font-size: .85em; color: #555 }} a {{ color: #1f5fa8 }} pre {{ white-space: pre-wrap }}
.wrong, .look, .fine {{ padding: .3em .8em; margin: .3em 0; border-left: .4em solid }}
.wrong {{ border-color: #c02020; background: #fdeaea }} .look {{ border-color: #d9a400; background: #fdf6e0 }}
.fine {{ border-color: #2a8f4d; background: #eaf6ee }}
</style><h1>{title}</h1>
{body}
"""


class Html(str):
    """Is markup that is written as it is."""


def escaped(value: Any) -> Html:
    """Returns `value` as escaped text, unless it is Html already."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def document(title: str, body: Sequence[str], head: str = "") -> str:
    """Returns a whole page; `title` is also its heading."""
    return _DOCUMENT.format(title=escaped(title), body="\n".join(body), head=head)


def section(title: str, body: str, note: str = "") -> str:
    """Returns a section: its title, a note that is escaped, and a body that is not."""
    return f"<h2>{escaped(title)}</h2>\n" + (f"<p>{escaped(note)}</p>\n" if note else "") + body


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table; numbers stand on the right, and an empty header is left out."""

    def cell(value: Any) -> str:
        if isinstance(value, int | float):
            return f"<td class=n>{value:{',' if isinstance(value, int) else '.4g'}}</td>"
        return f"<td>{escaped(value)}</td>"

    lines = ["".join(f"<th>{escaped(name)}</th>" for name in header)] if header else []
    lines += ["".join(map(cell, row)) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def picture(source: str, alternative: str, caption: str = "", width: int | None = None) -> Html:
    """Returns a picture.

    Args:
        source: the file, relative to the page.
        alternative: what is said in place of the picture.
        caption: text below it, if any.
        width: CSS pixels; None takes the image's own width.
    """
    size = "" if width is None else f" width={width}"
    image = f'<img src="{escaped(source)}" alt="{escaped(alternative)}"{size}>'
    below = f"<figcaption>{escaped(caption)}</figcaption>"
    return Html(f"<figure>{image}{below}</figure>" if caption else image)


@contextlib.contextmanager
def new_pages(output: Path, mark: str) -> Iterator[Path]:
    """Gives a folder to fill with pages, and moves its files to `output` at the end.

    The files are moved when the block ends without an error, and PAGE comes last. Files that are in
    `output` already stay, unless they have the name of a new file.

    Args:
        output: where the pages go. It is made if need be.
        mark: text that the new PAGE holds, and that an older PAGE must hold to be replaced.

    Raises:
        InputError: the PAGE that is there lacks the mark, or `output` cannot be written.
    """
    page = output / PAGE
    if page.exists() and mark not in page.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{page}: expected no page, or an older one of this kind, found another")
    new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        workspace = new_path(output, ".writing-")
        workspace.mkdir()
    except OSError as error:
        found = f"expected a folder that can be written, found: {error.strerror}"
        raise InputError(f"{output}: {found}") from error
    try:
        yield workspace
        for file in sorted(workspace.rglob("*"), key=lambda file: file == workspace / PAGE):
            place = output / file.relative_to(workspace)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(file, place)
    finally:
        shutil.rmtree(workspace)
        if new and not any(output.iterdir()):
            output.rmdir()
