"""Topic pages (``topics/*.toml``): one per stream, everything that is particular to it.

``docs/topic-files.md`` describes the format. What :func:`load_page` returns is valid by construction.
"""

from streamproc.topic_pages.page import find_pages, load_page, load_pages, read_page

__all__ = ["find_pages", "load_page", "load_pages", "read_page"]
