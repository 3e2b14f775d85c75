"""What bytes cost, and how an amount reads."""

from __future__ import annotations

import pytest
from fedmq_coordinator.money import DEFAULT, Price, amount, cost, from_bytes, price_of, to_bytes


def test_a_gigabyte_is_a_thousand_million_bytes() -> None:
    assert cost(1_000_000_000, Price(per_gb=8.0)) == 8.0
    assert cost(250_000, Price(per_gb=8.0)) == pytest.approx(0.002)
    assert cost(10**12, Price(per_gb=0.0)) == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0.00 EUR"),
        (1_234.5, "1,234.50 EUR"),
        (0.3141, "0.31 EUR"),
        (0.0999, "0.10 EUR"),
        (0.0312, "0.031 EUR"),
        (0.00123, "0.0012 EUR"),
        (0.0000049, "0.0000049 EUR"),
        (0.0000002, "less than 0.000001 EUR"),
        (-0.0012, "-0.0012 EUR"),
    ],
)
def test_small_amounts_keep_two_digits_that_count(value: float, words: str) -> None:
    assert amount(value, "EUR") == words


@pytest.mark.parametrize("per_gb", [-1.0, float("nan"), float("inf"), 2e6])
def test_what_is_no_price_is_refused(per_gb: float) -> None:
    with pytest.raises(ValueError, match="expected a number from 0 to 1,000,000"):
        Price(per_gb=per_gb)


@pytest.mark.parametrize("currency", ["", "eur", "EURO", "E<b>", "EUR\n"])
def test_a_currency_is_three_capital_letters(currency: str) -> None:
    with pytest.raises(ValueError, match="three capital letters"):
        price_of(DEFAULT, currency=currency)


def test_what_was_named_takes_the_place_of_what_was_set() -> None:
    assert price_of(DEFAULT, per_gb=3.0) == Price(per_gb=3.0, currency="EUR")
    assert price_of(DEFAULT, currency="USD") == Price(per_gb=10.0, currency="USD")


def test_a_price_that_was_kept_comes_back_and_what_is_none_is_the_default() -> None:
    price = Price(per_gb=4.2, currency="CHF")
    assert from_bytes(to_bytes(price)) == price
    for stored in (None, b"", b"\xff", b"[]", b'{"per_gb": -3}', b'{"currency": "<script>"}'):
        assert from_bytes(stored) == DEFAULT
