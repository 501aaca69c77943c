"""Which clients are too old: ``cli-version/X`` with X before 1.0, by the order of PEP 440."""

from __future__ import annotations

import re

__all__ = ["is_too_old"]

_CLIENT = re.compile(r"cli-version/(\S+)")
_VERSION = re.compile(  # PEP 440, appendix B
    r"""v?(?:(?P<epoch>[0-9]+)!)?
        (?P<release>[0-9]+(?:\.[0-9]+)*)
        (?P<pre>[-_.]?(?:alpha|a|beta|b|preview|pre|c|rc)[-_.]?[0-9]*)?
        (?P<post>-[0-9]+|[-_.]?(?:post|rev|r)[-_.]?[0-9]*)?
        (?P<dev>[-_.]?dev[-_.]?[0-9]*)?
        (?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_MAX_LENGTH = 200


def is_too_old(user_agent: str) -> bool:
    """Whether this is a client of before 1.0. Whoever says something else, or nothing that can be read, passes."""
    client = _CLIENT.match(user_agent)
    if client is None or len(client[1]) > _MAX_LENGTH:
        return False
    version = _VERSION.fullmatch(client[1])
    if version is None or int(version["epoch"] or 0) > 0:
        return False
    major, *rest = (int(part) for part in version["release"].split("."))
    if (major, any(rest)) != (1, False):
        return major < 1
    # 1.0 itself: its previews are older, its development releases too unless they are those of a post-release.
    return version["pre"] is not None or (version["dev"] is not None and version["post"] is None)
