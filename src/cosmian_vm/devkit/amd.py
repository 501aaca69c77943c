"""A simulated AMD: a vendor with a root, intermediates and a chip of its own that signs reports in the real format.

Same key sizes, algorithms, names, extensions and serial numbers as the real chain; what differs is the organisation in
its names and, which is all that a verifier goes by, the root. Nothing it signs passes without ``--trust-root``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cosmian_vm.devkit._amd_certificates import (
    PSS,
    STAND_IN_SERIAL,
    YEAR,
    amd_name,
    authority,
    chip_certificate,
    resigned,
)
from cosmian_vm.endorsements.amd import AmdEndorsements, load_certificate, load_crl, serial_number
from cosmian_vm.evidence.snp import (
    SIGNED_SIZE,
    Product,
    SigningKey,
    SnpReport,
    encode_tcb,
    parse_report,
    serialise_report,
    split_objects,
)

__all__ = ["DEFAULT_TCB", "AmdVendor", "VendorKeys"]

DEFAULT_TCB: Mapping[str, int] = {"fmc": 1, "bl": 4, "tee": 0, "snp": 24, "ucode": 219}
"""Security version numbers of a simulated chip (``fmc`` on Turin only)."""

_CPUID = {Product.MILAN: (0x19, 0x01, 0x01), Product.GENOA: (0x19, 0x11, 0x01), Product.TURIN: (0x1A, 0x02, 0x01)}
_SERIALS = {Product.MILAN: 0x10000, Product.GENOA: 0x20000, Product.TURIN: 0x30000}  # of the ARK; ASK + 1, ASVK + 0x101
_RSA_BITS = 4096


@dataclass(frozen=True)
class VendorKeys:
    """The private keys behind a chain. RSA-4096 takes seconds to make: reuse them where there is no harm."""

    ark: rsa.RSAPrivateKey
    ask: rsa.RSAPrivateKey

    @classmethod
    def generate(cls) -> VendorKeys:
        """New keys."""
        return cls(rsa.generate_private_key(65537, _RSA_BITS), rsa.generate_private_key(65537, _RSA_BITS))

    def save(self, folder: Path) -> None:
        """Write ``ark_key.pem`` and ``ask_key.pem``, readable by the owner only."""
        _write_key(folder / "ark_key.pem", self.ark)
        _write_key(folder / "ask_key.pem", self.ask)

    @classmethod
    def load(cls, folder: Path) -> VendorKeys:
        """Read what :meth:`save` wrote."""
        return cls(_read_rsa(folder / "ark_key.pem"), _read_rsa(folder / "ask_key.pem"))


@dataclass(frozen=True, kw_only=True)
class AmdVendor:
    """One simulated vendor with one chip. ``chip_id``: 64 bytes. ``tcb``: the SVNs that the chip certificate is for.
    ``ask`` is an ASVK where ``vlek``.
    """

    product: Product
    vlek: bool
    keys: VendorKeys
    chip_key: ec.EllipticCurvePrivateKey
    ark: x509.Certificate
    ask: x509.Certificate
    chip: x509.Certificate
    chip_id: bytes
    tcb: Mapping[str, int]

    @classmethod
    def create(
        cls,
        product: Product = Product.MILAN,
        *,
        vlek: bool = False,
        keys: VendorKeys | None = None,
        chip_id: bytes | None = None,
        tcb: Mapping[str, int] = DEFAULT_TCB,
        now: datetime | None = None,
    ) -> AmdVendor:
        """A vendor whose certificates are valid from a day before ``now`` (the present by default) for 25 years, the
        VCEK for 7, the VLEK for 1. ``keys``: of the root and the intermediate, else new ones. ``chip_id``: else random.
        """
        keys = keys or VendorKeys.generate()
        start = (now or datetime.now(UTC)).replace(microsecond=0) - timedelta(days=1)
        ark_name, ask_name = amd_name(f"ARK-{product}"), amd_name(f"SEV-VLEK-{product}" if vlek else f"SEV-{product}")
        base = _SERIALS[product]
        ark = authority(
            ark_name,
            issuer=ark_name,
            key=keys.ark,
            issuer_key=keys.ark,
            serial=base,
            start=start,
            path_length=None,
        )
        ask = authority(
            ask_name,
            issuer=ark_name,
            key=keys.ask,
            issuer_key=keys.ark,
            serial=base + (0x101 if vlek else 1),
            start=start,
            path_length=0,
        )
        chip_id = chip_id or _random_chip_id(product)
        chip_key = ec.generate_private_key(ec.SECP384R1())
        tcb = _for_product(tcb, product)
        chip = chip_certificate(
            product=product,
            vlek=vlek,
            key=chip_key,
            ask=ask,
            ask_key=keys.ask,
            chip_id=chip_id,
            tcb=tcb,
            start=start,
        )
        return cls(
            product=product,
            vlek=vlek,
            keys=keys,
            chip_key=chip_key,
            ark=ark,
            ask=ask,
            chip=chip,
            chip_id=chip_id,
            tcb=tcb,
        )

    def new_chip(self, *, chip_id: bytes | None = None, tcb: Mapping[str, int] | None = None) -> AmdVendor:
        """The same vendor with another chip, or (``chip_id=vendor.chip_id``) the same chip at another TCB: either way
        another chip key and certificate.
        """
        chip_id = chip_id or _random_chip_id(self.product)
        tcb = _for_product(tcb or self.tcb, self.product)
        key = ec.generate_private_key(ec.SECP384R1())
        chip = chip_certificate(
            product=self.product,
            vlek=self.vlek,
            key=key,
            ask=self.ask,
            ask_key=self.keys.ask,
            chip_id=chip_id,
            tcb=tcb,
            start=self.ask.not_valid_before_utc,
        )
        return replace(self, chip_key=key, chip=chip, chip_id=chip_id, tcb=tcb)

    # What it hands out

    @property
    def root_pem(self) -> bytes:
        """The simulated root, PEM: the file for ``--trust-root``."""
        return self.ark.public_bytes(Encoding.PEM)

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """Chip certificate, ASK (or ASVK), ARK: DER."""
        return tuple(c.public_bytes(Encoding.DER) for c in (self.chip, self.ask, self.ark))

    def crl(
        self,
        revoked: Collection[x509.Certificate] = (),
        *,
        signer: rsa.RSAPrivateKey | None = None,
        last_update: datetime | None = None,
        next_update: datetime | None = None,
    ) -> bytes:
        """A CRL (DER) of the root, as AMD's key service gives them, that names the ``revoked`` certificates.

        Valid from the root's first day for 25 years unless told. ``signer``: another key, for a forged one.
        """
        start = last_update or self.ark.not_valid_before_utc
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ark.subject)
            .last_update(start)
            .next_update(next_update or start + 25 * YEAR)
        )
        for certificate in revoked:
            entry = x509.RevokedCertificateBuilder().revocation_date(start)
            serial = serial_number(certificate) or STAND_IN_SERIAL
            builder = builder.add_revoked_certificate(entry.serial_number(serial).build())
        key = signer or self.keys.ark
        crl = builder.sign(key, hashes.SHA384(), rsa_padding=PSS)
        # cryptography writes no serial number 0, which is what AMD's chip certificates have.
        before, after = b"\x02\x01\x7f\x17\x0d", b"\x02\x01\x00\x17\x0d"
        return resigned(crl.public_bytes(Encoding.DER), crl.tbs_certlist_bytes, before, after, key)

    def endorsements(self, revoked: Collection[x509.Certificate] = ()) -> AmdEndorsements:
        """All of its certificates and a CRL, as a verifier takes them."""
        certificates = tuple(load_certificate(der) for der in self.certificates)
        return AmdEndorsements(certificates, (load_crl(self.crl(revoked)),))

    # Reports

    def report(self, **fields: int | bytes) -> SnpReport:
        """An unsigned report of this chip; ``fields`` override those of SnpReport."""
        version = int(fields.get("version", 3))
        family, model, step = _CPUID[self.product] if version >= 3 else (0, 0, 0)
        tcb = encode_tcb(self.tcb, self.product.tcb_layout)
        values: dict[str, Any] = {
            "version": version,
            "policy": 0x30000,
            "current_tcb": tcb,
            "reported_tcb": tcb,
            "committed_tcb": tcb,
            "launch_tcb": tcb,
            "platform_info": 0x25,
            "flags": (SigningKey.VLEK if self.vlek else SigningKey.VCEK) << 2,
            "report_data": bytes(64),
            "measurement": sha384(b"simulated firmware").digest(),
            "report_id": sha256(b"simulated guest").digest(),
            "cpuid_fam_id": family,
            "cpuid_mod_id": model,
            "cpuid_step": step,
            "chip_id": bytes(64) if self.vlek else self.chip_id,
            "current_build": 29,
            "current_minor": 55,
            "current_major": 1,
            "committed_build": 29,
            "committed_minor": 55,
            "committed_major": 1,
        }
        return SnpReport(**(values | fields))

    def sign(self, report: SnpReport) -> SnpReport:
        """The same report with this chip's signature; ``raw`` holds its 1184 bytes."""
        signed = serialise_report(report)[:SIGNED_SIZE]
        r, s = decode_dss_signature(self.chip_key.sign(signed, ec.ECDSA(hashes.SHA384())))
        complete = replace(report, signature_r=r.to_bytes(72, "little"), signature_s=s.to_bytes(72, "little"))
        return parse_report(serialise_report(complete))

    def sign_report(self, **fields: int | bytes) -> bytes:
        """A signed report, 1184 bytes; ``fields`` override those of :meth:`report`."""
        return self.sign(self.report(**fields)).raw

    # On disk

    def save(self, folder: Path) -> None:
        """Write everything into ``folder`` (keys with mode 0600), so that :meth:`load` gives the same vendor."""
        folder.mkdir(parents=True, exist_ok=True)
        self.keys.save(folder)
        _write_key(folder / "chip_key.pem", self.chip_key)
        for name, certificate in (("ark", self.ark), ("ask", self.ask), ("chip", self.chip)):
            (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        state = {"product": self.product, "vlek": self.vlek, "chip_id": self.chip_id.hex(), "tcb": dict(self.tcb)}
        (folder / "vendor.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> AmdVendor:
        """Read what :meth:`save` wrote."""
        state = json.loads((folder / "vendor.json").read_text(encoding="utf-8"))
        chip_key = load_pem_private_key((folder / "chip_key.pem").read_bytes(), None)
        if not isinstance(chip_key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{folder / 'chip_key.pem'} is not an elliptic curve key")
        ark, ask, chip = (_read_certificate(folder / f"{name}.pem") for name in ("ark", "ask", "chip"))
        return cls(
            product=Product(state["product"]),
            vlek=state["vlek"],
            keys=VendorKeys.load(folder),
            chip_key=chip_key,
            ark=ark,
            ask=ask,
            chip=chip,
            chip_id=bytes.fromhex(state["chip_id"]),
            tcb=state["tcb"],
        )


def _for_product(tcb: Mapping[str, int], product: Product) -> dict[str, int]:
    return {name: tcb.get(name, 0) for name, _ in product.tcb_layout.value}


def _random_chip_id(product: Product) -> bytes:
    return os.urandom(8) + bytes(56) if product is Product.TURIN else os.urandom(64)


def _write_key(path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)


def _read_rsa(path: Path) -> rsa.RSAPrivateKey:
    # Checking an RSA-4096 key takes a second, and these are our own.
    key = load_pem_private_key(path.read_bytes(), None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError(f"{path} is not an RSA key")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    certificates, _ = split_objects(path.read_bytes(), str(path))
    return load_certificate(certificates[0])
