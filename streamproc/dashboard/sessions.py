"""Who has logged in with the password: random tokens, of which only hashes are kept, in memory."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable

from streamproc.redaction import Secret

#: Seconds: a session ends this long after its last use, and this long after it began.
IDLE, LONGEST = 3_600.0, 12 * 3_600.0
#: Failed attempts of one address within :data:`PATIENCE` seconds; the next ones are not looked at.
ATTEMPTS, PATIENCE = 10, 300.0
#: Addresses of which failures are remembered.
_ADDRESSES = 10_000


class Sessions:
    """Sessions of a dashboard with ``password``. A restart ends all of them."""

    def __init__(self, password: Secret, clock: Callable[[], float] = time.monotonic) -> None:
        self._password = password.reveal().encode()
        self._clock = clock
        self._open: dict[bytes, tuple[float, float]] = {}
        self._failures: dict[str, deque[float]] = {}

    def log_in(self, password: str, address: str) -> str | None:
        """A new session's token, ``None`` for a wrong password. ``address``: whose attempt it is."""
        if self.locked_out(address):
            return None
        if not hmac.compare_digest(password.encode(), self._password):
            if len(self._failures) >= _ADDRESSES:
                self._failures.pop(next(iter(self._failures)))
            self._failures.setdefault(address, deque(maxlen=ATTEMPTS)).append(self._clock())
            return None
        self._failures.pop(address, None)
        token = secrets.token_urlsafe(32)
        now = self._clock()
        self._open = {key: times for key, times in self._open.items() if self._lasts(times, now)}
        self._open[_hash(token)] = (now, now)
        return token

    def locked_out(self, address: str) -> bool:
        """Whether the address has failed too often."""
        failed = self._failures.get(address)
        return failed is not None and len(failed) == ATTEMPTS and self._clock() - failed[0] < PATIENCE

    def valid(self, token: str | None) -> bool:
        """Whether the token is one of a session that lasts; using it keeps it."""
        if not token:
            return False
        key, now = _hash(token), self._clock()
        times = self._open.get(key)
        if times is None or not self._lasts(times, now):
            self._open.pop(key, None)
            return False
        self._open[key] = (times[0], now)
        return True

    def end(self, token: str | None) -> None:
        """Log out."""
        if token:
            self._open.pop(_hash(token), None)

    @staticmethod
    def _lasts(times: tuple[float, float], now: float) -> bool:
        began, used = times
        return now - began < LONGEST and now - used < IDLE


def form_token(secret: str) -> str:
    """What a form has to send back to show that it came from a page made for the holder of ``secret``."""
    return hashlib.sha256(b"form " + secret.encode()).hexdigest()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
