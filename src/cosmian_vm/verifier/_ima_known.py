"""What may have run on the machine: the files of snapshot and whitelist, in the form in which an IMA list names them.

A *key* is the beginning of the template data of every template but the legacy one: the fields ``d-ng`` and ``n-ng``.
So the data of an entry of ``ima-ng`` is the key of its file, and that of an unsigned entry of ``ima-sig`` is the key
and the four zero bytes of an empty field behind it: such an entry is looked up without being taken apart. The kernel
writes ``_`` for each space of a name: keys have it too, on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from struct import Struct
from typing import TYPE_CHECKING

import msgspec

from cosmian_vm.evidence.ima import BOOT_AGGREGATE, HASH_SIZES, ImaFields, is_policy_path, normalise_path
from cosmian_vm.reference.snapshot import Snapshot

if TYPE_CHECKING:
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.whitelist import Whitelist

__all__ = ["KnownFiles", "PreparedKeys", "file_key", "text_of"]

_U32 = Struct("<I")
_FEW = 16
"""So many files are taken out of a long list one by one, more by going through it once."""

# IMA's algorithm by the size of its digest, for snapshots that do not name it (1.3.x) and digests of another size.
_ALGORITHMS = {16: b"md5", 20: b"sha1", 28: b"sha224", 32: b"sha256", 48: b"sha384", 64: b"sha512"}


class _Lengths(dict[int, bytes]):
    """By the size of a name, the length that stands before it (with its closing NUL): each is packed once."""

    def __missing__(self, size: int) -> bytes:
        packed = self[size] = _U32.pack(size + 1)
        return packed


def file_key(algorithm: bytes, digest: bytes, path: bytes) -> bytes:
    """``d-ng`` and ``n-ng`` of a file; ``path`` as it is, without a closing NUL."""
    name = normalise_path(path)
    head = algorithm + b":\0" + digest
    return _U32.pack(len(head)) + head + _U32.pack(len(name) + 1) + name + b"\0"


def text_of(path: bytes) -> str:
    """A name as it is compared roughly: ``_`` for spaces, U+FFFD for what is not UTF-8."""
    return normalise_path(path).decode("utf-8", "replace")


def _path_in(key: bytes) -> bytes:
    """The path in a key, with whatever stands behind it cut off."""
    at = 4 + _U32.unpack_from(key)[0]
    return key[at + 4 : at + 3 + _U32.unpack_from(key, at)[0]]


class PreparedKeys(msgspec.Struct, frozen=True):
    """The keys of all files. ``policies``: those of IMA policy files, whose entries are looked at in any case."""

    others: frozenset[bytes]
    policies: frozenset[bytes]

    def __contains__(self, key: object) -> bool:
        return key in self.others or key in self.policies


class KnownFiles:
    """The files of a snapshot (of an image's reference values, where there is no snapshot) and a whitelist. Made once,
    it serves any number of lists.

    With both, the snapshot says what may run, and the reference values what of it is not what was built: a file of the
    snapshot that they have with another digest is none that is known, unless the whitelist has it.
    """

    def __init__(
        self, reference: Snapshot | None, whitelist: Whitelist | None, build: BuildReference | None = None
    ) -> None:
        self.reference = reference
        self.whitelist = whitelist
        self.build = build
        base = reference if reference is not None else build
        self.base = base
        self._files = () if base is None else base.filehashes or ()
        self._exact = {} if base is None else base.path_bytes
        self._listed = () if whitelist is None else whitelist.entries
        # A snapshot has all that IMA's list named, and so the boot_aggregate at its head. Nowhere else is one expected:
        # it would say that another kernel was started (kexec). A whitelist may have it.
        aggregate = BOOT_AGGREGATE.decode()
        self._left_out = {index for index, (path, _) in enumerate(self._files) if path == aggregate}
        self._as_built: dict[str, list[str]] = {}
        if reference is not None and build is not None:
            for raw, value in build.files:
                self._as_built.setdefault(text_of(raw), []).append(value.hex())
            self._left_out.update(index for index, entry in enumerate(self._files) if self._contradicts(*entry))
        # Names in a file of 1.3.x have U+FFFD for what was not UTF-8, and nothing tells what it was; and it lists the
        # violations that its machine had, as files whose digest is zeros.
        self._is_lossy = reference is not None and reference.version == 1
        self.heads = _heads(None if base is None else base.hash_algorithm)
        self._keys: dict[bytes, PreparedKeys] = {}

    def is_of(self, reference: Snapshot | None, whitelist: Whitelist | None, build: BuildReference | None) -> bool:
        """Whether it was made of these very values."""
        return self.reference is reference and self.whitelist is whitelist and self.build is build

    def __len__(self) -> int:
        """How many files the snapshot (or what stands in its place) and the whitelist hold."""
        return len(self._files) + len(self._listed)

    @property
    def has_files(self) -> bool:
        """Whether there is a snapshot with file hashes, or reference values of an image."""
        return self.base is not None and self.base.filehashes is not None

    @property
    def whose(self) -> str:
        """What to call it that the files are of."""
        return "the reference values" if self.reference is None and self.build is not None else "the snapshot"

    def _contradicts(self, path: str, digest: str) -> bool:
        expected = self._as_built.get(path.replace(" ", "_"))
        return expected is not None and digest not in expected

    @property
    def digest_size(self) -> int | None:
        """Size in bytes of the snapshot's digests (of its first), None where it has none."""
        return len(self._files[0][1]) // 2 if self._files else None

    def keys(self, tail: bytes) -> PreparedKeys:
        """The keys of all files with ``tail`` behind each; kept for the next list."""
        if tail not in self._keys:
            built = self._built(range(len(self._files)), self._files, self._listed, tail)
            if len(self._left_out) > _FEW:
                built = [key for index, key in enumerate(built) if index not in self._left_out]
            else:
                for index in sorted(self._left_out, reverse=True):
                    del built[index]
            policies = frozenset(key for key in built if b"ima" in key and is_policy_path(_path_in(key)))
            if policies:
                built = [key for key in built if key not in policies]
            self._keys[tail] = PreparedKeys(frozenset(built), policies)
        return self._keys[tail]

    def has_keys(self, tail: bytes) -> bool:
        """Whether ``keys(tail)`` costs nothing any more."""
        return tail in self._keys

    def keys_of(self, names: Set[str], tail: bytes) -> frozenset[bytes]:
        """The keys of the files that bear one of ``names`` (of :func:`text_of`): cheap where there are few names."""
        indexes = [index for index in self._bearing(names) if index not in self._left_out]
        listed = [(path, digest) for path, digest in self._listed if text_of(path) in names]
        return frozenset(self._built(indexes, [self._files[index] for index in indexes], listed, tail))

    def digests_of(self, names: Set[str]) -> dict[str, list[str]]:
        """The digests (hex) of the files that bear one of ``names``, by name; in a file of 1.3.x no violations."""
        found: dict[str, list[str]] = {}
        for index in self._bearing(names):
            path, digest = self._files[index]
            if self._is_lossy and not digest.strip("0"):
                continue
            found.setdefault(path.replace(" ", "_"), []).append(digest)
        for raw, value in self._listed:
            if (name := text_of(raw)) in names:
                found.setdefault(name, []).append(value.hex())
        return found

    def as_built(self, names: Set[str]) -> dict[str, list[str]]:
        """The digests (hex) that an image's reference values have for ``names``, beside a snapshot's."""
        return {name: self._as_built[name] for name in names if name in self._as_built}

    def _bearing(self, names: Set[str]) -> Iterator[int]:
        """Where in the snapshot the names stand. They hold no spaces."""
        if not names:
            return
        for index, (path, _) in enumerate(self._files):
            if path in names or (" " in path and path.replace(" ", "_") in names):
                yield index

    def _built(
        self,
        indexes: Sequence[int],
        files: Sequence[tuple[str, str]],
        listed: Sequence[tuple[bytes, bytes]],
        tail: bytes,
    ) -> list[bytes]:
        """Keys of ``files``, which stand at ``indexes`` in the snapshot, and of ``listed`` of the whitelist."""
        heads = {2 * size: head for size, head in self.heads.items()}
        lengths = _Lengths()
        unhex = bytes.fromhex
        end = b"\0" + tail
        keys = [
            heads[len(digest)] + unhex(digest) + lengths[len(raw)] + raw.replace(b" ", b"_") + end
            for path, digest in files
            for raw in (path.encode(),)
        ]
        if self._exact:
            for place, index in enumerate(indexes):
                if index in self._exact:
                    raw, value = unhex(self._exact[index]), unhex(files[place][1])
                    keys[place] = self.heads[len(value)] + value + lengths[len(raw)] + normalise_path(raw) + end
        for raw, value in listed:
            if head := self.heads.get(len(value)):
                keys.append(head + value + lengths[len(raw)] + normalise_path(raw) + end)
        return keys

    def candidates(self, fields: ImaFields) -> Iterator[bytes]:
        """The keys (without tail) under which the file of an entry may stand."""
        if fields.digest_algorithm is None or fields.digest_type not in (None, "ima"):
            return
        algorithm = fields.digest_algorithm.encode()
        yield file_key(algorithm, fields.digest, fields.path)
        if self._is_lossy:
            yield file_key(algorithm, fields.digest, fields.path.decode("utf-8", "replace").encode())


def _heads(named: str | None) -> dict[int, bytes]:
    """What stands before a digest of each size: the length of the field, algorithm, ``:NUL``."""
    algorithms = dict(_ALGORITHMS)
    if named is not None and named in HASH_SIZES:
        algorithms[HASH_SIZES[named]] = named.encode()
    return {size: _U32.pack(len(name) + 2 + size) + name + b":\0" for size, name in algorithms.items()}
