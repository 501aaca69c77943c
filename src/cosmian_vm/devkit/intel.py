"""A simulated Intel: a root of its own, a platform and quoting enclaves that make TDX and SGX quotes as real ones are.

Everything is as Intel's but the root: whoever trusts it (``roots=`` of the verifier, ``--trust-root``) finds genuine
quotes, collateral and CRLs; whoever does not finds a forged chain. Each value can be set otherwise, to lie with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit._intel_certificates import DAY_ZERO, Pki, Platform
from cosmian_vm.evidence.intel_quote import (
    CERT_DATA_PCK_CHAIN,
    CERT_DATA_QE_REPORT,
    INTEL_QE_VENDOR_ID,
    TEE_TYPE_SGX,
    TEE_TYPE_TDX,
    Quote,
    QuoteHeader,
    QuoteSignature,
    serialise_quote,
)
from cosmian_vm.evidence.sgx import EnclaveReport, parse_enclave_report
from cosmian_vm.evidence.tdx import TdReportBody, parse_td_body

__all__ = ["DAY_ZERO", "Document", "IntelVendor", "Lies", "Platform", "enclave_report", "td_body"]

_QE_SIGNER = {
    TEE_TYPE_SGX: bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"),
    TEE_TYPE_TDX: bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"),
}
_QE_PRODUCT = {TEE_TYPE_SGX: 1, TEE_TYPE_TDX: 2}
_QE_SVN = 8
_ATTRIBUTES = bytes.fromhex("1100000000000000e700000000000000")
_MODULE_SVN, _MODULE_VERSION = 5, 1
_LIFETIME = timedelta(days=30)


def enclave_report(**fields: bytes | int) -> EnclaveReport:
    """A report body; ``fields``: of EnclaveReport, zero where not named."""
    values: dict[str, bytes | int] = {"attributes": bytes.fromhex("0500000000000000e700000000000000"), **fields}

    def octets(name: str, size: int) -> bytes:
        return bytes(values.get(name, b"")).ljust(size, b"\x00")[:size]

    def number(name: str) -> bytes:
        return int(values.get(name, 0)).to_bytes(2, "little")

    return parse_enclave_report(
        octets("cpu_svn", 16) + octets("misc_select", 4) + bytes(12) + octets("isv_ext_prod_id", 16)
        + octets("attributes", 16) + octets("mr_enclave", 32) + bytes(32) + octets("mr_signer", 32) + bytes(32)
        + octets("config_id", 64) + number("isv_prod_id") + number("isv_svn") + number("config_svn") + bytes(42)
        + octets("isv_family_id", 16) + octets("report_data", 64)
    )  # fmt: skip


def td_body(fields: Mapping[str, bytes] | None = None, *, td_1_5: bool = False, **more: bytes) -> TdReportBody:
    """A TD report body; ``fields`` and ``more``: of TdReportBody (``rtmr0`` ... ``rtmr3`` one by one), zero where not
    named.
    """
    svn = bytes((_MODULE_SVN, _MODULE_VERSION, 3)).ljust(16, b"\x00")
    values = {"td_attributes": bytes.fromhex("0000001000000000"), "tee_tcb_svn": svn, "tee_tcb_svn2": svn}
    values |= {**(fields or {}), **more}
    layout = {"tee_tcb_svn": 16, "mr_seam": 48, "mr_signer_seam": 48, "seam_attributes": 8, "td_attributes": 8}
    layout |= {"xfam": 8, "mr_td": 48, "mr_config_id": 48, "mr_owner": 48, "mr_owner_config": 48}
    layout |= {f"rtmr{index}": 48 for index in range(4)} | {"report_data": 64}
    if td_1_5:
        layout |= {"tee_tcb_svn2": 16, "mr_service_td": 48}
    return parse_td_body(b"".join(values.get(name, b"").ljust(size, b"\x00") for name, size in layout.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lies:
    """What is to be otherwise than in a genuine quote, before it is signed. ``qe``: fields of the quoting enclave's
    report. ``signer``: key that signs this report instead of the PCK's. ``chain``: PEM instead of the PCK's.
    """

    vendor_id: bytes = INTEL_QE_VENDOR_ID
    qe: Mapping[str, bytes | int] = field(default_factory=dict)
    auth_data: bytes = bytes(range(32))
    signer: ec.EllipticCurvePrivateKey | None = None
    cert_data_type: int = CERT_DATA_PCK_CHAIN
    chain: bytes | None = None
    trailing: bytes = b""


_HONEST = Lies()


@dataclass(frozen=True, slots=True)
class Document:
    """A signed JSON document of the collateral."""

    text: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelVendor:
    """The vendor and one platform of its. ``issued``: the date of its collateral, which holds for 30 days."""

    pki: Pki
    attestation_key: ec.EllipticCurvePrivateKey = field(repr=False)
    issued: datetime = DAY_ZERO

    @classmethod
    def create(cls, platform: Platform | None = None) -> IntelVendor:
        """A new vendor with new keys."""
        return cls(pki=Pki.create(platform or Platform()), attestation_key=ec.generate_private_key(ec.SECP256R1()))

    @property
    def root(self) -> x509.Certificate:
        """What a verifier has to trust."""
        return self.pki.root

    @property
    def now(self) -> datetime:
        """A time at which everything holds."""
        return self.issued + timedelta(days=1)

    def quote(self, body: EnclaveReport | TdReportBody, *, version: int | None = None, lies: Lies = _HONEST) -> bytes:
        """A quote of ``body``, in the lowest version that carries it unless ``version`` says otherwise."""
        tee_type = TEE_TYPE_TDX if isinstance(body, TdReportBody) else TEE_TYPE_SGX
        long = isinstance(body, TdReportBody) and body.tee_tcb_svn2 is not None
        version = version or (3 if tee_type == TEE_TYPE_SGX else 5 if long else 4)
        header = QuoteHeader(
            version=version,
            attestation_key_type=2,
            tee_type=tee_type,
            qe_svn=0,
            pce_svn=0,
            qe_vendor_id=lies.vendor_id,
            user_data=bytes(20),
        )
        body_type = None if version < 5 else 1 if tee_type == TEE_TYPE_SGX else 3 if long else 2
        quote = Quote(
            header=header,
            body_type=body_type,
            body=body,
            signature=self._signature(tee_type, version, lies),
            signed=b"",
            trailing=lies.trailing,
        )
        frame = 48 + (6 if body_type is not None else 0)
        signed = serialise_quote(quote)[: frame + len(body.raw)]
        own = replace(quote.signature, signature=_sign(self.attestation_key, signed))
        return serialise_quote(replace(quote, signature=own))

    def _signature(self, tee_type: int, version: int, lies: Lies) -> QuoteSignature:
        """Signature data in which only the quote's own signature is missing."""
        numbers = self.attestation_key.public_key().public_numbers()
        point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        fields: dict[str, bytes | int] = {
            "attributes": _ATTRIBUTES,
            "mr_signer": _QE_SIGNER[tee_type],
            "isv_prod_id": _QE_PRODUCT[tee_type],
            "isv_svn": _QE_SVN,
            "report_data": sha256(point + lies.auth_data).digest(),
        }
        qe_report = enclave_report(**(fields | dict(lies.qe)))
        return QuoteSignature(
            size=0,
            signature=bytes(64),
            attestation_key=point,
            outer_type=CERT_DATA_QE_REPORT if version >= 4 else None,
            qe_report=qe_report,
            qe_report_signature=_sign(lies.signer or self.pki.pck_key, qe_report.raw),
            qe_auth_data=lies.auth_data,
            cert_data_type=lies.cert_data_type,
            cert_data=self.pki.pck_chain if lies.chain is None else lies.chain,
        )

    def collateral(
        self,
        tee: str = "TDX",
        *,
        tcb_info: Document | None = None,
        qe_identity: Document | None = None,
        revoked: Sequence[x509.Certificate] = (),
        **members: str,
    ) -> bytes:
        """QuoteCollateralV3 as JSON. ``revoked``: certificates that stand in the CRL of their issuer. ``members``: of
        the JSON object, to be otherwise.
        """
        tcb_info = tcb_info or self.tcb_info(tee)
        qe_identity = qe_identity or self.qe_identity(tee)
        chain = _pem((self.pki.signer, self.pki.root))
        whole = {
            "pck_crl_issuer_chain": _pem((self.pki.authority, self.pki.root)),
            "root_ca_crl": self.crl(self.pki.root, revoked).hex(),
            "pck_crl": self.crl(self.pki.authority, revoked).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": tcb_info.text,
            "tcb_info_signature": tcb_info.signature.hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": qe_identity.text,
            "qe_identity_signature": qe_identity.signature.hex(),
        }
        return json.dumps({**whole, **members}).encode()

    def crl(self, issuer: x509.Certificate, revoked: Sequence[x509.Certificate] = ()) -> bytes:
        """The CRL (DER) of the root or of the Platform CA, with those of ``revoked`` that it issued."""
        return self.pki.crl(issuer, revoked, self.issued, self.issued + _LIFETIME)

    def tcb_info(
        self, tee: str = "TDX", *, status: str = "UpToDate", advisories: Iterable[str] = (), **members: object
    ) -> Document:
        """TCB info with one level, which is the platform's. ``members``: to be otherwise."""
        platform = self.pki.platform
        tcb: dict[str, Any] = {
            "sgxtcbcomponents": [{"svn": svn} for svn in platform.components],
            "pcesvn": platform.pce_svn,
        }
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        info: dict[str, Any] = {
            "id": tee,
            "version": 3,
            "issueDate": _stamp(self.issued),
            "nextUpdate": _stamp(self.issued + _LIFETIME),
            "fmspc": platform.fmspc.hex().upper(),
            "pceId": platform.pce_id.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
        }
        if tee == "TDX":
            tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in (5, 0, 3, *[0] * 13)]
            identity = _level({"isvsvn": _MODULE_SVN}, "UpToDate", ())
            info["tdxModule"] = module
            info["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": [identity]}]
        info["tcbLevels"] = [_level(tcb, status, advisories)]
        return self.document({**info, **members})

    def qe_identity(self, tee: str = "TDX", *, status: str = "UpToDate", **members: object) -> Document:
        """The identity of this vendor's quoting enclave. ``members``: to be otherwise."""
        tee_type = TEE_TYPE_TDX if tee == "TDX" else TEE_TYPE_SGX
        identity = {
            "id": "TD_QE" if tee == "TDX" else "QE",
            "version": 2,
            "issueDate": _stamp(self.issued),
            "nextUpdate": _stamp(self.issued + _LIFETIME),
            "tcbEvaluationDataNumber": 17,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": _QE_SIGNER[tee_type].hex().upper(),
            "isvprodid": _QE_PRODUCT[tee_type],
            "tcbLevels": [_level({"isvsvn": _QE_SVN}, status, ())],
        }
        return self.document({**identity, **members})

    def document(self, value: Mapping[str, Any], key: ec.EllipticCurvePrivateKey | None = None) -> Document:
        """``value`` as JSON without spaces, signed by the TCB signer, or by another ``key``."""
        text = json.dumps(value, separators=(",", ":"))
        return Document(text, _sign(key or self.pki.signer_key, text.encode()))


def _level(tcb: Mapping[str, Any], status: str, advisories: Iterable[str]) -> dict[str, Any]:
    return {
        "tcb": tcb,
        "tcbDate": _stamp(DAY_ZERO - timedelta(days=100)),
        "tcbStatus": status,
        "advisoryIDs": list(advisories),
    }


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pem(certificates: Iterable[x509.Certificate]) -> str:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates).decode()


def _sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256 as quotes have it: r and s, 32 bytes each, big-endian."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
