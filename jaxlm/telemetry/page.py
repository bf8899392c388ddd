# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: page.css and page.js inlined, nothing fetched.

Standard library only.
"""

from pathlib import Path

from jaxlm.core.canonical import write_atomic
from jaxlm.telemetry.readable import markup


def page(title: str, body: str) -> str:
    """A whole document; `title` is text, `body` is HTML."""
    here = Path(__file__).parent
    css, js = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{markup(title)}</title>\n<style>\n{css}</style></head>\n"
        f"<body>\n{body}\n<script>\n{js}</script></body></html>\n"
    )


def write_page(path: Path, html: str) -> None:
    """Replaces the file whole, so that a browser never loads half a page."""
    write_atomic(path, html.encode())
