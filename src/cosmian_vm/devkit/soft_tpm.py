"""A TPM in a few lines of Python: PCRs, a clock, an AK and quotes in the real format. Fast, and it lies on demand.

It is what a hypervisor's own vTPM is to a verifier: a key and a program that signs with it. All its state is open to
change (``pcrs``, ``clock``, ``reset_count``, ``attributes``...), so that tests can forge one thing at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import new as new_hash
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from cosmian_vm.attester.platform import TpmQuote
from cosmian_vm.devkit.pcrs import BANKS
from cosmian_vm.errors import NotAvailableError
from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk
from cosmian_vm.evidence.tpm import (
    Alg,
    Curve,
    EccParameters,
    ObjectAttributes,
    RsaParameters,
    Scheme,
    Symmetric,
    TpmPublic,
    TpmQuoteInfo,
    TpmSignature,
    compute_pcr_digest,
    name,
    pcr_selection,
    serialise_public,
    serialise_quote,
    serialise_signature,
)

__all__ = ["AK_ATTRIBUTES", "SoftTpm"]

AK_ATTRIBUTES = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.USER_WITH_AUTH
    | ObjectAttributes.NO_DA
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN
)
"""What an honest AK is (TPMA_OBJECT)."""

_PCRS = 24
_QUOTE_MILLISECONDS = 40
_DYNAMIC = range(17, 23)  # TCG PC Client Platform TPM Profile, 4.6: all ones until a dynamic launch


def _power_on() -> dict[str, dict[int, bytes]]:
    return {
        bank: {pcr: (b"\xff" if pcr in _DYNAMIC else b"\x00") * size for pcr in range(_PCRS)}
        for bank, size in BANKS.items()
    }


@dataclass(kw_only=True)
class SoftTpm:
    """A TpmDevice and PcrBanks. ``seed`` decides the AK: the same seed, the same key.

    ``pcrs``: values by bank and index. ``clock``: milliseconds; each quote takes some. ``attributes``, ``scheme``: of
    the AK's public area. ``bank``, ``selection``: what is quoted instead of what is asked, where set. ``rsa_key``: an
    AK of RSA, as Azure's vTPM has.
    """

    seed: bytes = b"a simulated TPM"
    attributes: ObjectAttributes = AK_ATTRIBUTES
    scheme: Scheme = field(default_factory=lambda: Scheme(Alg.ECDSA, Alg.SHA256))
    clock: int = 1_000_000
    reset_count: int = 3
    restart_count: int = 0
    safe: bool = True
    firmware_version: int = 0x2019_1023_0016_3636
    pcrs: dict[str, dict[int, bytes]] = field(default_factory=_power_on)
    bank: str = "sha256"
    selection: tuple[int, ...] | None = None
    certificate: bytes | None = None
    rsa_key: rsa.RSAPrivateKey | None = None

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The AK's private key, where it is none of RSA. No real TPM would say."""
        number = int.from_bytes(sha256(b"cosmian-vm devkit AK\x00" + self.seed).digest())
        return ec.derive_private_key(number >> 1 | 1, ec.SECP256R1())

    def provision(self) -> None:
        """Nothing to do: the key comes from the seed."""

    def provisioned(self) -> bool:
        """Always."""
        return True

    def ak_public(self) -> bytes:
        """TPMT_PUBLIC of the AK."""
        numbers = (self.rsa_key or self.key).public_key().public_numbers()
        if isinstance(numbers, rsa.RSAPublicNumbers):
            size = numbers.n.bit_length()
            own: RsaParameters | EccParameters = RsaParameters(
                Symmetric(), Scheme(Alg.RSASSA, Alg.SHA256), size, 0, numbers.n.to_bytes(size // 8)
            )
        else:
            x, y = numbers.x.to_bytes(32), numbers.y.to_bytes(32)
            own = EccParameters(Symmetric(), self.scheme, Curve.NIST_P256, Scheme(), x, y)
        return serialise_public(TpmPublic(Alg.SHA256, self.attributes, b"", own))

    def ak_certificate(self) -> bytes | None:
        """``certificate``."""
        return self.certificate

    def platform_ak(self, qualifying_data: bytes) -> PlatformAk | None:  # noqa: ARG002 - the protocol's
        """None: nobody certified a key of this TPM."""
        return None

    def ek(self) -> EndorsementKey | None:
        """None: no EK to activate a credential with."""
        return None

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:  # noqa: ARG002 - the protocol's
        """Raises NotAvailableError."""
        raise NotAvailableError("this TPM activates no credentials")

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        """PCR = H(PCR || digest) in each bank named."""
        for bank, digest in digests.items():
            self.pcrs[bank][pcr] = new_hash(bank, self.pcrs[bank][pcr] + digest).digest()

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Values of the sha256 bank."""
        return {pcr: self.pcrs["sha256"][pcr] for pcr in pcrs}

    def power_cycle(self) -> None:
        """An orderly reboot: PCRs at their start, one reset more."""
        self.pcrs = _power_on()
        self.reset_count += 1
        self.restart_count = 0

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        """A quote over ``pcrs`` of the sha256 bank, unless ``selection`` and ``bank`` say otherwise."""
        wanted = sorted(set(pcrs if self.selection is None else self.selection))
        self.clock += _QUOTE_MILLISECONDS
        selections = (pcr_selection(self.bank, wanted),)
        info = TpmQuoteInfo(
            qualified_signer=self._qualified_name(),
            extra_data=qualifying_data,
            clock=self.clock,
            reset_count=self.reset_count,
            restart_count=self.restart_count,
            safe=self.safe,
            firmware_version=self.firmware_version,
            pcr_selections=selections,
            pcr_digest=compute_pcr_digest(selections, self.pcrs, Alg.SHA256),
        )
        attest = serialise_quote(info)
        return TpmQuote(
            quote=attest, signature=self.sign(attest), ak_public=self.ak_public(), pcrs=self._claimed(wanted)
        )

    def sign(self, attest: bytes) -> bytes:
        """TPMT_SIGNATURE of anything at all: what a restricted key would refuse."""
        key = self.rsa_key or self.key
        if isinstance(key, rsa.RSAPrivateKey):
            made = key.sign(attest, padding.PKCS1v15(), SHA256())
            return serialise_signature(TpmSignature(Alg.RSASSA, Alg.SHA256, rsa=made))
        r, s = decode_dss_signature(key.sign(attest, ec.ECDSA(SHA256())))
        return serialise_signature(TpmSignature(Alg.ECDSA, Alg.SHA256, r=r.to_bytes(32), s=s.to_bytes(32)))

    def _claimed(self, wanted: Iterable[int]) -> dict[int, bytes]:
        return {pcr: self.pcrs[self.bank][pcr] for pcr in wanted}

    def _qualified_name(self) -> bytes:
        """QN = nameAlg || H(QN of the parent || name) (TPM 2.0 Library, part 1, 16.2); the parent is made up."""
        return Alg.SHA256.to_bytes(2) + sha256(b"\x40\x00\x00\x0b" + name(self.ak_public())).digest()
