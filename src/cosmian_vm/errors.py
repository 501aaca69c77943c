"""Every error that Cosmian VM raises on purpose.

CosmianVmError
├── EvidenceFormatError   bytes are not what they claim to be (parsers)
├── EndorsementError      a certificate, CRL or collateral is missing or unusable
├── InputError            a file or argument that the user named cannot be used      (exit 2)
│   └── ConfigError       agent.toml: file, key and what is expected
├── TransportError        no evidence to be had: unreachable, timed out              (exit 3)
│   ├── RefusedError      the agent answered, with an HTTP status that is no answer  (exit 3)
│   └── ConnectionLostError  the connection that was verified is gone, and nothing goes over another  (exit 3)
├── IssuanceError         a CA did not issue the certificate that was ordered
├── PeerChangedError      the machine that was appraised is no longer the one that answers (exit 1)
├── NotTrustedError       a machine that is not trusted, not the one meant, or not ours: nothing is sent (exit 1)
├── AttesterError         a device of this machine failed (agent side)
│   ├── NotAvailableError the machine has no such device
│   └── CredentialRefusedError  the TPM does not activate a credential: it was made for other keys
└── OrderError            the agent declines an order; carries the HTTP status

Foreign exceptions become one of these where they enter our code (``raise ... from exc``); the text is one line that
names the thing, the place and, where there is one, the remedy.
"""

__all__ = [
    "AttesterError",
    "ConfigError",
    "ConnectionLostError",
    "CosmianVmError",
    "CredentialRefusedError",
    "EndorsementError",
    "EvidenceFormatError",
    "InputError",
    "IssuanceError",
    "NotAvailableError",
    "NotTrustedError",
    "OrderError",
    "PeerChangedError",
    "RefusedError",
    "TransportError",
]


class CosmianVmError(Exception):
    """Root of the tree; ``str(error)`` is one printable line."""


class EvidenceFormatError(CosmianVmError):
    """Bytes that do not follow the format they were read as.

    ``what`` names the structure (``SNP report``), ``field`` the field or entry, ``offset`` the byte position in the
    input where reading stopped making sense (None where there is no meaningful one).
    """

    def __init__(self, what: str, problem: str, *, offset: int | None = None, field: str | None = None) -> None:
        self.what = what
        self.problem = problem
        self.offset = offset
        self.field = field
        place = "" if field is None else f", {field}"
        at = "" if offset is None else f" at offset {offset:#x}"
        super().__init__(f"{what}{place}{at}: {problem}")


class EndorsementError(CosmianVmError):
    """A certificate, CRL or piece of vendor collateral is missing or cannot be used."""


class InputError(CosmianVmError):
    """A file or argument given by the user cannot be read or makes no sense."""


class ConfigError(InputError):
    """The agent's configuration is wrong: the line names file, key and what is expected."""


class TransportError(CosmianVmError):
    """No answer could be had from the other side; nothing is known about its trustworthiness."""


class RefusedError(TransportError):
    """The agent answered with an HTTP error ``status`` and one line of text."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


class IssuanceError(CosmianVmError):
    """A certificate authority did not issue what was ordered, or issued something else."""


class ConnectionLostError(TransportError):
    """The connection that was verified is gone, and what was to be sent goes over no other."""


class PeerChangedError(CosmianVmError):
    """A connection to what should be the machine just appraised shows another key: nothing is sent over it."""


class NotTrustedError(CosmianVmError):
    """The machine is not trusted, not the one that is meant, or not ours; the order was not given."""


class AttesterError(CosmianVmError):
    """A device of this machine (TPM, TEE, securityfs) did not do what was asked."""


class NotAvailableError(AttesterError):
    """This machine has no such device."""


class CredentialRefusedError(AttesterError):
    """The TPM does not activate a credential: it was made for another key, or for another name, or is none."""


class OrderError(CosmianVmError):
    """The agent declines an order; ``status`` is the HTTP status that says why."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)
