"""The certificates of the simulated AMD: AMD's names, extensions, algorithms and serial numbers.

Source: AMD 57230, "VCEK Certificate and KDS Interface Specification", and the real certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements.amd import load_certificate
from cosmian_vm.evidence.snp import Product

__all__ = ["PSS", "STAND_IN_SERIAL", "YEAR", "amd_name", "authority", "chip_certificate", "resigned"]

PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
"""How AMD signs certificates and CRLs: RSASSA-PSS, SHA-384."""
YEAR = timedelta(days=365)
STAND_IN_SERIAL = 0x7F
"""Written in place of the serial number 0, which the builders refuse, until :func:`resigned` puts it right."""

_ORGANISATION = "Simulated by the Cosmian VM devkit"
_PRODUCT_NAMES = {Product.MILAN: "Milan-B0", Product.GENOA: "Genoa", Product.TURIN: "Turin"}
_SVN_OIDS = {"bl": 1, "tee": 2, "snp": 3, "spl4": 4, "spl5": 5, "spl6": 6, "spl7": 7, "ucode": 8, "fmc": 9}
_ARC = "1.3.6.1.4.1.3704.1"


def amd_name(common_name: str) -> x509.Name:
    """A subject in AMD's order, but for the organisation."""
    oid = x509.NameOID
    return x509.Name(
        [
            x509.NameAttribute(oid.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(oid.COUNTRY_NAME, "US"),
            x509.NameAttribute(oid.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(oid.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(oid.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(oid.COMMON_NAME, common_name),
        ]
    )


def authority(
    name: x509.Name,
    *,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer_key: rsa.RSAPrivateKey,
    serial: int,
    start: datetime,
    path_length: int | None,
) -> x509.Certificate:
    """An ARK (``path_length`` None), ASK or ASVK."""
    off = {
        "digital_signature": False,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    usage = x509.KeyUsage(key_cert_sign=True, crl_sign=path_length is None, **off)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(start + 25 * YEAR)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .sign(issuer_key, hashes.SHA384(), rsa_padding=PSS)
    )


def chip_certificate(
    *,
    product: Product,
    vlek: bool,
    key: ec.EllipticCurvePrivateKey,
    ask: x509.Certificate,
    ask_key: rsa.RSAPrivateKey,
    chip_id: bytes,
    tcb: Mapping[str, int],
    start: datetime,
) -> x509.Certificate:
    """A VCEK or VLEK with AMD's extensions and serial number 0."""
    turin = product is Product.TURIN
    svns = dict.fromkeys((n for n in _SVN_OIDS if n != ("spl4" if turin else "fmc")), 0) | dict(tcb)
    name = _PRODUCT_NAMES[product].encode()
    extensions = {f"{_ARC}.1": b"\x02\x01" + bytes([turin]), f"{_ARC}.2": bytes([0x16, len(name)]) + name}
    for component, svn in svns.items():
        extensions[f"{_ARC}.3.{_SVN_OIDS[component]}"] = _der_integer(svn)
    if vlek:
        provider = b"simulated"
        extensions[f"{_ARC}.5"] = bytes([0x16, len(provider)]) + provider
    else:
        extensions[f"{_ARC}.4"] = chip_id[:8] if turin else chip_id
    builder = (
        x509.CertificateBuilder()
        .subject_name(amd_name("SEV-VLEK" if vlek else "SEV-VCEK"))
        .issuer_name(ask.subject)
        .public_key(key.public_key())
        .serial_number(STAND_IN_SERIAL)
        .not_valid_before(start)
        .not_valid_after(start + (1 if vlek else 7) * YEAR)
    )
    for oid, value in extensions.items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    built = builder.sign(ask_key, hashes.SHA384(), rsa_padding=PSS)
    # cryptography writes no serial number 0, which is what AMD's chip certificates have.
    before, after = b"\xa0\x03\x02\x01\x02\x02\x01\x7f", b"\xa0\x03\x02\x01\x02\x02\x01\x00"
    return load_certificate(
        resigned(built.public_bytes(Encoding.DER), built.tbs_certificate_bytes, before, after, ask_key)
    )


def _der_integer(value: int) -> bytes:
    content = value.to_bytes(1 + (value > 0x7F), "big")
    return bytes([0x02, len(content)]) + content


def resigned(der: bytes, signed: bytes, before: bytes, after: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """``der`` with ``before`` in its signed part replaced by ``after`` (same length), and signed again."""
    changed = signed.replace(before, after, 1)
    if changed == signed:
        return der
    signature = key.sign(changed, PSS, hashes.SHA384())
    return der.replace(signed, changed)[: -len(signature)] + signature
