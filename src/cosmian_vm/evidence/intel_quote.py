"""The frame that Intel's quotes share: header, body, ECDSA signature data. SGX version 3, SGX and TDX 4, 5.

Sources: Intel SGX ECDSA Quote Library API, appendix A (version 3); Intel TDX DCAP Quote Generation Library API,
appendix A.3 (versions 4 and 5). Little-endian::

    header 48 | [version 5: u16 body type, u32 body size] | body | u32 n | signature data, n bytes | trailing bytes

    signature data:   signature 64 | attestation public key 64 | [version 3: QE part] or [certification data type 6]
    certification data: u16 type | u32 n | n bytes;  type 6 holds a QE part, type 5 the PCK certificate chain as PEM
    QE part:          QE report 384 | signature 64 | u16 n | authentication data, n bytes | certification data

Signatures are ECDSA P-256 over SHA-256, r and s big-endian, 32 bytes each; the key is x and y, big-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cosmian_vm._reader import Reader
from cosmian_vm.evidence.sgx import ENCLAVE_REPORT_SIZE, EnclaveReport, read_enclave_report
from cosmian_vm.evidence.tdx import TDX_BODY_SIZES, TdReportBody, parse_td_body

__all__ = [
    "CERT_DATA_PCK_CHAIN",
    "CERT_DATA_QE_REPORT",
    "INTEL_QE_VENDOR_ID",
    "MAX_TRAILING",
    "TEE_TYPE_SGX",
    "TEE_TYPE_TDX",
    "Quote",
    "QuoteHeader",
    "QuoteSignature",
    "parse_quote",
    "serialise_quote",
    "serialise_signature",
]

TEE_TYPE_SGX = 0x00000000
TEE_TYPE_TDX = 0x00000081
INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
CERT_DATA_PCK_CHAIN = 5
CERT_DATA_QE_REPORT = 6

MAX_SIGNATURE_DATA = 64 * 1024
"""Signature data longer than this is refused; real ones hold about 4 KiB."""
MAX_TRAILING = 64 * 1024
"""Bytes behind the quote beyond this are refused: buffers of 8000 or 8192 bytes filled up with zeros are normal."""

_HEADER_SIZE = 48
_SIZE_FIELD = 4
_ECDSA_P256 = 2
_BODY_SGX = 1
_BODY_TD10 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteHeader:
    """The first 48 bytes. ``qe_svn``, ``pce_svn``: of the quoting enclave and the PCE; reserved from version 4 on.

    ``qe_vendor_id``: UUID, 16 bytes. ``user_data``: 20 bytes; the first 16 are Intel's QE identifier.
    """

    version: int
    attestation_key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes

    @property
    def tee(self) -> str:
        """``SGX`` or ``TDX``."""
        return "TDX" if self.tee_type == TEE_TYPE_TDX else "SGX"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteSignature:
    """ECDSA signature data. ``size``: its length in the quote, without the four bytes that say so.

    ``signature``: over header and body, by ``attestation_key``; ``qe_report``: of the enclave that holds this key,
    its report_data being SHA-256(attestation_key || qe_auth_data) and zeros; ``qe_report_signature``: over the QE's
    report, by the PCK. ``outer_type``: 6, or None in version 3. ``cert_data_type`` and ``cert_data``: who the PCK is.
    """

    size: int
    signature: bytes
    attestation_key: bytes
    outer_type: int | None
    qe_report: EnclaveReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    cert_data_type: int
    cert_data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """One quote. ``signed``: the bytes that its signature covers (header to the end of the body).

    ``body_type``: of version 5, None before. ``trailing``: what came behind it, covered by no signature and used for
    nothing.
    """

    header: QuoteHeader
    body_type: int | None
    body: EnclaveReport | TdReportBody
    signature: QuoteSignature
    signed: bytes = field(repr=False)
    trailing: bytes = field(repr=False)

    @property
    def td(self) -> TdReportBody | None:
        """The body, if it is a TD's."""
        return self.body if isinstance(self.body, TdReportBody) else None

    @property
    def enclave(self) -> EnclaveReport | None:
        """The body, if it is an enclave's."""
        return self.body if isinstance(self.body, EnclaveReport) else None


def parse_quote(raw: bytes) -> Quote:
    """Parse a quote: SGX in version 3, 4 or 5, TDX in version 4 or 5, with at most MAX_TRAILING bytes behind it.

    Raises EvidenceFormatError, naming field and offset, for anything else.
    """
    reader = Reader(raw, "Intel quote")
    header = _header(reader)
    body_type = None
    if header.version >= 5:
        body_type, size = _body_frame(reader, header)
    else:
        size = TDX_BODY_SIZES[_BODY_TD10] if header.tee_type == TEE_TYPE_TDX else ENCLAVE_REPORT_SIZE
    body_at = reader.position
    body: EnclaveReport | TdReportBody
    if header.tee_type == TEE_TYPE_TDX:
        body = parse_td_body(reader.take(size, "body"), base=body_at)
    else:
        body = read_enclave_report(reader)
    signed = raw[: reader.position]
    signature = _signature(reader, header.version)
    if reader.remaining > MAX_TRAILING:
        raise reader.error(f"{reader.remaining} bytes behind the quote, more than {MAX_TRAILING}", "trailing bytes")
    return Quote(
        header=header,
        body_type=body_type,
        body=body,
        signature=signature,
        signed=signed,
        trailing=reader.rest(),
    )


def _header(reader: Reader) -> QuoteHeader:
    version = reader.u16("version")  # 0
    if version not in (3, 4, 5):
        reader.position -= 2
        raise reader.error(f"version {version} is not one of 3, 4, 5", "version")
    key_type = reader.u16("attestation_key_type")  # 2
    if key_type != _ECDSA_P256:
        reader.position -= 2
        raise reader.error(f"type {key_type} is not ECDSA P-256 (2)", "attestation_key_type")
    tee_type = reader.u32("tee_type")  # 4
    known = (TEE_TYPE_SGX,) if version == 3 else (TEE_TYPE_SGX, TEE_TYPE_TDX)
    if tee_type not in known:
        reader.position -= 4
        raise reader.error(f"TEE type {tee_type:#x} cannot be in a version {version} quote", "tee_type")
    return QuoteHeader(
        version=version,
        attestation_key_type=key_type,
        tee_type=tee_type,
        qe_svn=reader.u16("qe_svn"),  # 8
        pce_svn=reader.u16("pce_svn"),  # 10
        qe_vendor_id=reader.take(16, "qe_vendor_id"),  # 12
        user_data=reader.take(20, "user_data"),  # 28
    )


def _body_frame(reader: Reader, header: QuoteHeader) -> tuple[int, int]:
    """Body type and size of a version 5 quote, which must fit each other and the TEE."""
    body_type = reader.u16("body_type")
    sizes = TDX_BODY_SIZES if header.tee_type == TEE_TYPE_TDX else {_BODY_SGX: ENCLAVE_REPORT_SIZE}
    if body_type not in sizes:
        reader.position -= 2
        raise reader.error(f"body type {body_type} cannot be in a quote of {header.tee}", "body_type")
    size = reader.u32("body_size")
    if size != sizes[body_type]:
        reader.position -= 4
        raise reader.error(f"{size} bytes for body type {body_type}, which has {sizes[body_type]}", "body_size")
    return body_type, size


def _signature(reader: Reader, version: int) -> QuoteSignature:
    size = reader.u32("signature_data_size")
    if size > MAX_SIGNATURE_DATA:
        reader.position -= _SIZE_FIELD
        raise reader.error(f"{size} bytes, more than {MAX_SIGNATURE_DATA}", "signature_data_size")
    start = reader.offset
    data = Reader(reader.take(size, "signature_data"), "quote signature data", base=start)
    signature = data.take(64, "signature")
    attestation_key = data.take(64, "attestation_key")
    outer_type = None
    inner = data
    if version >= 4:
        outer_type = data.u16("certification_data_type")
        if outer_type != CERT_DATA_QE_REPORT:
            data.position -= 2
            raise data.error(f"type {outer_type} is not a QE report (6)", "certification_data_type")
        length = data.u32("certification_data_size")
        start = data.offset
        inner = Reader(data.take(length, "certification_data"), "QE report certification data", base=start)
    qe_report = read_enclave_report(inner)
    qe_report_signature = inner.take(64, "qe_report_signature")
    qe_auth_data = inner.take(inner.u16("qe_auth_data_size"), "qe_auth_data")
    cert_data_type = inner.u16("cert_data_type")
    cert_data = inner.take(inner.u32("cert_data_size"), "cert_data")
    inner.end()
    data.end()
    return QuoteSignature(
        size=size,
        signature=signature,
        attestation_key=attestation_key,
        outer_type=outer_type,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        cert_data_type=cert_data_type,
        cert_data=cert_data,
    )


def serialise_quote(quote: Quote) -> bytes:
    """The bytes that parse_quote read."""
    header = quote.header
    body = quote.body
    out = header.version.to_bytes(2, "little") + header.attestation_key_type.to_bytes(2, "little")
    out += header.tee_type.to_bytes(4, "little") + header.qe_svn.to_bytes(2, "little")
    out += header.pce_svn.to_bytes(2, "little") + header.qe_vendor_id + header.user_data
    if quote.body_type is not None:
        out += quote.body_type.to_bytes(2, "little") + len(body.raw).to_bytes(4, "little")
    data = serialise_signature(quote.signature)
    return out + body.raw + len(data).to_bytes(4, "little") + data + quote.trailing


def serialise_signature(signature: QuoteSignature) -> bytes:
    """Signature data as it stands in a quote, without its length."""
    inner = signature.qe_report.raw + signature.qe_report_signature
    inner += len(signature.qe_auth_data).to_bytes(2, "little") + signature.qe_auth_data
    inner += signature.cert_data_type.to_bytes(2, "little")
    inner += len(signature.cert_data).to_bytes(4, "little") + signature.cert_data
    if signature.outer_type is not None:
        inner = signature.outer_type.to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
    return signature.signature + signature.attestation_key + inner
