"""inspect for TPM quotes: what was given beside them decides what is proven, and nothing more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.evidence import tpm as tpm_format
from cosmian_vm.evidence.ima import ImaEntry, make_entry, serialise_binary
from cosmian_vm.inspection import tpm as module
from cosmian_vm.inspection.model import (
    OTHER,
    PCR_VALUES,
    PUBLIC_KEY,
    TPM_PUBLIC,
    TPM_SIGNATURE,
    Item,
    Material,
    PcrValues,
    Roots,
    is_authentic,
)
from cosmian_vm.verifier.result import Check, Status

(KIND,) = module.KINDS
NONCE = b"a nonce of the verifier"
ALL = tuple(range(16))


class Scene:
    """A TPM, its quote, and files about it."""

    def __init__(self, pcrs: tuple[int, ...] = ALL) -> None:
        self.tpm = SoftTpm()
        for pcr in range(10):
            self.tpm.extend(pcr, {"sha256": bytes([pcr]) * 32})
        boot = sha256(b"".join(self.tpm.read_pcrs(range(10)).values())).digest()
        self.entries = [make_entry("ima-ng", "sha256", boot, b"boot_aggregate")]
        self.entries += [make_entry("ima-ng", "sha256", bytes([n]) * 32, b"/bin/%d" % n) for n in range(5)]
        for entry in self.entries[:4]:
            self.extend(entry)
        self.quote = self.tpm.quote(NONCE, pcrs)

    def extend(self, entry: ImaEntry) -> None:
        self.tpm.extend(10, {"sha256": sha256(entry.data).digest()})

    def items(self) -> list[Item]:
        return [
            Item(TPM_SIGNATURE, "quote.sig", self.quote.signature),
            Item(TPM_PUBLIC, "ak.tpmt_public", self.quote.ak_public),
            Item(OTHER, "nonce", NONCE),
        ]

    def log(self, entries: list[ImaEntry] | None = None) -> Item:
        return Item("ima-log-binary", "ima.bin", serialise_binary(self.entries if entries is None else entries))

    def values(self, changes: Mapping[int, bytes] | None = None) -> PcrValues:
        return PcrValues("pcrs.yaml", {"sha256": {**self.quote.pcrs, **(changes or {})}})


def verify(raw: bytes, items: list[Item], pcrs: tuple[PcrValues, ...] = ()) -> tuple[dict[str, Check], bool]:
    checks = KIND.verify(raw, Material(tuple(items), pcrs), datetime(2026, 1, 1, tzinfo=UTC), Roots())
    for check in checks:
        assert check.line.isprintable()
    return {check.id: check for check in checks}, is_authentic(checks)


def statuses(checks: dict[str, Check]) -> dict[str, str]:
    return {check_id: str(check.status) for check_id, check in checks.items()}


def test_everything_given() -> None:
    scene = Scene()
    checks, authentic = verify(scene.quote.quote, [*scene.items(), scene.log()], (scene.values(),))
    assert authentic
    assert set(statuses(checks).values()) == {"ok"}
    assert set(checks) == {
        "tpm.ak",
        "tpm.signature",
        "tpm.nonce",
        "pcr_digest",
        "ima.replay",
        "ima.boot_aggregate",
        "tpm.boot_pcrs",
    }
    assert "first 4 of 6 entries" in checks["ima.replay"].line


def test_facts_are_plain_data() -> None:
    scene = Scene()
    material = Material((*scene.items(), scene.log()), (scene.values(),))
    facts = KIND.facts(scene.quote.quote, material)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["ima_entries"] == 4
    assert facts["extra_data"] == NONCE.hex()
    assert facts["pcr_selection"] == [{"bank": "sha256", "pcrs": list(ALL)}]


def test_a_quote_without_signature_or_key_proves_nothing() -> None:
    scene = Scene()
    for items in ([], scene.items()[:1], scene.items()[1:], [Item(OTHER, "nonce", NONCE)]):
        checks, authentic = verify(scene.quote.quote, items, (scene.values(),))
        assert not authentic
        assert checks["tpm.signature"].status is Status.SKIP


def test_pcr_10_from_the_list_where_the_values_were_read_later() -> None:
    scene = Scene()
    stale = scene.values({10: bytes(32)})
    checks, authentic = verify(scene.quote.quote, [*scene.items(), scene.log()], (stale,))
    assert authentic
    assert statuses(checks)["pcr_digest"] == "ok"
    only_10 = Scene((10,))
    checks, authentic = verify(only_10.quote.quote, [*only_10.items(), only_10.log()])
    assert authentic
    assert statuses(checks)["ima.replay"] == "ok"


@pytest.mark.parametrize("pcr", [0, 7, 15])
def test_other_pcr_values(pcr: int) -> None:
    scene = Scene()
    checks, authentic = verify(scene.quote.quote, scene.items(), (scene.values({pcr: b"\x01" * 32}),))
    assert not authentic
    assert statuses(checks)["pcr_digest"] == "fail"


def test_lists_that_do_not_lead_to_the_quote() -> None:
    scene = Scene()
    swapped = [scene.entries[0], scene.entries[2], scene.entries[1], *scene.entries[3:]]
    damaged = [*scene.entries[:2], scene.entries[2]._replace(template_hash=b"\x01" * 20), *scene.entries[3:]]
    for entries in (swapped, scene.entries[1:], scene.entries[:3], damaged):
        checks, authentic = verify(scene.quote.quote, [*scene.items(), scene.log(entries)], (scene.values(),))
        assert not authentic
        assert statuses(checks)["ima.replay"] == "fail"


def test_a_list_without_its_boot_aggregate() -> None:
    scene = Scene()
    wrong = make_entry("ima-ng", "sha256", bytes(32), b"boot_aggregate")
    scene.tpm.power_cycle()
    scene.extend(wrong)
    scene.quote = scene.tpm.quote(NONCE, ALL)
    checks, authentic = verify(scene.quote.quote, [*scene.items(), scene.log([wrong])], (scene.values(),))
    assert not authentic
    assert statuses(checks)["ima.boot_aggregate"] == "fail"


def test_list_that_cannot_be_read() -> None:
    scene = Scene()
    items = [*scene.items(), Item("ima-log-binary", "ima.bin", b"\x0a\0\0\0")]
    checks, authentic = verify(scene.quote.quote, items, (scene.values(),))
    assert not authentic
    assert statuses(checks)["ima.replay"] == "fail"


@pytest.mark.parametrize("form", [NONCE, NONCE + b"\n", NONCE.hex().encode(), NONCE.hex().encode() + b"\n"])
def test_nonce_in_any_form(form: bytes) -> None:
    scene = Scene()
    items = [*scene.items()[:2], Item(OTHER, "nonce", form)]
    assert statuses(verify(scene.quote.quote, items)[0])["tpm.nonce"] == "ok"


def test_another_nonce() -> None:
    scene = Scene()
    checks, authentic = verify(scene.quote.quote, [*scene.items()[:2], Item(OTHER, "nonce", b"another")])
    assert not authentic
    assert statuses(checks)["tpm.nonce"] == "fail"


def test_the_keys_own_name_is_no_nonce() -> None:
    scene = Scene()
    name = Item(OTHER, "ak.name", tpm_format.name(scene.quote.ak_public))
    assert verify(scene.quote.quote, [*scene.items()[:2], name])[1]


def test_a_quote_without_a_nonce_warns() -> None:
    scene = Scene()
    scene.quote = scene.tpm.quote(b"", ALL)
    assert statuses(verify(scene.quote.quote, scene.items()[:2])[0])["tpm.nonce"] == "warning"


def test_key_that_is_no_ak() -> None:
    scene = Scene()
    scene.tpm.attributes &= ~tpm_format.ObjectAttributes.RESTRICTED
    scene.quote = scene.tpm.quote(NONCE, ALL)
    checks, authentic = verify(scene.quote.quote, scene.items())
    assert not authentic
    assert statuses(checks)["tpm.ak"] == "fail"


def spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_bare_key_verifies_and_warns() -> None:
    scene = Scene()
    items = [scene.items()[0], Item(PUBLIC_KEY, "ak.pem", spki(scene.tpm.key.public_key()))]
    checks, authentic = verify(scene.quote.quote, items)
    assert authentic
    assert statuses(checks)["tpm.ak"] == "warning"


def test_the_right_one_of_several_keys_and_signatures_is_found() -> None:
    scene = Scene()
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    stale = scene.tpm.quote(b"old", ALL)
    items = [
        Item(TPM_SIGNATURE, "old.sig", stale.signature),
        Item(PUBLIC_KEY, "other.pem", spki(other)),
        Item(TPM_PUBLIC, "damaged", scene.quote.ak_public[:-1] + b"\x00"),
        *scene.items(),
    ]
    assert verify(scene.quote.quote, items)[1]
    assert not verify(scene.quote.quote, items[:3])[1]


def test_bare_signatures() -> None:
    scene = Scene()
    key = rsa.generate_private_key(65537, 2048)
    for signed in (
        key.sign(scene.quote.quote, padding.PKCS1v15(), hashes.SHA256()),
        key.sign(scene.quote.quote, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384()),
    ):
        items = [Item(OTHER, "quote.sig", signed), Item(PUBLIC_KEY, "ak.pem", spki(key.public_key()))]
        assert verify(scene.quote.quote, items)[1]
        damaged = [Item(OTHER, "quote.sig", signed[:-1] + bytes([signed[-1] ^ 1])), items[1]]
        assert not verify(scene.quote.quote, damaged)[1]
    der = scene.tpm.key.sign(scene.quote.quote, ec.ECDSA(hashes.SHA256()))
    items = [Item(OTHER, "quote.der", der), Item(PUBLIC_KEY, "ak.pem", spki(scene.tpm.key.public_key()))]
    checks, authentic = verify(scene.quote.quote, items)
    assert authentic, checks
    facts = KIND.facts(scene.quote.quote, Material(tuple(items)))
    assert (facts["signature_scheme"], facts["signature_form"]) == ("ECDSA-sha256", "raw ECDSA")


def test_signature_file_beside_its_quote() -> None:
    scene = Scene()
    beside = [Item("tpm-quote", "quote.msg", scene.quote.quote), *scene.items()[1:]]
    assert KIND.claims is not None
    assert KIND.claims(scene.quote.signature, Material(tuple(beside)))
    assert not KIND.claims(scene.quote.signature, Material())
    assert not KIND.claims(b"anything", Material(tuple(beside)))
    assert verify(scene.quote.signature, beside)[1]
    damaged = scene.quote.signature[:-1] + bytes([scene.quote.signature[-1] ^ 1])
    assert not verify(damaged, beside)[1]
    assert not verify(scene.quote.signature, [Item("tpm-quote", "x", b"\xff\x54\x43\x47"), *beside[1:]])[1]


def test_signed_but_no_quote() -> None:
    scene = Scene()
    raw = scene.quote.quote[:4] + b"\x80\x17" + scene.quote.quote[6:]
    items = [Item(TPM_SIGNATURE, "sig", scene.tpm.sign(raw)), *scene.items()[1:]]
    assert KIND.matches(raw)
    checks, authentic = verify(raw, items)
    assert not authentic
    assert "no quote" in checks["tpm.signature"].line


@given(data=st.data())
def test_damaged_quotes_never_raise_and_never_pass(data: st.DataObject) -> None:
    scene = Scene()
    raw = bytearray(scene.quote.quote)
    at = data.draw(st.integers(4, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    assert not verify(bytes(raw), [*scene.items(), scene.log()], (scene.values(),))[1]


@given(
    blobs=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    OTHER,
                    TPM_PUBLIC,
                    TPM_SIGNATURE,
                    PUBLIC_KEY,
                    PCR_VALUES,
                    "hcl-report",
                    "certificate",
                    "tpm-quote",
                    "ima-log-ascii",
                ]
            ),
            st.binary(max_size=80),
        ),
        max_size=4,
    )
)
def test_any_material(blobs: list[tuple[str, bytes]]) -> None:
    scene = Scene((10,))
    items = [Item(kind, f"file {n}", raw) for n, (kind, raw) in enumerate(blobs)]
    assert not verify(scene.quote.quote, items)[1]
    KIND.facts(scene.quote.quote, Material(tuple(items)))


def test_selection_of_banks_without_names() -> None:
    scene = Scene()
    quote = tpm_format.parse_quote(scene.quote.quote)
    strange = quote._replace(pcr_selections=(tpm_format.PcrSelection(0x1234, b"\x01\0\0"),))
    raw = tpm_format.serialise_quote(strange)
    facts = KIND.facts(raw, Material((), (scene.values(),)))
    assert facts["pcr_selection"] == [{"bank": "0x1234", "pcrs": [0]}]


@pytest.mark.evidence
def test_an_hcl_report_names_its_key_only_if_it_binds(evidence: Path) -> None:
    folder = evidence / "azure" / "trustee-milan-v2"
    hcl = (folder / "hcl.bin").read_bytes()
    damaged = hcl.replace(b"HCLEkPub", b"HCLEkPux", 1)
    assert damaged != hcl
    for report, expected in ((hcl, True), (damaged, False)):
        items = [
            Item(OTHER, "quote.sig", (folder / "quote.sig").read_bytes()),
            Item("hcl-report", "hcl.bin", report),
        ]
        checks, authentic = verify((folder / "quote.msg").read_bytes(), items)
        assert authentic == expected
        assert (statuses(checks)["tpm.ak"] == "ok") == expected
