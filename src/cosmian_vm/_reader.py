"""A bounds-checked cursor over bytes: every parser of binary formats stands on it."""

from __future__ import annotations

from cosmian_vm.errors import EvidenceFormatError

__all__ = ["Reader"]


class Reader:
    """Reads ``data`` front to back; never past its end, never silently.

    ``what`` names the structure in errors; ``base`` is added to reported offsets where ``data`` is a part of a larger
    input. Every method raises EvidenceFormatError, naming field and offset, when the bytes are not there.
    """

    __slots__ = ("_base", "_data", "_what", "position")

    def __init__(self, data: bytes, what: str, *, base: int = 0) -> None:
        self._data = data
        self._what = what
        self._base = base
        self.position = 0

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.position

    @property
    def offset(self) -> int:
        """Position in the whole input (with ``base``), in bytes."""
        return self._base + self.position

    def take(self, size: int, field: str) -> bytes:
        """The next ``size`` bytes."""
        if size < 0 or size > self.remaining:
            raise self.error(f"needs {size} bytes, {self.remaining} are left", field)
        start = self.position
        self.position = start + size
        return self._data[start : self.position]

    def uint(self, size: int, field: str, *, big: bool = False) -> int:
        """The next ``size`` bytes as an unsigned integer, little-endian unless ``big``."""
        return int.from_bytes(self.take(size, field), "big" if big else "little")

    def u8(self, field: str) -> int:
        """One byte."""
        return self.uint(1, field)

    def u16(self, field: str) -> int:
        """Two bytes, little-endian."""
        return self.uint(2, field)

    def u32(self, field: str) -> int:
        """Four bytes, little-endian."""
        return self.uint(4, field)

    def u64(self, field: str) -> int:
        """Eight bytes, little-endian."""
        return self.uint(8, field)

    def zeros(self, size: int, field: str) -> None:
        """``size`` bytes that must be zero (reserved)."""
        if any(self.take(size, field)):
            self.position -= size
            raise self.error("reserved bytes are not zero", field)

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.remaining, "rest")

    def end(self) -> None:
        """Nothing may be left."""
        if self.remaining:
            raise self.error(f"{self.remaining} bytes too many", "end")

    def error(self, problem: str, field: str) -> EvidenceFormatError:
        """An error that carries this structure's name and the present offset."""
        return EvidenceFormatError(self._what, problem, offset=self.offset, field=field)
