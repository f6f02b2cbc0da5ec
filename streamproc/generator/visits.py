"""What visitors do: each visit is a generator of events, in order."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from random import Random

from streamproc.generator.arrivals import arrive
from streamproc.generator.audience import Visitor
from streamproc.generator.draws import Weighted, chance
from streamproc.generator.site import SHOP, Product, Site, decimal, section_of_page

#: An event of a visit: seconds until the visit's next one, and the event's JSON members except id and time.
Step = tuple[int, str]

#: Seconds on a page. Always below the 30 minutes after which a visit counts as over.
_READING = Weighted(
    [2, 4, 7, 11, 16, 23, 32, 45, 70, 110, 240, 600], [10, 14, 16, 14, 12, 10, 8, 6, 4, 3, 1, 1]
)
_PAGES = Weighted(list(range(1, 21)), [30, 12, 10, 9, 8, 7, 6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1])
_HEARTBEAT = 30


class Visits:
    """Writes the scripts of visits to a site."""

    def __init__(self, random: Random, site: Site) -> None:
        self._random = random
        self._site = site

    def visit(self, visitor: Visitor) -> Iterator[Step]:
        """One visit from the first page to the last event."""
        who = f'{visitor.fields},"session_id":"{self._random.getrandbits(64):016x}"'
        return self._crawl(who) if visitor.crawler else self._browse(who)

    def _crawl(self, who: str) -> Iterator[Step]:
        random, site = self._random, self._site
        for _ in range(10 + random.getrandbits(5)):
            yield 1 + random.getrandbits(2), _event("page_view", who, site.next_page(random), "")

    def _browse(self, who: str) -> Iterator[Step]:
        random, site = self._random, self._site
        page, referrer = arrive(random, site)
        for _ in range(_PAGES.draw(random)):
            seconds = _READING.draw(random)
            heartbeats = min(seconds // _HEARTBEAT, 4)
            yield _HEARTBEAT if heartbeats else seconds, _event("page_view", who, page, referrer)
            for left in range(heartbeats - 1, -1, -1):
                wait = _HEARTBEAT if left else max(seconds - heartbeats * _HEARTBEAT, 1)
                yield wait, _event("heartbeat", who, page, referrer)
            referrer = page
            draw = random.getrandbits(24) % 100
            if draw < 46:
                product = site.products.draw(random)
                page = product.url
                if draw < 28:
                    bought = yield from self._consider(who, product, referrer)
                    referrer = page
                    if bought:
                        return
            elif draw < 52:
                term = site.terms.draw(random)
                page = site.results(term)
                properties = f'{{"term":"{term}","results":{random.getrandbits(7)}}}'
                yield 1, _event("search", who, page, referrer, f',"properties":{properties}')
            else:
                if draw < 58:
                    properties = f'{{"section":"{section_of_page(random)}","x":{random.getrandbits(10)}}}'
                    yield 1, _event("click", who, page, referrer, f',"properties":{properties}')
                page = site.next_page(random)

    def _consider(self, who: str, product: Product, referrer: str) -> Generator[Step, None, bool]:
        """The funnel, as far as the visitor goes. Returns whether something was bought."""
        random = self._random
        item = product.members
        yield _READING.draw(random), _event("page_view", who, product.url, referrer)
        yield (
            _READING.draw(random),
            _event("product_view", who, product.url, referrer, f',"properties":{{{item}}}'),
        )
        if not chance(random, 30):
            return False
        quantity = 1 + (random.getrandbits(2) == 0)
        value = product.cents * quantity
        properties = f',"properties":{{{item},"quantity":{quantity}}}'
        yield 3, _event("add_to_cart", who, product.url, referrer, properties)
        yield _READING.draw(random), _event("page_view", who, f"{SHOP}/cart", product.url)
        if not chance(random, 45):
            return False
        yield _READING.draw(random), _event("checkout", who, f"{SHOP}/checkout", f"{SHOP}/cart", properties)
        if not chance(random, 65):
            return False
        order = f"{SHOP}/checkout/done"
        bought = f',"value":{decimal(value)}{properties}'
        yield 1, _event("purchase", who, order, f"{SHOP}/checkout", bought)
        yield 1, _event("page_view", who, order, f"{SHOP}/checkout")
        return True


def _event(kind: str, who: str, page: str, referrer: str, more: str = "") -> str:
    """JSON members; nothing in the site's vocabulary needs an escape."""
    came_from = f',"referrer":"{referrer}"' if referrer else ""
    return f'"event_type":"{kind}",{who},"page_url":"{page}"{came_from}{more}'
