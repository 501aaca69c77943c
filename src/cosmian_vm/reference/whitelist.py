"""The whitelist: files that may run although the snapshot does not have them, one ``PATH DIGEST`` to a line.

The digest is the last word of the line, hex, of an algorithm that IMA knows; all before it is the path, which may hold
spaces and any other byte but a line feed. A line that begins with ``#`` is a comment. Blanks around path and digest do
not count: a path that ends in a space can be written with ``_``, as the kernel does in its list.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from cosmian_vm.errors import InputError

__all__ = ["MAX_WHITELIST_SIZE", "Whitelist", "parse_whitelist"]

MAX_WHITELIST_SIZE = 64 * 1024 * 1024
"""Largest whitelist, in bytes."""

_BLANKS = b" \t\r"
_DIGEST_SIZES = {16: "md5", 20: "sha1", 28: "sha224", 32: "sha256", 48: "sha384", 64: "sha512"}
_SHOWN = 120


class Whitelist(msgspec.Struct, frozen=True):
    """``name`` is the file's, for messages; ``entries`` are path and digest in the order of the file."""

    name: str
    entries: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def files(self) -> Iterator[tuple[bytes, bytes]]:
        """Path and digest of each, as ``Snapshot.files`` has them."""
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def parse_whitelist(raw: bytes, name: str) -> Whitelist:
    """Read a whitelist's content; ``name`` is how the user called the file.

    Raises InputError naming file and line.
    """
    if len(raw) > MAX_WHITELIST_SIZE:
        raise InputError(f"{name}: larger than {MAX_WHITELIST_SIZE} bytes, this is no whitelist")
    entries: dict[tuple[bytes, bytes], None] = {}
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        text = line.strip(_BLANKS)
        if not text or text.startswith(b"#"):
            continue
        entries[_entry(text, f"{name}, line {number}")] = None
    return Whitelist(name, tuple(entries))


def _entry(text: bytes, place: str) -> tuple[bytes, bytes]:
    cut = max(text.rfind(b" "), text.rfind(b"\t"))
    if cut < 0:
        raise InputError(f"{place}: expected a path and a digest, found one word: {_shown(text)}")
    path, word = text[:cut].rstrip(_BLANKS), text[cut + 1 :]
    if b"\0" in path:
        raise InputError(f"{place}: the path holds a zero byte")
    try:
        digest = bytes.fromhex(word.decode("ascii"))
    except ValueError:
        raise InputError(f"{place}: the last word is not a digest in hex: {_shown(word)}") from None
    if len(digest) not in _DIGEST_SIZES:
        known = ", ".join(f"{2 * size} ({algorithm})" for size, algorithm in _DIGEST_SIZES.items())
        raise InputError(f"{place}: a digest of {2 * len(digest)} hex digits; known lengths are {known}")
    return path, digest


def _shown(text: bytes) -> str:
    plain = text.decode(errors="backslashreplace")
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in plain)
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "..."
