"""Does an SNP report come from a genuine AMD chip? Signature, chain to a trusted root, revocation. Pure.

The chain, by AMD 57230: the report is signed by a chip key (VCEK or VLEK); its certificate by an ASK (for a VLEK: an
ASVK); that by the product's ARK, which must be one of the roots that the verifier was given. Checked, in this order:

1. the chip certificate is of the kind (VCEK, VLEK) that the report says signed it
2. it is signed by an intermediate of the right name that is a CA
3. the intermediate is signed by a trusted root, which signs itself
4. all three are valid at ``now``
5. report (CPUID), chip certificate, intermediate and root are of one product
6. the chip certificate is for the chip that the report names

Steps 2 and 3 cost RSA-4096 verifications. They depend on the certificates alone and not on the time, so their outcome
is remembered as long as the process lives; dates, CRLs, product and chip are looked at anew each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives._serialization import Encoding  # the public module loads bcrypt, SSH and ciphers
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cosmian_vm.endorsements.amd import (
    UNUSABLE,
    AmdEndorsements,
    ChipCertificate,
    common_name,
    is_chip_certificate,
    load_certificate,
    load_crl,
    names,
    parse_chip_certificate,
)
from cosmian_vm.endorsements.remembered import remembered
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
_SHA384 = hashes.SHA384()
_PSS = padding.PSS(padding.MGF1(_SHA384), 48)
_TBS_HEADER = 4 + 5 + 2  # SEQUENCE with 2 length bytes, version 3, tag and length of the serial number
_ECDSA_SHA384 = ec.ECDSA(_SHA384)
_PRODUCTS = {product.value: product for product in Product}
_SIGNATURE_ERRORS = (InvalidSignature, *UNUSABLE)


class Gathered(msgspec.Struct, frozen=True):
    """All candidates that came with the evidence, sorted out. ``chips``: readable chip certificates; ``others``:
    certificates that may be intermediates; ``crls``: DER; ``problems``: what was wrong with the rest, one line each.
    """

    chips: tuple[ChipCertificate, ...]
    others: tuple[x509.Certificate, ...]
    crls: tuple[bytes, ...]
    problems: tuple[str, ...]


class Chain(msgspec.Struct, frozen=True):
    """A chain whose signatures hold: ``chip`` by ``intermediate`` by ``root``, a root that the verifier trusts."""

    chip: ChipCertificate
    intermediate: x509.Certificate
    root: x509.Certificate

    @property
    def product(self) -> Product | None:
        """The product by the root's name (``ARK-Milan``), which is as trusted as the root."""
        return _product_of(names(self.root).subject_cn, "ARK-")


def gather(evidence: SnpEvidence, endorsements: AmdEndorsements) -> Gathered:
    """Sort out what came with the evidence and what was fetched. Nothing in it is believed, bad ones are named."""
    problems: list[str] = []
    certificates: dict[int, x509.Certificate] = {}
    crls: dict[bytes, None] = {}
    for number, der in enumerate(evidence.certificates, 1):
        try:
            certificate = load_certificate(der)
            certificates.setdefault(id(certificate), certificate)
        except EndorsementError as exc:
            problems.append(f"certificate {number} beside the report: {exc}")
    for number, der in enumerate(evidence.crls, 1):
        try:
            load_crl(der)
            crls.setdefault(der)
        except EndorsementError as exc:
            problems.append(f"CRL {number} beside the report: {exc}")
    certificates.update((id(certificate), certificate) for certificate in endorsements.certificates)
    crls.update(dict.fromkeys(map(_der_of, endorsements.crls)))
    chips: list[ChipCertificate] = []
    others: list[x509.Certificate] = []
    for certificate in certificates.values():
        if not is_chip_certificate(certificate):
            others.append(certificate)
        elif len(chips) < MAX_CHIP_CERTIFICATES:
            try:
                chips.append(parse_chip_certificate(certificate))
            except EndorsementError as exc:
                problems.append(str(exc))
    return Gathered(tuple(chips), tuple(others), tuple(crls), tuple(problems))


@remembered
def _der_of(crl: x509.CertificateRevocationList) -> bytes:
    return crl.public_bytes(Encoding.DER)


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
        chip.public_key.verify(signature, report.signed, _ECDSA_SHA384)
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
    issuer, name = names(chip.certificate).issuer, names(chip.certificate).issuer_cn
    if (_role(name), chip.kind) not in (("ASK", SigningKey.VCEK), ("ASVK", SigningKey.VLEK)):
        return f"its {chip.kind.name} certificate is issued by {name!r}, which no AMD intermediate is called"
    issuers = [c for c in others if names(c).subject == issuer]
    if not issuers:
        return f"the certificate of {name!r}, which issued its {chip.kind.name} certificate, is missing"
    reason = ""
    for intermediate in issuers:
        root = next((r for r in roots if is_authority_of(intermediate, r)), None)
        if root is None:
            continue
        if is_signed_by(chip.certificate, intermediate):
            return Chain(chip, intermediate, root)
        reason = f"its {chip.kind.name} certificate is not signed by {name!r} of {_organisation_of(root.subject)}"
    return reason or _no_root(issuers[0].issuer, roots)


def _no_root(top: x509.Name, roots: Sequence[x509.Certificate]) -> str:
    called = f"{common_name(top)!r} of {_organisation_of(top)}"
    if any(root.subject == top for root in roots):
        return f"it only claims to lead to {called}: the true one has not signed it, the chain is forged"
    return f"it leads to {called}, which is not among the trusted roots; if it is one of your own, use --trust-root"


@remembered
def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """One RSASSA-PSS SHA-384 signature of a CA's RSA-4096 key, and the names; no dates."""
    key, signed = _authority_key(issuer), _signed_as_amd_signs(certificate)
    if key is None or signed is None or names(certificate).issuer != names(issuer).subject:
        return False
    try:
        key.verify(*signed, _PSS, _SHA384)
    except _SIGNATURE_ERRORS:
        return False
    return True


@remembered
def _authority_key(certificate: x509.Certificate) -> rsa.RSAPublicKey | None:
    """The key of a CA certificate, if it is RSA of AMD's size; None for every other certificate."""
    try:
        key = certificate.public_key()
    except _SIGNATURE_ERRORS:
        return None
    return key if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS and _is_ca(certificate) else None


def _signed_as_amd_signs(certificate: x509.Certificate) -> tuple[bytes, bytes] | None:
    """Signature and signed bytes of a certificate that names RSASSA-PSS with SHA-384 as its algorithm, in both places
    where it does (RFC 5280, 4.1.1.2: they must agree); None for every other.
    """
    try:
        algorithm = certificate.signature_hash_algorithm
    except UNUSABLE:
        return None
    if certificate.signature_algorithm_oid.dotted_string != _RSASSA_PSS or not isinstance(algorithm, hashes.SHA384):
        return None
    whole, signed, signature = (
        certificate.public_bytes(Encoding.DER),
        certificate.tbs_certificate_bytes,
        certificate.signature,
    )
    outer = whole[whole.index(signed) + len(signed) : -len(signature)]  # the algorithm, then the BIT STRING's header
    length = 2 + outer[1]
    start = _TBS_HEADER + signed[_TBS_HEADER - 1]
    return (signature, signed) if signed[start : start + length] == outer[:length] else None


@remembered
def is_authority_of(intermediate: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether ``root`` signs itself and ``intermediate``."""
    return (
        names(intermediate).issuer == names(root).subject
        and is_signed_by(root, root)
        and is_signed_by(intermediate, root)
        and _is_ca(intermediate)
    )


def _is_ca(certificate: x509.Certificate) -> bool:
    """BasicConstraints says CA, and keyUsage, where there is one, allows signing certificates."""
    constraints = usage = None
    try:
        extensions = certificate.extensions
    except UNUSABLE:
        return False
    for extension in extensions:
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
    name = names(certificate).subject_cn
    if now < certificate.not_valid_before_utc:
        return f"the certificate {name!r} is valid only from {_day(certificate.not_valid_before_utc)} on"
    if now > certificate.not_valid_after_utc:
        return f"the certificate {name!r} expired on {_day(certificate.not_valid_after_utc)}"
    return None


def product_problem(report: SnpReport | None, chain: Chain) -> str | None:
    """Whether report, chip certificate, intermediate and root are of one product; None if they are."""
    root = chain.product
    named = names(chain.intermediate).subject_cn
    intermediate = _product_of(named, "SEV-VLEK-") or _product_of(named, "SEV-")
    if root is None:
        return f"the root {names(chain.root).subject_cn!r} is of no AMD product that is known"
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
    return _PRODUCTS.get(rest) if rest != name else None


def _organisation_of(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return repr(str(found[0].value)) if found else "nobody"


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
