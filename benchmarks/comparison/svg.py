"""What all drawings begin with."""

from __future__ import annotations

from html import escape

INK, FAINT, OURS_INK = "#24292f", "#d0d7de", "#0a7d4f"


def opened(title: str, width: int, height: int) -> list[str]:
    """An SVG of that many pixels, with its title on white; not closed."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
