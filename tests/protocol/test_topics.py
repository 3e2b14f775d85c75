"""The topic table: every row there and back, and nothing else."""

import pytest
from fake_broker import matches
from fedmq_protocol.topics import (
    TABLE,
    Channel,
    Direction,
    TopicSpec,
    check_name,
    coordinator_filters,
    gateway_filters,
    parse,
    spec,
    topic,
)
from hypothesis import given
from hypothesis import strategies as st

ROWS = [pytest.param(row, id=f"{row.direction.value}/{row.channel.value}") for row in TABLE]
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)


def gateway_of(row: TopicSpec, gateway: str) -> str | None:
    return None if row.direction is Direction.DOWN else gateway


@pytest.mark.parametrize("row", ROWS)
@given(federation=NAMES, gateway=NAMES)
def test_every_row_comes_back_as_it_went(row: TopicSpec, federation: str, gateway: str) -> None:
    text = topic(federation, row.direction, row.channel, gateway_of(row, gateway))
    parsed = parse(text)
    assert (parsed.federation, parsed.spec, parsed.gateway) == (federation, row, gateway_of(row, gateway))
    assert (parsed.direction, parsed.channel) == (row.direction, row.channel)
    assert text.count("/") <= 7


def test_no_row_is_there_twice() -> None:
    assert len({(row.direction, row.channel) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_bounds_its_payload_and_needs_no_qos_2(row: TopicSpec) -> None:
    assert 0 < row.max_bytes <= 256 * 1024
    assert row.qos in (0, 1)
    assert spec(row.direction, row.channel) is row


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "fl",
        "fl/1",
        "fl/1/plant",
        "fl/1/plant/up",
        "fl/1/plant/up/g1",
        "fl/2/plant/up/g1/status",
        "xx/1/plant/up/g1/status",
        "fl/1/plant/up/g1/status/more",
        "fl/1/plant/up/g1/plan",
        "fl/1/plant/up//status",
        "fl/1//up/g1/status",
        "fl/1/plant/UP/g1/status",
        "fl/1/plant/up/+/status",
        "fl/1/plant/up/#",
        "fl/1/plant/up/g 1/status",
        "fl/1/plant/up/g1/STATUS",
        "fl/1/plant/up/g1\n/status",
        "fl/1/plant/up/g1/status\n",
        "fl/1/plant/up/-g1/status",
        "fl/1/plant/up/" + "g" * 64 + "/status",
        "fl/1/plant/down/g1/plan",
        "fl/1/plant/down",
        "fl/1/plant/cmd/welcome",
        "/fl/1/plant/down/plan",
    ],
)
def test_what_is_not_in_the_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a topic of ours"):
        parse(text)


@given(st.text(max_size=300))
def test_any_text_is_a_topic_or_a_value_error(text: str) -> None:
    try:
        parsed = parse(text)
    except ValueError:
        return
    assert topic(parsed.federation, parsed.direction, parsed.channel, parsed.gateway) == text


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a+b", "a#", "a b", "ä", "a" * 64, "a\n", "$SYS"])
def test_a_name_that_means_something_to_mqtt_or_to_a_certificate_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="gateway"):
        check_name(name, "gateway")
    with pytest.raises(ValueError, match="gateway"):
        topic("plant", Direction.UP, Channel.STATUS, name)
    with pytest.raises(ValueError, match="federation"):
        topic(name, Direction.DOWN, Channel.PLAN)


def test_a_pair_that_is_not_in_the_table_has_no_topic() -> None:
    with pytest.raises(KeyError):
        topic("plant", Direction.DOWN, Channel.STATUS)


def test_a_broadcast_has_no_gateway_and_the_rest_need_one() -> None:
    with pytest.raises(ValueError, match="has no gateway"):
        topic("plant", Direction.DOWN, Channel.PLAN, "g1")
    with pytest.raises(ValueError, match="needs a gateway"):
        topic("plant", Direction.UP, Channel.STATUS)


def test_filters_catch_what_their_owner_must_read_and_nothing_of_others() -> None:
    everything = [topic("plant", row.direction, row.channel, gateway_of(row, g)) for row in TABLE for g in ("g1", "g2")]
    of_coordinator = {t for t in everything if any(matches(f, t) for f in coordinator_filters("plant"))}
    assert of_coordinator == {t for t in everything if parse(t).direction is Direction.UP}

    of_gateway = {t for t in everything if any(matches(f, t) for f in gateway_filters("plant", "g1"))}
    assert {t for t in everything if parse(t).gateway == "g1" and parse(t).direction is Direction.CMD} < of_gateway
    assert {parse(t).gateway for t in of_gateway} == {"g1", None}
    assert Direction.UP not in {parse(t).direction for t in of_gateway}
    assert not any(matches(f, t) for f in gateway_filters("other", "g1") for t in everything)
