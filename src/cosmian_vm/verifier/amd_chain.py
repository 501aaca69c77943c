"""Does an SNP report come from a genuine AMD chip? Signature, chain to a trusted root, revocation. Pure.

The chain, by AMD 57230: the report is signed by a chip key (VCEK or VLEK); its certificate by an ASK (for a VLEK: an
ASVK); that by the product's ARK, which must be one of the roots that the verifier was given. Checked, in this order:

1. the chip certificate is of the kind (VCEK, VLEK) that the report says signed it
2. it is signed by an intermediate of the right name that is a CA
3. the intermediate is signed by a trusted root, which signs itself
4. all three are valid at ``now``
5. report (CPUID), chip certificate, intermediate and root are of one product
6. the chip certificate is for the chip that the report names

Steps 2 and 3 cost RSA-4096 verifications; what depends on the intermediate, root and CRL alone is remembered, by their
bytes, as long as the process lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements.amd import (
    AmdEndorsements,
    ChipCertificate,
    common_name,
    is_chip_certificate,
    load_certificate,
    load_crl,
    parse_chip_certificate,
)
from cosmian_vm.errors import EndorsementError
from cosmian_vm.evidence.snp import (
    SIGNATURE_ALGO_ECDSA_P384_SHA384,
    Product,
    SigningKey,
    SnpEvidence,
    SnpReport,
)

__all__ = [
    "MAX_CHIP_CERTIFICATES",
    "Chain",
    "Gathered",
    "build_chain",
    "by_fitness",
    "chain_problems",
    "chip_id_problem",
    "chip_signature_problem",
    "gather",
    "is_authority_of",
    "is_signed_by",
    "product_problem",
    "signature_problem",
    "validity_problem",
]

MAX_CHIP_CERTIFICATES = 8
"""How many chip certificates are tried on one report; each costs an ECDSA verification."""

_RSASSA_PSS = "1.2.840.113549.1.1.10"
_MIN_RSA_BITS = 4096
_SALT_SIZE = 48
_SIGNATURE_ERRORS = (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class Gathered:
    """All candidates that came with the evidence, sorted out. ``chips``: readable chip certificates; ``others``:
    certificates that may be intermediates; ``problems``: what was wrong with the rest, one line each.
    """

    chips: tuple[ChipCertificate, ...]
    others: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain whose signatures hold: ``chip`` by ``intermediate`` by ``root``, a root that the verifier trusts."""

    chip: ChipCertificate
    intermediate: x509.Certificate
    root: x509.Certificate

    @property
    def product(self) -> Product | None:
        """The product by the root's name (``ARK-Milan``), which is as trusted as the root."""
        return _product_of(common_name(self.root.subject), "ARK-")


def gather(evidence: SnpEvidence, endorsements: AmdEndorsements) -> Gathered:
    """Sort out what came with the evidence and what was fetched. Nothing in it is believed, bad ones are named."""
    problems: list[str] = []
    certificates: dict[x509.Certificate, None] = {}
    crls: dict[bytes, x509.CertificateRevocationList] = {}
    for number, der in enumerate(evidence.certificates, 1):
        try:
            certificates.setdefault(load_certificate(der))
        except EndorsementError as exc:
            problems.append(f"certificate {number} beside the report: {exc}")
    for number, der in enumerate(evidence.crls, 1):
        try:
            crls.setdefault(der, load_crl(der))
        except EndorsementError as exc:
            problems.append(f"CRL {number} beside the report: {exc}")
    certificates.update(dict.fromkeys(endorsements.certificates))
    crls.update((crl.public_bytes(Encoding.DER), crl) for crl in endorsements.crls)
    chips: list[ChipCertificate] = []
    others: list[x509.Certificate] = []
    for certificate in certificates:
        if not is_chip_certificate(certificate):
            others.append(certificate)
        elif len(chips) < MAX_CHIP_CERTIFICATES:
            try:
                chips.append(parse_chip_certificate(certificate))
            except EndorsementError as exc:
                problems.append(str(exc))
    return Gathered(tuple(chips), tuple(others), tuple(crls.values()), tuple(problems))


def by_fitness(chips: Iterable[ChipCertificate], report: SnpReport) -> list[ChipCertificate]:
    """The candidates, those first that claim the report's key kind, chip and TCB: normally the first one is it."""

    def misfit(chip: ChipCertificate) -> tuple[bool, bool, bool]:
        layout = (chip.product or Product.MILAN).tcb_layout
        svns = {name: report.reported_tcb[position] for name, position in layout.value}
        return (
            chip.kind is not report.signing_key,
            chip_id_problem(report, chip) is not None,
            any(chip.svns.get(name) != svn for name, svn in svns.items()),
        )

    return sorted(chips, key=misfit)


def signature_problem(report: SnpReport) -> str | None:
    """What in the report itself rules out a signature of a chip key; None if nothing does."""
    if report.signature_algo != SIGNATURE_ALGO_ECDSA_P384_SHA384:
        return f"its signature algorithm is {report.signature_algo}, not 1 (ECDSA P-384 with SHA-384)"
    if report.signing_key is SigningKey.NONE or not (report.r and report.s):
        return "it is not signed: the host has switched signing off (MASK_CHIP_KEY); ask for another host"
    if report.signing_key is None:
        return f"its flags {report.flags:#x} name a signing key that is not defined"
    return None


def chip_signature_problem(report: SnpReport, chip: ChipCertificate) -> str | None:
    """Verify the ECDSA P-384 signature over the bytes 0 to 0x29F as they came; None if it holds."""
    try:
        signature = encode_dss_signature(report.r, report.s)
        chip.public_key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except _SIGNATURE_ERRORS:
        return f"its signature is not by the key of the {chip.kind.name} certificate that came with it"
    return None


def chip_id_problem(report: SnpReport, chip: ChipCertificate) -> str | None:
    """Whether the certificate is for the chip that the report names; None if it is, or if neither names one.

    A VLEK names no chip. Where the host masks CHIP_ID (all zeros), the chip's own signature still tells it.
    """
    if chip.hwid is None or not any(report.chip_id):
        return None
    if chip.product is Product.TURIN:
        named = report.chip_id[: len(chip.hwid)]
    else:
        named = report.chip_id
    if named != chip.hwid:
        return (
            f"the {chip.kind.name} certificate is for the chip {chip.hwid[:8].hex()}..., the report is from the chip "
            f"{report.chip_id[:8].hex()}..."
        )
    return None


def build_chain(
    chip: ChipCertificate, others: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> Chain | str:
    """Find intermediate and root of a chip certificate and verify all three signatures; dates are not looked at.

    Returns the reason, one line, where there is no such chain.
    """
    name = common_name(chip.certificate.issuer)
    if (_role(name), chip.kind) not in (("ASK", SigningKey.VCEK), ("ASVK", SigningKey.VLEK)):
        return f"its {chip.kind.name} certificate is issued by {name!r}, which no AMD intermediate is called"
    issuers = [c for c in others if c.subject == chip.certificate.issuer]
    if not issuers:
        return f"the certificate of {name!r}, which issued its {chip.kind.name} certificate, is missing"
    reason = _no_root(issuers[0].issuer, roots)
    for intermediate in issuers:
        root = next((r for r in roots if is_authority_of(intermediate, r)), None)
        if root is None:
            continue
        if is_signed_by(chip.certificate, intermediate):
            return Chain(chip, intermediate, root)
        reason = f"its {chip.kind.name} certificate is not signed by {name!r} of {_organisation_of(root.subject)}"
    return reason


def _no_root(top: x509.Name, roots: Sequence[x509.Certificate]) -> str:
    called = f"{common_name(top)!r} of {_organisation_of(top)}"
    if any(root.subject == top for root in roots):
        return f"it only claims to lead to {called}: the true one has not signed it, the chain is forged"
    return f"it leads to {called}, which is not among the trusted roots; if it is one of your own, use --trust-root"


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """One RSASSA-PSS SHA-384 signature of a CA's RSA-4096 key, and the names; no dates."""
    try:
        key = issuer.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _MIN_RSA_BITS or not _is_ca(issuer):
            return False
        if certificate.signature_algorithm_oid.dotted_string != _RSASSA_PSS:
            return False
        if not isinstance(certificate.signature_hash_algorithm, hashes.SHA384):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (*_SIGNATURE_ERRORS, x509.DuplicateExtension):
        return False
    return True


def is_authority_of(intermediate: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether ``root`` signs itself and ``intermediate``. Remembered by the bytes of both."""
    if intermediate.issuer != root.subject:
        return False
    return _is_authority_of(intermediate.public_bytes(Encoding.DER), root.public_bytes(Encoding.DER))


@lru_cache(maxsize=64)
def _is_authority_of(intermediate_der: bytes, root_der: bytes) -> bool:
    intermediate, root = load_certificate(intermediate_der), load_certificate(root_der)
    return is_signed_by(root, root) and is_signed_by(intermediate, root) and _is_ca(intermediate)


def _is_ca(certificate: x509.Certificate) -> bool:
    """BasicConstraints says CA, and keyUsage, where there is one, allows signing certificates."""
    constraints = usage = None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.BasicConstraints):
            constraints = extension.value
        elif isinstance(extension.value, x509.KeyUsage):
            usage = extension.value
    return constraints is not None and constraints.ca and (usage is None or usage.key_cert_sign)


def chain_problems(report: SnpReport | None, chain: Chain, now: datetime) -> list[str]:
    """Steps 1, 4 and 5 of the procedure; empty if all is well. ``report``: None to judge the chain alone."""
    problems = []
    if report is not None and chain.chip.kind is not report.signing_key:
        said = report.signing_key.name if report.signing_key is not None else "unknown"
        problems.append(f"the report says that its signing key is {said}, the certificate is a {chain.chip.kind.name}")
    for certificate in (chain.chip.certificate, chain.intermediate, chain.root):
        problem = validity_problem(certificate, now)
        if problem is not None:
            problems.append(problem)
    problem = product_problem(report, chain)
    if problem is not None:
        problems.append(problem)
    return problems


def validity_problem(certificate: x509.Certificate, now: datetime) -> str | None:
    """What is wrong with the dates of a certificate at ``now`` (aware); None if nothing is."""
    name = common_name(certificate.subject)
    if now < certificate.not_valid_before_utc:
        return f"the certificate {name!r} is valid only from {_day(certificate.not_valid_before_utc)} on"
    if now > certificate.not_valid_after_utc:
        return f"the certificate {name!r} expired on {_day(certificate.not_valid_after_utc)}"
    return None


def product_problem(report: SnpReport | None, chain: Chain) -> str | None:
    """Whether report, chip certificate, intermediate and root are of one product; None if they are."""
    root = chain.product
    named = common_name(chain.intermediate.subject)
    intermediate = _product_of(named, "SEV-VLEK-") or _product_of(named, "SEV-")
    if root is None:
        return f"the root {common_name(chain.root.subject)!r} is of no AMD product that is known"
    if intermediate is not root:
        return f"the intermediate {named!r} does not belong to the {root} root"
    if chain.chip.product is not root:
        return f"the chip certificate is for {chain.chip.product_name!r}, the chain is that of {root}"
    if report is None or report.version < 3:  # version 2 does not say which processor it is from
        return None
    if report.product is not root:
        cpu = f"{report.product or 'unknown'}, CPUID family {report.cpuid_fam_id:#x} model {report.cpuid_mod_id:#x}"
        return f"the report is from another processor ({cpu}), the chain is that of {root}"
    return None


def _role(name: str) -> str | None:
    """``ASK`` or ``ASVK`` by the common name of an intermediate."""
    if _product_of(name, "SEV-VLEK-") is not None:
        return "ASVK"
    return "ASK" if _product_of(name, "SEV-") is not None else None


def _product_of(name: str, prefix: str) -> Product | None:
    rest = name.removeprefix(prefix)
    return Product(rest) if rest != name and rest in set(Product) else None


def _organisation_of(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return repr(str(found[0].value)) if found else "nobody"


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
