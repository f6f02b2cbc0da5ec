"""The sites that are visited: a shop, its blog and its documentation, with their pages."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from urllib.parse import quote_plus

from streamproc.generator.draws import Weighted, pick, popular_first

SHOP, BLOG, DOCS = (f"https://{name}.northwind.example" for name in ("www", "blog", "docs"))

_MATERIALS = [
    "oak",
    "walnut",
    "steel",
    "linen",
    "wool",
    "copper",
    "glass",
    "ceramic",
    "bamboo",
    "leather",
    "cork",
    "marble",
    "cotton",
    "brass",
]
_SHAPES = [
    "round",
    "square",
    "tall",
    "low",
    "folding",
    "nested",
    "curved",
    "slim",
    "wide",
    "hanging",
    "woven",
    "brushed",
]
_THINGS = [
    "lamp",
    "chair",
    "table",
    "shelf",
    "rug",
    "vase",
    "bowl",
    "clock",
    "mirror",
    "stool",
    "basket",
    "kettle",
    "tray",
    "hook",
    "bench",
    "screen",
]
_CATEGORIES = [
    "lighting",
    "seating",
    "tables",
    "storage",
    "textiles",
    "kitchen",
    "decor",
    "outdoor",
    "office",
    "kids",
    "bath",
    "sale",
]
_TOPICS = [
    "care-for",
    "choosing",
    "restoring",
    "arranging",
    "photographing",
    "cleaning",
    "packing",
    "upgrading",
    "recycling",
]
_TERMS = (
    "oak chair", "wool rug", "lampe für küche", "café table", "small shelf", "mesa redonda", "照明", "gift",
    "blue vase", "chair 45cm", "outdoor bench sale", "стул", "copper kettle", "kids' stool", "rug & runner",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """``cents``: its price. ``url``: its page. ``members``: of the events about it, JSON."""

    cents: int
    url: str
    members: str

    @classmethod
    def priced(cls, sku: str, cents: int, url: str) -> Product:
        """A product that costs so many cents."""
        return cls(cents, url, f'"sku":"{sku}","price":{decimal(cents)}')


def decimal(cents: int) -> str:
    """An amount of money, exactly."""
    return f"{cents // 100}.{cents % 100:02d}"


class Site:
    """Pages to visit, the popular ones more often. The same pages for the same seed."""

    def __init__(self, random: Random) -> None:
        names = [
            f"{shape}-{material}-{thing}" for thing in _THINGS for material in _MATERIALS for shape in _SHAPES
        ]
        products = [
            Product.priced(f"NW-{number:05d}", 500 + random.getrandbits(16), f"{SHOP}/products/{name}")
            for number, name in enumerate(names)
        ]
        products.sort(key=lambda _: random.getrandbits(64))
        articles = [
            f"{BLOG}/{2020 + n % 6}/{topic}-{thing}s" for n, topic in enumerate(_TOPICS) for thing in _THINGS
        ]
        self.products = popular_first(products)
        self.articles = popular_first(articles)
        self.guides = popular_first([f"{DOCS}/guide/{thing}-{n}" for thing in _THINGS for n in range(1, 6)])
        self.categories = popular_first([f"{SHOP}/c/{name}" for name in _CATEGORIES])
        self.terms = popular_first(_TERMS)
        self._other = Weighted(
            [f"{SHOP}/{page}" for page in ("", "about", "stores", "help/delivery", "help/returns", "jobs")],
            [80, 6, 8, 8, 5, 3],
        )

    def landing(self, random: Random) -> str:
        """A page that visitors arrive on."""
        draw = random.getrandbits(24) % 100
        if draw < 40:
            return self._other.draw(random)
        if draw < 60:
            return self.categories.draw(random)
        if draw < 80:
            return self.products.draw(random).url
        return self.articles.draw(random) if draw < 94 else self.guides.draw(random)

    def next_page(self, random: Random) -> str:
        """A page without a product that a visitor goes on to."""
        draw = random.getrandbits(24) % 100
        if draw < 45:
            return f"{self.categories.draw(random)}?page={1 + random.getrandbits(2)}"
        if draw < 65:
            return self.categories.draw(random)
        if draw < 80:
            return self._other.draw(random)
        return self.articles.draw(random) if draw < 94 else self.guides.draw(random)

    def results(self, term: str) -> str:
        """The shop's own search results."""
        return f"{SHOP}/search?q={quote_plus(term)}"


def section_of_page(random: Random) -> str:
    """Where on a page something was clicked."""
    return pick(random, ("menu", "hero", "footer", "related", "banner", "size-guide"))
