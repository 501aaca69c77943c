"""The policy file: TOML in, a Policy out, and back. Pure; files that it names are for the caller to read.

An unknown key, a wrong type or an unknown name is an InputError that names file and key: a rule that is silently not
understood would be a check that is silently not made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cosmian_vm.errors import InputError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.snp import Product
from cosmian_vm.reference.snapshot import Anchor
from cosmian_vm.verifier.policy import ALL_ANCHORS, PLATFORM_INFO_BITS, Policy, SnpRules
from cosmian_vm.verifier.result import CHECK_IDS

__all__ = ["MAX_POLICY_SIZE", "PolicyFile", "parse_policy", "show_policy"]

MAX_POLICY_SIZE = 1 << 20
"""Largest policy file, in bytes."""

_Svn = Annotated[int, Meta(ge=0, le=255)]
_STATUSES = (
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
_NAMES: dict[str, Iterable[str]] = {
    "tee.kinds": tuple(TeeKind),
    "intel.accepted_statuses": _STATUSES,
    "tpm.anchors": ALL_ANCHORS,
}
"""Keys whose values are of a few names."""
_COMPONENTS = frozenset({"bl", "tee", "snp", "ucode", "fmc"})
_ADVISORY = re.compile(r"INTEL-SA-\d{5}")


class _Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A table of the file."""


class _Checks(_Part, frozen=True, kw_only=True):
    required: tuple[str, ...] = ()
    no_warning: tuple[str, ...] = ()
    strict: bool = False


class _Tee(_Part, frozen=True, kw_only=True):
    kinds: tuple[TeeKind, ...] = tuple(TeeKind)


class _Amd(_Part, frozen=True, kw_only=True):
    vmpl: Annotated[int, Meta(ge=0, le=3)] | UnsetType = UNSET
    minimum_abi: str | UnsetType = UNSET
    smt: bool | UnsetType = UNSET
    single_socket: bool = False
    host_data: str | UnsetType = UNSET
    id_key_digests: tuple[str, ...] = ()
    author_key_digests: tuple[str, ...] = ()
    platform_info_set: tuple[str, ...] = ()
    platform_info_clear: tuple[str, ...] = ()
    minimum_tcb: dict[str, dict[str, _Svn]] = {}


class _Intel(_Part, frozen=True, kw_only=True):
    accepted_statuses: tuple[Literal[_STATUSES], ...] = ()  # type: ignore[valid-type] # the names, once
    accepted_advisories: tuple[str, ...] | UnsetType = UNSET
    pccs: str | UnsetType = UNSET


class _Tpm(_Part, frozen=True, kw_only=True):
    anchors: tuple[Anchor, ...] = tuple(sorted(ALL_ANCHORS))
    roots: tuple[str, ...] = ()
    operator_roots: tuple[str, ...] = ()


class _File(_Part, frozen=True, kw_only=True):
    roots: tuple[str, ...] = ()
    checks: _Checks = _Checks()
    tee: _Tee = _Tee()
    amd: _Amd = _Amd()
    intel: _Intel = _Intel()
    tpm: _Tpm = _Tpm()


class PolicyFile(msgspec.Struct, frozen=True, kw_only=True):
    """``policy``, and names of PEM files, relative to the policy's folder: ``roots`` of processors' makers beside the
    pinned ones, ``tpm_roots``, ``operator_roots``. ``pccs``: address of a caching service for Intel's collateral.
    """

    policy: Policy = Policy()
    roots: tuple[str, ...] = ()
    tpm_roots: tuple[str, ...] = ()
    operator_roots: tuple[str, ...] = ()
    pccs: str | None = None


def parse_policy(raw: bytes, what: str) -> PolicyFile:
    """Read a policy file; ``what`` names it in errors. Raises InputError."""
    try:
        told = msgspec.toml.decode(raw, type=_File)
        policy = _policy(told)
    except msgspec.ValidationError as exc:
        raise InputError(f"{what}: {_told(_plain(exc))}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(f"{what}: is not TOML: {_plain(exc)}") from exc
    except ValueError as exc:
        raise InputError(f"{what}: {exc}") from exc
    return PolicyFile(
        policy=policy,
        roots=told.roots,
        tpm_roots=told.tpm.roots,
        operator_roots=told.tpm.operator_roots,
        pccs=None if told.intel.pccs is UNSET else told.intel.pccs,
    )


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _told(problem: str) -> str:
    """What msgspec found wrong, with the key in front and what to do about it behind."""
    place = re.fullmatch(r"(?P<problem>.*) - at `(?:key in )?\$\.?(?P<key>.*)`", problem)
    key, problem = (place["key"], place["problem"]) if place else ("", problem)
    problem = problem.replace("Object contains unknown field", "unknown key").replace("`", "")
    names = _NAMES.get(key.partition("[")[0])
    if names is not None and problem.startswith("Invalid enum value "):
        problem = f"{problem.removeprefix('Invalid enum value ')} is not one of {', '.join(sorted(names))}"
    return f"{key}{': ' if key else ''}{problem} (cosmian_vm policy show explains every key)"


def _policy(told: _File) -> Policy:
    amd, intel = told.amd, told.intel
    _known("checks.required", told.checks.required, CHECK_IDS)
    _known("checks.no_warning", told.checks.no_warning, CHECK_IDS)
    _known("amd.minimum_tcb", amd.minimum_tcb, [str(product) for product in Product])
    for product, svns in amd.minimum_tcb.items():
        _known(f"amd.minimum_tcb.{product}", svns, _COMPONENTS)
    for name in ("platform_info_set", "platform_info_clear"):
        _known(f"amd.{name}", getattr(amd, name), PLATFORM_INFO_BITS)
    advisories = None if intel.accepted_advisories is UNSET else intel.accepted_advisories
    for advisory in advisories or ():
        if not _ADVISORY.fullmatch(advisory):
            raise ValueError(f"intel.accepted_advisories: {advisory!r} is no advisory id such as INTEL-SA-00615")
    return Policy(
        strict=told.checks.strict,
        required=frozenset(told.checks.required),
        no_warning=frozenset(told.checks.no_warning),
        kinds=frozenset(told.tee.kinds),
        anchors=frozenset(told.tpm.anchors),
        vmpl=None if amd.vmpl is UNSET else amd.vmpl,
        minimum_tcb=amd.minimum_tcb,
        snp=SnpRules(
            minimum_abi=None if amd.minimum_abi is UNSET else _abi(amd.minimum_abi),
            smt=None if amd.smt is UNSET else amd.smt,
            single_socket=amd.single_socket,
            host_data=None if amd.host_data is UNSET else _hex("amd.host_data", amd.host_data, 32),
            id_key_digests=frozenset(_hex("amd.id_key_digests", d, 48) for d in amd.id_key_digests),
            author_key_digests=frozenset(_hex("amd.author_key_digests", d, 48) for d in amd.author_key_digests),
            platform_set=frozenset(amd.platform_info_set),
            platform_clear=frozenset(amd.platform_info_clear),
        ),
        tcb_statuses=frozenset(intel.accepted_statuses),
        advisories=None if advisories is None else frozenset(advisories),
    )


def _known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is not one of {', '.join(sorted(known))}")


def _abi(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text)
    if match is None or max(map(int, match.groups())) > 255:
        raise ValueError(f"amd.minimum_abi: {text!r} is not a version such as 1.51")
    return int(match[1]), int(match[2])


def _hex(key: str, text: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise ValueError(f"{key}: {text[:20]!r} is not {size} bytes in hex")
    return value


def _listed(values: Iterable[str]) -> str:
    return json.dumps(sorted(values))


def show_policy(file: PolicyFile) -> str:
    """The policy in force as a policy file, every key with its meaning; keys that are not set stand as comments."""
    policy, snp = file.policy, file.policy.snp
    abi = "1.51" if snp.minimum_abi is None else f"{snp.minimum_abi[0]}.{snp.minimum_abi[1]}"
    smt = "true" if snp.smt is None else str(snp.smt).lower()
    lines = [
        "# Root certificates (PEM) to trust beside those of AMD and Intel; paths relative to this file.",
        f"roots = {json.dumps(list(file.roots))}",
        "",
        "[checks]",
        "# Checks that must have an answer, beyond those that always must. Ids: cosmian_vm verify --verbose",
        f"required = {_listed(policy.required)}",
        "# Checks whose warning is a failure.",
        f"no_warning = {_listed(policy.no_warning)}",
        "# Every IMA violation fails, not only those of files in the snapshot.",
        f"strict = {str(policy.strict).lower()}",
        "",
        "[tee]",
        "# Kinds of machine that may pass.",
        f"kinds = {_listed(policy.kinds)}",
        "",
        "[amd]",
        "# VMPL that the report must be of. Not set: the snapshot's, 0 without one.",
        f"{_unset(policy.vmpl)}vmpl = {policy.vmpl or 0}",
        "# Least firmware ABI that the guest policy may demand.",
        f"{_unset(snp.minimum_abi)}minimum_abi = {json.dumps(abi)}",
        "# false: the guest policy must forbid simultaneous multithreading.",
        f"{_unset(snp.smt)}smt = {smt}",
        "# true: the guest policy must bind it to a single socket.",
        f"single_socket = {str(snp.single_socket).lower()}",
        "# What the host put into host_data at launch (32 bytes, hex).",
        f"{_unset(snp.host_data)}host_data = {json.dumps((snp.host_data or bytes(32)).hex())}",
        "# SHA-384 of the keys of which one must have signed the ID block (48 bytes each, hex). Empty: any, or none.",
        f"id_key_digests = {_listed(d.hex() for d in snp.id_key_digests)}",
        f"author_key_digests = {_listed(d.hex() for d in snp.author_key_digests)}",
        f"# Bits of PLATFORM_INFO that must be set, and clear: {', '.join(PLATFORM_INFO_BITS)}.",
        f"platform_info_set = {_listed(snp.platform_set)}",
        f"platform_info_clear = {_listed(snp.platform_clear)}",
        "# Least security versions of the firmware, for each product: bl, tee, snp, ucode, and fmc on Turin. Where any",
        "# product has a table, one that has none is refused; an empty table accepts all of its versions.",
        *_minimum_tcb(policy),
        "",
        "[intel]",
        "# TCB statuses that pass with a warning beside UpToDate, SWHardeningNeeded and ConfigurationNeeded:",
        f"# {', '.join(_STATUSES[2:])}. Revoked never passes.",
        f"accepted_statuses = {_listed(policy.tcb_statuses)}",
        "# Advisories that may be open on the platform. Not set: any that the status lets pass.",
        f"{_unset(policy.advisories)}accepted_advisories = {_listed(policy.advisories or ())}",
        "# A caching service (PCCS) to ask instead of Intel.",
        f"{_unset(file.pccs)}pccs = {json.dumps(file.pccs or 'https://pccs.example.com:8081')}",
        "",
        "[tpm]",
        "# Who may vouch for the TPM's attestation key: tee, svsm, certificate, operator.",
        f"anchors = {_listed(policy.anchors)}",
        "# Root certificates (PEM) of makers of TPMs, and of clouds that certify the TPMs that they run themselves.",
        f"roots = {json.dumps(list(file.tpm_roots))}",
        f"operator_roots = {json.dumps(list(file.operator_roots))}",
        "",
    ]
    return "\n".join(lines)


def _unset(value: object) -> str:
    return "# " if value is None else ""


def _minimum_tcb(policy: Policy) -> list[str]:
    if not policy.minimum_tcb:
        return ["# [amd.minimum_tcb.Milan]", "# snp = 24"]
    lines = []
    for product, svns in sorted(policy.minimum_tcb.items()):
        lines += [f"[amd.minimum_tcb.{product}]", *(f"{name} = {svn}" for name, svn in sorted(svns.items()))]
    return lines
