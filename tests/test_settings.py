import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deepen.settings import (
    Amount,
    AmountSetting,
    Count,
    IntervalSetting,
    Many,
    Settings,
    Share,
    parse_amount,
    parse_extent,
    parse_interval,
)


class Example(Settings):
    tokens: Count = 1
    share: Share = 0.5
    warmup: AmountSetting = parse_amount("1%")
    every: IntervalSetting = parse_interval("5%")
    names: Many[str] = ()


@pytest.mark.parametrize(
    ("text", "number"), [("50B tokens", 50 * 10**9), ("1.5M", 1_500_000), ("2k", 2000), ("100 documents", 100), (7, 7)]
)
def test_counts_take_scales_and_nouns(text, number):
    assert Example.model_validate({"tokens": text}).tokens == number


@pytest.mark.parametrize("value", ["1.5 tokens", "many", True, 1.5, "3 apples"])
def test_counts_refuse_what_is_no_whole_number(value):
    with pytest.raises(ValidationError):
        Example.model_validate({"tokens": value})


@pytest.mark.parametrize(("value", "share"), [("5%", 0.05), (0.3, 0.3), (1, 1.0)])
def test_shares_take_percent_and_fractions(value, share):
    assert Example.model_validate({"share": value}).share == pytest.approx(share)


@pytest.mark.parametrize("value", ["500%", -0.1, 1.2, "half"])
def test_shares_outside_zero_to_one_are_refused(value):
    with pytest.raises(ValidationError):
        Example.model_validate({"share": value})


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2%", Amount(0.02, "share")),
        ("500 steps", Amount(500, "steps")),
        ("1M tokens", Amount(1e6, "tokens")),
        ("30min", Amount(1800, "seconds")),
        ("2h", Amount(7200, "seconds")),
        (12, Amount(12, "steps")),
    ],
)
def test_amounts(text, amount):
    assert parse_amount(text) == amount


def test_an_interval_fires_at_its_shortest_amount():
    interval = parse_interval("500 steps or 10% or 30min")
    assert interval.every_steps(total_steps=1000, tokens_per_step=1) == 100
    assert interval.every_seconds == 1800


@given(
    st.floats(0.001, 1).map(lambda share: Amount(round(share, 6), "share"))
    | st.integers(1, 10**9).map(lambda n: Amount(n, "steps"))
)
def test_amounts_survive_being_written_and_read(amount):
    again = parse_amount(str(amount))
    assert again.unit == amount.unit
    assert again.value == pytest.approx(amount.value)


def test_unknown_keys_are_errors_and_settings_are_frozen():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Example.model_validate({"tokns": 3})
    with pytest.raises(ValidationError, match="frozen"):
        Example().tokens = 3  # type: ignore[misc]


def test_dumping_and_reading_back_gives_the_same_settings():
    example = Example.model_validate({"tokens": "2M", "warmup": "3 steps", "every": "5% or 10min", "names": ["a", "b"]})
    assert Example.model_validate(example.model_dump(mode="json")) == example


@given(st.integers(1, 10**15), st.sampled_from(["documents", "bytes", "tokens"]))
def test_extents_are_read_as_they_are_written(number, unit):
    extent = Amount(number, unit)
    assert parse_extent(str(extent)) == parse_extent(extent) == extent
