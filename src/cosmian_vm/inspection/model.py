r"""The interface between ``cosmian_vm inspect`` and the modules that know one kind of file each.

How a file is inspected (inspection/identify.py does it, the command only reads files and prints):

1. Every file named by ``--with`` is classified by its content into a :class:`Material`.
2. Each registered :class:`Kind` is asked, most specific format first, whether the file is one of its own
   (``matches``). If none is, each is asked whether the material makes it one (``claims``: a bare RSA signature is
   recognised only beside the TPM quote that it signs).
3. ``facts`` prints what the file says; ``verify`` answers whether it is authentic, as a list of checks.

What a kind module does (``inspection/snp.py``, ``inspection/ima.py``, ...): it exports ``KINDS``, a tuple of
:class:`Kind`, made of four pure functions. For instance::

    def _matches(raw: bytes) -> bool:                                       # cheap, total, never raises
        return len(raw) >= 1184 and raw[0x34:0x38] == b"\x01\x00\x00\x00" and ...

    def _facts(raw: bytes, material: Material) -> Facts:                    # may raise EvidenceFormatError
        report = snp.parse_evidence(raw).report
        return {"bytes": len(raw), "report": {...}, "leaf": {...}}          # names as in the format's own documents

    def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
        return [ok("tee.signature", "..."), fail("chip_id", "...")]         # verifier.result's constructors, ids free

    KINDS = (Kind(name="snp-report", title="AMD SEV-SNP attestation report",
                  matches=_matches, facts=_facts, verify=_verify),)

Rules for them:

- **matches** looks at the shape, not the truth: a damaged SNP report is still an SNP report, and its ``facts`` or
  ``verify`` then say what is wrong. It must not claim what another kind could be: check magic numbers, sizes, versions.
- **facts** are plain data for JSON: ``dict``, ``list``, ``str``, ``int``, ``bool``, ``None``; byte strings are
  lower-case hex and never cut (``hexed`` helps); times are RFC 3339 with ``Z`` (``rfc3339`` helps). They may use the
  material (the certificate that fits a report: ``leaf``; the quote of a log: ``entries_in_quote``). A file that holds
  several things of its kind (a PEM file of certificates) has the facts of the first on top and all of them in a list
  (``certificates``). EvidenceFormatError: the frame reports ``{"bytes": n}`` and the error; anything else is a bug.
- **verify** never raises for anything that is in ``raw`` or in the material. An EvidenceFormatError that escapes
  becomes a failed check ``format``; where the format has a check of its own for that (``ima.replay``), return it.
- **Whether it is authentic** derives from the checks (:func:`is_authentic`): at least one check that is not policy
  passed (ok or warning), none failed, and no check that is *required* was skipped. So: what was not given and without
  which nothing is proven is ``replace(skip(...), required=True)`` (a quote without its signature); what is only a pity
  is a plain ``skip`` (an IMA list without a quote). A kind that has no signature at all says ``signed=False``: of a
  well-formed file of it nothing can be said, yes or no (:attr:`Inspection.undecidable`). The ids in
  :data:`POLICY_IDS` are shown and do not decide, unless the user gives ``--policy``.
- **Roots**: vendors' roots are pinned in ``endorsements``; a kind module uses these *and* ``roots.extra`` (the user's
  ``--trust-root``). A certificate in the material is never a root, whatever it says.
- **Time** is the argument ``at`` (UTC, aware); nothing reads the clock, environment, files or network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from cosmian_vm.verifier.result import Check, Status

__all__ = [
    "CERTIFICATE",
    "CRL",
    "JSON",
    "OTHER",
    "PCR_VALUES",
    "POLICY_IDS",
    "PUBLIC_KEY",
    "TPM_PUBLIC",
    "TPM_SIGNATURE",
    "Facts",
    "Inspection",
    "Item",
    "Kind",
    "Material",
    "PcrValues",
    "Roots",
    "hexed",
    "is_authentic",
    "rfc3339",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""Plain data, as it is printed."""

Facts: TypeAlias = dict[str, JSON]
"""What a file says: field names of its format to values."""

POLICY_IDS = frozenset({"tee.debug", "tee.tcb"})
"""Checks that are somebody's choice, not a question of authenticity: they decide only with ``--policy``."""

CERTIFICATE = "certificate"
"""Kind of an X.509 certificate; in the material: one certificate, DER."""
CRL = "crl"
"""In the material: one X.509 CRL, DER."""
PUBLIC_KEY = "public-key"
"""In the material: one SubjectPublicKeyInfo, DER (given as PEM or DER)."""
TPM_PUBLIC = "tpm-public"
"""In the material: one TPMT_PUBLIC, without the two bytes of length that a TPM2B_PUBLIC has in front."""
TPM_SIGNATURE = "tpm-signature"
"""In the material: one TPMT_SIGNATURE."""
PCR_VALUES = "pcr-values"
"""In the material: a file of PCR values, as it was given; parsed in :attr:`Material.pcrs`."""
OTHER = "other"
"""In the material: nothing known. A nonce, a bare signature, a TPM name; the kind that needs one tries them."""


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of material. ``kind``: a constant of this module, or the name of a :class:`Kind` (``ima-log-binary``,
    ``tpm-quote``, ``hcl-report``, ``tdx-quote``, ``intel-collateral``...). ``name``: what the user called the file, for
    messages. ``raw``: its bytes; of a PEM file with several blocks, each block is an item of its own.
    """

    kind: str
    name: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class PcrValues:
    """PCR values that somebody read out. ``banks``: lower-case algorithm name (``sha256``) to PCR index to value."""

    name: str
    banks: Mapping[str, Mapping[int, bytes]]


@dataclass(frozen=True, slots=True)
class Material:
    """All that ``--with`` named, recognised by content, in the order given. Trusted for nothing by itself."""

    items: tuple[Item, ...] = ()
    pcrs: tuple[PcrValues, ...] = ()

    def of(self, kind: str) -> tuple[Item, ...]:
        """The items of one kind."""
        return tuple(item for item in self.items if item.kind == kind)

    def raw(self, kind: str) -> tuple[bytes, ...]:
        """The bytes of the items of one kind."""
        return tuple(item.raw for item in self.items if item.kind == kind)

    def pcr(self, bank: str, index: int) -> bytes | None:
        """The first value given for one PCR, None if there is none."""
        for values in self.pcrs:
            value = values.banks.get(bank, {}).get(index)
            if value is not None:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Roots:
    """``extra``: root certificates (DER) that the user chose to trust beside the pinned ones (``--trust-root``)."""

    extra: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of file. ``name``: stable, as in ``--json``. ``title``: for people. The functions: see the module.

    ``claims(raw, material)``: asked only if no kind ``matches``: does the material show that this is one of mine?
    ``signed``: False where no file of this kind can prove by itself who made it.
    """

    name: str
    title: str
    matches: Callable[[bytes], bool]
    facts: Callable[[bytes, Material], Facts]
    verify: Callable[[bytes, Material, datetime, Roots], list[Check]]
    claims: Callable[[bytes, Material], bool] | None = None
    signed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known about one file. ``problem``: why it cannot be read as its kind, empty if it can.

    ``checks``: None where nobody asked whether it is authentic. ``signed``: as of its kind.
    """

    kind: str
    title: str
    facts: Facts = field(default_factory=dict)
    problem: str = ""
    checks: tuple[Check, ...] | None = None
    signed: bool = True

    @property
    def undecidable(self) -> bool:
        """Well-formed, and of a kind that no signature vouches for: neither authentic nor the opposite."""
        failed = any(check.status is Status.FAIL for check in self.checks or ())
        return not self.signed and not self.problem and self.checks is not None and not failed

    @property
    def left_open(self) -> tuple[str, ...]:
        """Ids of what would say who made it and could not be checked: signature, chain, revocation of the hardware; of
        a log the TPM's signature of a quote that vouches for it.
        """
        return tuple(
            check.id
            for check in self.checks or ()
            if check.status is Status.SKIP
            and (check.id == "tpm.signature" or check.id.startswith("tee."))
            and check.id not in POLICY_IDS
        )

    def authentic(self, *, policy: bool = False) -> bool:
        """The answer of ``--verify``; with ``policy`` the policy checks decide too. Nothing checked means no."""
        return not self.problem and self.checks is not None and is_authentic(self.checks, policy=policy)


def is_authentic(checks: Iterable[Check], *, policy: bool = False) -> bool:
    """Something passed, nothing failed, nothing required was skipped; policy checks count only with ``policy``."""
    checks = tuple(checks)
    proven = any(c.status in (Status.OK, Status.WARNING) and c.id not in POLICY_IDS for c in checks)
    deciding = [c for c in checks if policy or c.id not in POLICY_IDS]
    return proven and not any(c.status is Status.FAIL or (c.required and c.status is Status.SKIP) for c in deciding)


def hexed(value: bytes) -> str:
    """Bytes as facts show them: lower-case hex, all of them."""
    return value.hex()


def rfc3339(moment: datetime) -> str:
    """A time as facts show it: UTC, seconds, ``Z``. ``moment`` must be aware."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
