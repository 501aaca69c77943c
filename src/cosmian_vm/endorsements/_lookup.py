"""Where one thing is: in the disk cache while it is current, else at the vendor's; an old one rather than none.

Threads that ask for the same address share one request; so do processes, by a lock beside the cache entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from cosmian_vm.endorsements._cache import Cache
from cosmian_vm.endorsements._fetch import Answer, Fetch, Limits, Request
from cosmian_vm.errors import CosmianVmError, RefusedError, TransportError

__all__ = ["REMEDY", "Lookup", "Wanted"]

_T = TypeVar("_T")

REMEDY = (
    "fetch it where there is network (cosmian_vm endorsements fetch EVIDENCE --output DIR) and give --endorsements DIR"
)
"""What to do where something cannot be had."""

_Key = tuple[int, str, str]


class _Flight(msgspec.Struct):
    """A request that is under way: once it has ``landed`` there is the ``answer`` or the ``error``."""

    landed: threading.Event = msgspec.field(default_factory=threading.Event)
    answer: Answer | None = None
    error: BaseException | None = None


_flights: dict[_Key, _Flight] = {}
_flights_lock = threading.Lock()


class Wanted(msgspec.Struct, Generic[_T], frozen=True, kw_only=True):
    """One thing to have. ``what``: its name for the user. ``read``: makes a value of an answer, or raises a
    CosmianVmError that says what is wrong with it. ``until``: when the value has to be renewed, None for never.
    ``lasting``: there will be no newer one before that.
    """

    what: str
    request: Request
    read: Callable[[Answer], _T]
    until: Callable[[_T], datetime | None]
    lasting: bool = False


class Lookup:
    """One round of looking things up. ``notes`` grows by a line for each thing that cannot be had, or not renewed.

    ``renew``: what may have changed is asked for even if what is at hand is current.

    A service that does not answer is not asked again in this round: the round is what somebody waits for.
    """

    def __init__(
        self, cache: Cache, fetch: Fetch | None, *, now: datetime, limits: Limits, notes: list[str], renew: bool
    ) -> None:
        self._cache = cache
        self._fetch = fetch
        self._now = now
        self._limits = limits
        self._silent: dict[str, str] = {}
        self._end = time.monotonic() + limits.together
        self.notes = notes
        self.renew = renew

    @property
    def offline(self) -> bool:
        """Whether the network is not to be used."""
        return self._fetch is None

    def cached(self, wanted: Wanted[_T]) -> _T | None:
        """What the cache has, current or not."""
        answer = self._cache.read(wanted.request.url)
        try:
            return None if answer is None else wanted.read(answer)
        except CosmianVmError:
            return None

    def get(self, wanted: Wanted[_T], into: list[str] | None = None) -> _T | None:
        """The thing, current if it can be had so; where there is none to be had, None and a note (in ``into``)."""
        old = self.cached(wanted)
        if old is not None and self._serves(wanted, old):
            return old
        notes = self.notes if into is None else into
        url = wanted.request.url
        if self._fetch is None:
            notes.append(self._lacking(wanted, old, f"is at {url}, and the network is not to be used"))
            return old
        try:
            new = wanted.read(self._asked(wanted, self._fetch))
        except CosmianVmError as exc:
            notes.append(self._lacking(wanted, old, f"could not be had from {url}: {exc}"))
            return old
        if not self.is_current(wanted.until(new)):
            day = _day(wanted.until(new))
            notes.append(f"{wanted.what}: {url} itself has only one that was to be renewed by {day}")
        return new

    def is_current(self, end: datetime | None) -> bool:
        """Whether what has to be renewed by ``end`` is current; None: it never has to be."""
        return end is None or self._now < end

    def _serves(self, wanted: Wanted[_T], value: _T) -> bool:
        return self.is_current(wanted.until(value)) and (wanted.lasting or not self.renew)

    def _lacking(self, wanted: Wanted[_T], old: _T | None, why: str) -> str:
        if old is None:
            return f"{wanted.what} {why}; {REMEDY}"
        return f"{wanted.what} at hand was to be renewed by {_day(wanted.until(old))}, and the new one {why}; {REMEDY}"

    def _asked(self, wanted: Wanted[_T], fetch: Fetch) -> Answer:
        host = urlsplit(wanted.request.url).netloc
        if host in self._silent:
            raise TransportError(f"{self._silent[host]} (a moment ago)")
        if time.monotonic() >= self._end:
            raise TransportError("looking things up has taken too long already")
        try:
            return self._shared(wanted, fetch)
        except RefusedError:
            raise
        except TransportError as exc:
            self._silent[host] = str(exc)
            raise

    def _shared(self, wanted: Wanted[_T], fetch: Fetch) -> Answer:
        """The answer to one request, which all threads that want it wait for."""
        key = (id(fetch), str(self._cache.folder), wanted.request.url)
        with _flights_lock:
            flight = _flights.get(key)
            first = flight is None
            if flight is None:
                flight = _flights[key] = _Flight()
        if first:
            try:
                flight.answer = self._flown(wanted, fetch)
            except BaseException as exc:
                flight.error = exc
                raise
            finally:
                with _flights_lock:
                    del _flights[key]
                flight.landed.set()
        elif not flight.landed.wait(2 * self._limits.total):
            raise TransportError("another thread has been asking for it for too long")
        if isinstance(flight.error, CosmianVmError):
            raise flight.error
        if flight.answer is None:
            raise TransportError("another thread was interrupted while it asked for it")
        return flight.answer

    def _flown(self, wanted: Wanted[_T], fetch: Fetch) -> Answer:
        url = wanted.request.url
        with self._cache.alone(url, self._limits.total):
            answer = self._cache.read(url)  # another process may have been faster
            if answer is not None and self._is_readable(wanted, answer):
                return answer
            answer = fetch(wanted.request)
            wanted.read(answer)
            self._cache.write(url, answer)
        return answer

    def _is_readable(self, wanted: Wanted[_T], answer: Answer) -> bool:
        try:
            return self._serves(wanted, wanted.read(answer))
        except CosmianVmError:
            return False


def _day(moment: datetime | None) -> str:
    return "an unknown day" if moment is None else f"{moment:%Y-%m-%d}"
