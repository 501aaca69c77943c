"""Before an order: the machine has proved what it is, it is the one that is meant, and it is ours. Then the connection
that was attested, and no other, carries the order.

1. genuine and bound to this very connection: the appraisal, with snapshot or reference values where they are given
2. the one that is meant: the snapshot's, or what is remembered of this URL, or, for secrets, the user's word. Reference
   values are not enough for a secret: anybody can boot the image, or have a TPM of his own say that he did
3. ours: the owner's key is among its owners; a machine that nobody owns is claimed
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cosmian_vm.cli._common import Target, read_file
from cosmian_vm.cli._machines import Identity, Machines, differences, identity_of
from cosmian_vm.cli._session import Examined, Setup, examine
from cosmian_vm.cli.render import OK, WARNING, lines
from cosmian_vm.client import AgentClient
from cosmian_vm.client.owner_key import config_folder, create, load
from cosmian_vm.errors import NotTrustedError, RefusedError
from cosmian_vm.owner_proof import ANYONE, UNKNOWN

if TYPE_CHECKING:
    from cosmian_vm.client.owner_key import OwnerKey
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.snapshot import Snapshot
    from cosmian_vm.verifier.policy import Policy

__all__ = ["Means", "means_from", "own", "prove", "recognise", "remember"]

_NOT_FOUND = 404
_CONFLICT = 409


class Means(NamedTuple):
    """What the options say of the machine that is meant. ``secret``: something is sent that only our machine may see.
    ``remember``: keep what the machine is. ``quiet``: of a verdict that is trusted, say nothing.
    """

    policy: Policy
    setup: Setup
    reference: Snapshot | None = None
    reference_name: str | None = None
    build: BuildReference | None = None
    build_name: str | None = None
    no_verify: bool = False
    trust_new: bool = False
    secret: bool = False
    remember: bool = False
    quiet: bool = False
    verbose: bool = False


def means_from(
    options: Mapping[str, Any], *, secret: bool = False, remember: bool = False, quiet: bool = True
) -> Means:
    """What ``order_options`` (and ``--trust-new``) were given. Raises InputError, UsageError."""
    from cosmian_vm.cli._session import setup_from
    from cosmian_vm.reference import build_reference
    from cosmian_vm.reference import snapshot as snapshots

    snapshot, build_name, unverified = options["snapshot_file"], options["reference_file"], options["no_verify"]
    if unverified and (snapshot is not None or build_name is not None or options.get("trust_new")):
        raise click.UsageError("--no-verify compares with nothing: leave it out, or the files to compare with")
    reference = None if snapshot is None else snapshots.load(snapshot)
    build = None
    if build_name is not None:
        raw = read_file(build_name, build_reference.MAX_REFERENCE_SIZE)
        build = build_reference.parse(raw, build_name)
    lacking = options["without_tpm"] if reference is None else reference.without_tpm
    setup = setup_from(options["chosen"])
    return Means(
        policy=replace(
            setup.policy,
            allow_reboot=options["allow_reboot"],
            without_tpm=lacking,
            api=int(options.get("api", "2")),
        ),
        setup=setup,
        reference=reference,
        reference_name=snapshot,
        build=build,
        build_name=build_name,
        no_verify=unverified,
        trust_new=options.get("trust_new", False),
        secret=secret,
        remember=remember,
        quiet=quiet,
        verbose=options["verbose"],
    )


def prove(client: AgentClient, target: Target, means: Means) -> None:
    """All three steps; afterwards ``client`` gives orders as the owner, over the key that was attested.

    Raises NotTrustedError where one of them fails, TransportError where there is no evidence.
    """
    folder = config_folder()
    client.hold(held=False)
    if means.no_verify:
        _take_its_word(client, target, folder)
        return
    client.owner = load(folder)
    examined = examine(
        client,
        means.setup,
        means.policy,
        reference=means.reference,
        reference_name=means.reference_name,
        build=means.build,
        build_name=means.build_name,
        quiet=means.quiet,
    )
    if _claimed_since(examined, means, client.owner):
        examined = _judged_as_ours(client, examined, means)
    trusted = examined.outcome.verdict.trusted
    if means.verbose or not (means.quiet and trusted):
        for line in lines(examined.outcome, verbose=means.verbose):
            click.echo(line)
    if not trusted:
        raise NotTrustedError("nothing was sent to a machine that is not trusted")
    client.pin(examined.evidence.tls.leaf)
    client.hold(held=means.secret)  # the key may be the same on another connection, the machine behind it not
    if examined.evidence.api == 1:  # asked for with --api 1: an agent of 1.3 knows no owners and proves no identity
        client.owner = None
        return
    seen = recognise(client, examined, means, folder)
    own(client, examined.evidence.owners, folder)
    remember(client, seen, means, folder)


def _claimed_since(examined: Examined, means: Means, key: OwnerKey | None) -> bool:
    """Whether the snapshot is of before the claim, and the claim was ours: then the new owner is no surprise."""
    unclaimed = means.reference is not None and means.reference.owners == ()
    return unclaimed and key is not None and examined.evidence.owners == (key.fingerprint,)


def _judged_as_ours(client: AgentClient, examined: Examined, means: Means) -> Examined:
    """The same evidence, held against ourselves as the owner too."""
    from cosmian_vm.cli._judge import judge

    outcome = judge(
        examined.evidence,
        examined.nonce,
        means.setup,
        replace(means.policy, owner=examined.evidence.owners[0]),
        url=client.url,
        reference=means.reference,
        reference_name=means.reference_name,
        build=means.build,
        build_name=means.build_name,
        whitelist=None,
        applications=(),
    )
    return Examined(examined.evidence, examined.nonce, outcome)


def recognise(client: AgentClient, examined: Examined, means: Means, folder: Path) -> Identity | None:
    """Step 2; what is to be remembered from now on, None where that is known. Raises NotTrustedError, UsageError."""
    anchor = examined.outcome.anchor or "operator"
    seen = identity_of(examined.evidence, anchor)
    known = Machines(folder).known().get(client.url)
    if known is not None:
        changed = differences(known, seen)
        if not changed and known.anchor == seen.anchor and seen.is_unlike_others:
            return None
        relaunched = set(changed) == {"report_id"} and known.ak_name is not None  # without a TPM that is any machine
        if changed and not (relaunched and means.policy.allow_reboot):
            raise NotTrustedError(
                f"{client.url}: this is not the machine that is remembered since {known.since or 'long'}: "
                f"{'; '.join(changed.values())}; nothing was sent. If you know why: "
                f"cosmian_vm known remove {client.url}"
                + (", or --allow-reboot if it was stopped and started again" if relaunched else "")
            )
        if changed:
            click.echo(f"{WARNING} Launched anew since it was remembered: {changed['report_id']}")
    named = known is not None or means.reference is not None
    if means.secret and not (named and seen.is_unlike_others):
        _ask(client.url, seen, trust_new=means.trust_new)
    return seen


def remember(client: AgentClient, seen: Identity | None, means: Means, folder: Path) -> None:
    """What step 2 found, once the machine is ours. Raises InputError."""
    if means.remember and seen is not None:
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        Machines(folder).remember(client.url, _since(seen, now))
        click.echo(f"{OK} Remembered as {client.url}: {seen.short()}")


def _since(identity: Identity, moment: str) -> Identity:
    import msgspec

    return msgspec.structs.replace(identity, since=moment)


def _ask(url: str, seen: Identity, *, trust_new: bool) -> None:
    """A genuine machine that nobody has seen before, or that looks like many: anybody can rent one."""
    click.echo(f"{WARNING} {url} is a genuine machine, but nothing tells yet that it is yours:")
    for line in seen.lines():
        click.echo(f"    {line}")
    if trust_new:
        return
    if not _on_a_terminal():
        remedy = "Give --snapshot (cosmian_vm snapshot takes one) or,"
        if not seen.is_unlike_others:
            remedy = "Without a TPM nothing tells it from others of its kind:"
        raise click.UsageError(
            f"whose machine is it? {remedy} in a script that knows what it does, --trust-new; nothing was sent"
        )
    if not click.confirm("Is it yours, and shall it be remembered?", default=False, err=True):
        raise NotTrustedError("nothing was sent")


def _on_a_terminal() -> bool:
    return sys.stdin.isatty()


def own(client: AgentClient, owners: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Step 3; the owners afterwards. ``owners``: as the evidence has them. Raises NotTrustedError."""
    if owners == (ANYONE,):
        client.owner = None
        click.echo(f'{WARNING} This agent takes orders from anyone (owners = "anyone" in its agent.toml)')
        return owners
    key = client.owner or load(folder)
    if owners == (UNKNOWN,):
        client.owner = key
        return owners
    if owners:
        if key is None or key.fingerprint not in owners:
            mine = "you have no owner's key" if key is None else f"your key is {key.fingerprint}"
            raise NotTrustedError(
                f"{client.url} is owned by {', '.join(owners)}; {mine}: nothing was sent. An owner can add you with "
                "`cosmian_vm owner add`, and `cosmian_vm owner import` brings a key of yours from a backup"
            )
        client.owner = key
        return owners
    client.owner = key = create(folder)
    try:
        told = client.claim()
    except RefusedError as exc:
        if exc.status == _CONFLICT:
            raise NotTrustedError(f"somebody else was faster: {exc}; nothing else was sent") from exc
        raise
    if key.fingerprint not in told.owners:
        raise NotTrustedError(f"{client.url} says that it is owned by {', '.join(told.owners)}: nothing else was sent")
    click.echo(f"{OK} You own this machine now: {key.fingerprint}")
    click.echo(f"     Your key is {key.path}: keep a backup (cosmian_vm owner export FILE)")
    return tuple(told.owners)


def _take_its_word(client: AgentClient, target: Target, folder: Path) -> None:
    """``--no-verify``: a certificate that a CA vouches for is all that there is. Raises NotTrustedError, UsageError."""
    if target.allow_insecure_tls:
        raise click.UsageError("with --no-verify and --allow-insecure-tls anybody could answer: leave one out")
    peer = client.connect()
    if peer.trusted is not True:
        raise NotTrustedError(f"{client.url}: {peer.problem}; with --no-verify the certificate has to be a CA's")
    client.pin(peer.leaf)
    click.echo(
        f"{WARNING} --no-verify: nothing shows that this is a confidential machine, or yours; whoever runs it, or "
        "holds a certificate for its name, gets what is sent"
    )
    try:
        owners = tuple(client.owners().owners)
    except RefusedError as exc:
        if exc.status != _NOT_FOUND:
            raise
        return  # an agent of before there were owners
    if not owners:
        raise NotTrustedError(
            f"{client.url}: nobody owns this machine, and only one that has been verified is claimed: leave "
            "--no-verify out once"
        )
    own(client, owners, folder)
