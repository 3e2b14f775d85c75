"""Seals, cards and roots: what is believed, and everything that must not be."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fedmq_protocol.messages import (
    AskVerdict,
    Birth,
    Chunk,
    Leave,
    Message,
    MessageError,
    Receipt,
    Roots,
    RoundKind,
    RoundPlan,
    Seal,
    Verdict,
    Welcome,
    split,
    to_bytes,
)
from fedmq_protocol.signing import (
    Chain,
    CoordinatorSeals,
    GatewaySeals,
    TrustError,
    key_to_pem,
    read_card,
    read_ed25519,
    read_x25519,
    seal_of,
    sign_root,
)
from fedmq_protocol.topics import TABLE, Channel, Direction, parse, topic
from hypothesis import given
from hypothesis import strategies as st
from trust import TrustAuthority

NONCE = b"12345678"
PLAN = RoundPlan(
    round_id=3, lineage=1, kind=RoundKind.TRAINING, base=2, model=7, closes_after=60, drawn=3, accepted=1, since=1,
    level=0, delta=b"delta",
)  # fmt: skip
ASK = AskVerdict(round_id=3, counter=2, digest=bytes(8))
RECEIPT = Receipt(round_id=3, counter=2, verdict=Verdict.ACCEPTED)
ON_PLAN = topic("test", Direction.DOWN, Channel.PLAN)
ON_ASK = topic("test", Direction.UP, Channel.ASK, "g1")
ON_STATUS = topic("test", Direction.UP, Channel.STATUS, "g1")
ON_RECEIPT = topic("test", Direction.CMD, Channel.RECEIPT, "g1")


@pytest.fixture
def authority() -> TrustAuthority:
    return TrustAuthority()


def birth(authority: TrustAuthority, name: str = "g1", nonce: bytes = NONCE) -> Birth:
    return Birth(
        nonce=nonce, software="fedmq", engines=("numpy",), signal_samples={}, sent=0, received=0,
        root=authority.chain.newest.version, card=authority.card(name),
    )  # fmt: skip


def said(seals: GatewaySeals | CoordinatorSeals, where: str, message: Message) -> bytes:
    return seals.seal(where, parse(where), message, to_bytes(message))


def hear(seals: GatewaySeals | CoordinatorSeals, where: str, message: Message, data: bytes) -> None:
    seals.check(where, parse(where), message, split(data))


def both(authority: TrustAuthority) -> tuple[GatewaySeals, CoordinatorSeals]:
    gateway, coordinator = authority.gateway("g1", NONCE), authority.coordinator()
    coordinator.know("g1", NONCE, gateway.card)
    return gateway, coordinator


def test_each_side_believes_the_other_and_no_bit_may_change(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    for seals, other, where, message in (
        (coordinator, gateway, ON_PLAN, PLAN),
        (coordinator, gateway, ON_RECEIPT, RECEIPT),
        (gateway, coordinator, ON_ASK, ASK),
        (gateway, coordinator, ON_STATUS, birth(authority)),
    ):
        data = said(seals, where, message)
        hear(other, where, message, data)
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1
            with pytest.raises(MessageError):
                hear(other, where, message, bytes(changed))


def test_a_seal_costs_64_or_8_bytes(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    assert len(said(coordinator, ON_PLAN, PLAN)) == len(to_bytes(PLAN)) + 64
    assert len(said(gateway, ON_ASK, ASK)) == len(to_bytes(ASK)) + 8
    assert len(gateway.card) <= 120


def test_what_has_no_seal_or_the_other_kind_is_refused(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    with pytest.raises(MessageError, match="no seal, a signature expected"):
        hear(gateway, ON_PLAN, PLAN, to_bytes(PLAN))
    with pytest.raises(MessageError, match="no seal, a MAC expected"):
        hear(coordinator, ON_ASK, ASK, to_bytes(ASK))
    with pytest.raises(MessageError, match="a MAC, a signature expected"):
        hear(gateway, ON_PLAN, PLAN, said(gateway, ON_ASK, ASK))


def test_a_seal_holds_on_one_topic_of_one_federation_only(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    signed = said(coordinator, ON_PLAN, PLAN)
    other = topic("other", Direction.DOWN, Channel.PLAN)
    with pytest.raises(MessageError, match="not signed"):
        hear(gateway, other, PLAN, signed)
    elsewhere = topic("test", Direction.UP, Channel.ASK, "g2")
    authority.card("g2")
    coordinator.know("g2", NONCE, authority.card("g2"))
    with pytest.raises(MessageError, match="MAC"):
        hear(coordinator, elsewhere, ASK, said(gateway, ON_ASK, ASK))


def test_another_authority_is_not_believed(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    false = TrustAuthority()
    _, forger = both(false)
    with pytest.raises(MessageError, match="not signed by the coordinator's key of root 1"):
        hear(gateway, ON_PLAN, PLAN, said(forger, ON_PLAN, PLAN))
    with pytest.raises(MessageError, match="not signed by the federation's issuer"):
        hear(coordinator, ON_STATUS, birth(false), said(false.gateway("g1", NONCE), ON_STATUS, birth(false)))


def test_an_earlier_start_of_a_gateway_cannot_be_replayed(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    old = said(gateway, ON_ASK, ASK)
    coordinator.know("g1", b"anew....", gateway.card)
    with pytest.raises(MessageError, match="MAC"):
        hear(coordinator, ON_ASK, ASK, old)


def test_a_birth_with_the_card_of_another_gateway_is_refused(authority: TrustAuthority) -> None:
    coordinator = authority.coordinator()
    stolen = msgspec.structs.replace(birth(authority), card=authority.card("g2"))
    data = said(authority.gateway("g1", NONCE), ON_STATUS, stolen)
    with pytest.raises(MessageError, match="issuer for g1"):
        hear(coordinator, ON_STATUS, stolen, data)


def test_a_birth_must_be_made_by_who_has_the_key_of_its_card(authority: TrustAuthority) -> None:
    """The card is no secret: it travels."""
    coordinator = authority.coordinator()
    real = birth(authority)
    authority.keys["g1"] = X25519PrivateKey.generate()
    thief = authority.gateway("g1", NONCE)
    with pytest.raises(MessageError, match="MAC"):
        hear(coordinator, ON_STATUS, real, said(thief, ON_STATUS, real))


def test_a_gateway_that_has_shown_no_card_is_not_heard(authority: TrustAuthority) -> None:
    gateway, coordinator = authority.gateway("g1", NONCE), authority.coordinator()
    with pytest.raises(MessageError, match="has not shown a card"):
        hear(coordinator, ON_ASK, ASK, said(gateway, ON_ASK, ASK))
    with pytest.raises(MessageError, match="has not shown a card"):
        said(coordinator, ON_RECEIPT, RECEIPT)
    bare = msgspec.structs.replace(birth(authority), card=None)
    with pytest.raises(MessageError, match="without a card"):
        hear(coordinator, ON_STATUS, bare, said(gateway, ON_STATUS, bare))


def test_a_revoked_card_is_refused_at_once(authority: TrustAuthority) -> None:
    gateway, coordinator = both(authority)
    hear(coordinator, ON_ASK, ASK, said(gateway, ON_ASK, ASK))
    authority.revoked.add(authority.serials["g1"])
    with pytest.raises(MessageError, match="revoked"):
        hear(coordinator, ON_ASK, ASK, said(gateway, ON_ASK, ASK))
    with pytest.raises(MessageError, match="revoked"):
        hear(coordinator, ON_STATUS, birth(authority), said(gateway, ON_STATUS, birth(authority)))


def test_who_is_revoked_or_expires_is_dismissed_once(authority: TrustAuthority) -> None:
    now = [1.7e9]
    coordinator = authority.coordinator(lambda: now[0])
    for name in ("g1", "g2", "g3"):
        coordinator.know(name, NONCE, authority.card(name, expires=1_710_000_000 if name == "g3" else 1_800_000_000))
    assert coordinator.dismiss() == {}
    authority.revoked.add(authority.serials["g2"])
    assert list(coordinator.dismiss()) == ["g2"]
    assert coordinator.dismiss() == {}
    now[0] = 1.72e9
    assert "2024-03-09" in coordinator.dismiss()["g3"]
    now[0] = 1.73e9
    assert coordinator.dismiss() == {}


def test_a_card_counts_between_its_dates(authority: TrustAuthority) -> None:
    now = [1.7e9]
    gateway, coordinator = authority.gateway("g1", NONCE), authority.coordinator(lambda: now[0])
    card = authority.card("g1", begins=1_690_000_000, expires=1_710_000_000)
    coordinator.know("g1", NONCE, card)
    hear(coordinator, ON_ASK, ASK, said(gateway, ON_ASK, ASK))
    for now[0] in (1.68e9, 1.71e9):
        with pytest.raises(MessageError, match="2023-07-22 to 2024-03-09"):
            hear(coordinator, ON_ASK, ASK, said(gateway, ON_ASK, ASK))
        with pytest.raises(TrustError, match="2023-07-22 to 2024-03-09"):
            coordinator.know("g2", NONCE, authority.card("g2", begins=1_690_000_000, expires=1_710_000_000))


def test_keys_of_an_expired_root_are_not_believed() -> None:
    authority = TrustAuthority(expires=1_750_000_000)
    now = [1.7e9]
    gateway, coordinator = authority.gateway("g1", NONCE, lambda: now[0]), authority.coordinator()
    data = said(coordinator, ON_PLAN, PLAN)
    hear(gateway, ON_PLAN, PLAN, data)
    now[0] = 1.75e9
    with pytest.raises(MessageError, match="root 1, which expired on 2025-06-15"):
        hear(gateway, ON_PLAN, PLAN, data)
    with pytest.raises(TrustError, match="fedmq ca rotate"):
        authority.coordinator(lambda: now[0])


def test_a_gateway_walks_from_root_to_root(authority: TrustAuthority) -> None:
    gateway = authority.gateway("g1", NONCE)
    old = said(authority.coordinator(), ON_PLAN, PLAN)
    authority.rotate()
    authority.rotate()
    coordinator = authority.coordinator()
    with pytest.raises(MessageError, match="sealed by root 1, 3 expected"):
        hear(coordinator, ON_STATUS, msgspec.structs.replace(birth(authority), root=1),
             said(gateway, ON_STATUS, msgspec.structs.replace(birth(authority), root=1)))  # fmt: skip
    roots = coordinator.behind(msgspec.structs.replace(birth(authority), root=1))
    assert roots is not None
    assert len(roots.roots) == 2
    assert gateway.walk(roots)
    assert gateway.root.version == 3
    assert authority.kept["g1"].newest.version == 3
    assert not gateway.walk(roots)
    hear(gateway, ON_PLAN, PLAN, said(coordinator, ON_PLAN, PLAN))
    hear(coordinator, ON_STATUS, birth(authority), said(gateway, ON_STATUS, birth(authority)))
    with pytest.raises(MessageError, match="not signed"):
        hear(gateway, ON_PLAN, PLAN, old)
    assert coordinator.behind(birth(authority)) is None


def test_a_root_that_the_one_before_has_not_signed_leads_nowhere(authority: TrustAuthority) -> None:
    gateway = authority.gateway("g1", NONCE)
    false = TrustAuthority()
    false.rotate()
    with pytest.raises(TrustError, match="root 2 is not signed by the key of root 1"):
        gateway.walk(Roots(nonce=NONCE, roots=(false.signed[1],)))
    authority.rotate()
    authority.rotate()
    with pytest.raises(TrustError, match="expected root 2 behind root 1, got 3"):
        gateway.walk(Roots(nonce=NONCE, roots=(authority.signed[2],)))
    assert gateway.root.version == 1
    alone = sign_root(authority._root(2), authority.root_key)
    with pytest.raises(TrustError, match="not signed by the root key before"):
        gateway.walk(Roots(nonce=NONCE, roots=(alone,)))
    with pytest.raises(TrustError, match="names another root key"):
        sign_root(authority._root(4), Ed25519PrivateKey.generate())


def test_a_chain_is_a_text_file(authority: TrustAuthority) -> None:
    authority.rotate()
    text = authority.chain.text()
    assert Chain.read(text, "test").newest == authority.chain.newest
    assert authority.chain.after(1) == (authority.signed[1],)
    assert authority.chain.after(2) == ()
    assert Chain(authority.signed[1:]).after(0) == tuple(authority.signed[1:][:0])
    with pytest.raises(TrustError, match="federation other, got those of test"):
        Chain.read(text, "other")
    for junk in ("", "# only words", "!!", "AAAA", text.replace("\n", "x\n")):
        with pytest.raises(TrustError):
            Chain.read(junk)


@given(st.binary(max_size=400))
def test_junk_is_no_root_and_no_card(data: bytes) -> None:
    with pytest.raises(TrustError):
        Chain([data])
    with pytest.raises(TrustError):
        read_card(data, federation="test", gateway="g1", issuer=bytes(32))


def test_every_message_of_the_table_but_chunks_reports_and_roots_is_sealed() -> None:
    none = Seal.NONE
    for row in TABLE:
        gateway = None if row.direction is Direction.DOWN else "g1"
        where = parse(topic("test", row.direction, row.channel, gateway))
        chunk = seal_of(where, Chunk(transfer=bytes(8), index=0, data=b"x"))
        assert chunk is (none if row.direction is Direction.DOWN else chunk)
        if row.direction is Direction.UP:
            assert chunk is Seal.MAC
    status = parse(ON_STATUS)
    assert seal_of(status, Leave(nonce=NONCE, clean=False)) is none
    assert seal_of(status, Leave(nonce=NONCE, clean=True)) is Seal.MAC
    welcome = parse(topic("test", Direction.CMD, Channel.WELCOME, "g1"))
    assert seal_of(welcome, Welcome(nonce=NONCE, now=1.0, roster=0, spread=0, tasks=())) is Seal.SIGNATURE
    assert seal_of(welcome, Roots(nonce=NONCE, roots=(b"x",))) is none


def test_keys_are_read_from_pem_and_nothing_of_them_is_said() -> None:
    signing, agreement = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    assert key_to_pem(read_ed25519(key_to_pem(signing), "a")) == key_to_pem(signing)
    assert key_to_pem(read_x25519(key_to_pem(agreement), "a")) == key_to_pem(agreement)
    for pem in (key_to_pem(agreement), b"junk", b""):
        with pytest.raises(TrustError) as caught:
            read_ed25519(pem, "signing.key")
        assert "signing.key" in str(caught.value)
        assert all(line not in str(caught.value) for line in pem.decode().splitlines()[1:2])
    with pytest.raises(TrustError, match="X25519"):
        read_x25519(key_to_pem(signing), "agreement.key")


def test_a_card_for_another_key_is_told_at_the_start(authority: TrustAuthority) -> None:
    card = authority.card("g1")
    with pytest.raises(TrustError, match="another key"):
        GatewaySeals(
            federation="test", gateway="g1", nonce=NONCE, chain=authority.chain, card=card,
            agreement=X25519PrivateKey.generate(), unix=lambda: 0.0,
        )  # fmt: skip
    with pytest.raises(TrustError, match=r"signing\.key is not the coordinator's of root 1"):
        CoordinatorSeals(
            federation="test", chain=authority.chain, signing=Ed25519PrivateKey.generate(),
            agreement=authority.agreement, unix=lambda: 0.0,
        )  # fmt: skip
