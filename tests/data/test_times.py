"""Times: microseconds of every form, and the row of the one that is wrong."""

import pyarrow as pa
import pytest

from tamis.data.columns import Origin
from tamis.data.schema import Roles
from tamis.data.times import as_microseconds, share_of_times
from tamis.errors import DataError

ORIGIN = Origin(file="log.csv", first_row=100, column="ts")
SECOND = 1_700_000_000


@pytest.mark.parametrize(
    "column",
    [
        pa.array([SECOND, SECOND + 1]),
        pa.array([str(SECOND), f" {SECOND + 1} "]),
        pa.array([SECOND * 1e3, SECOND * 1e3 + 1e3]),
        pa.array([SECOND * 10**6, SECOND * 10**6 + 10**6]),
        pa.array(["2023-11-14 22:13:20", "2023-11-14T22:13:21"]),
        pa.array(["2023-11-14T22:13:20Z", "2023-11-14T23:13:21+01:00"]),
        pa.array(["2023-11-14 22:13:20 UTC", "2023-11-14 22:13:21.000000 UTC"]),
        pa.array(["2023-11-14 22:13:20.000000999", "2023-11-14 22:13:21,000"]),
        pa.array(["2023-11-14 17:13:20 -0500", "2023-11-14 17:13:21.0 -05:00"]),
        pa.array([SECOND, SECOND + 1], pa.timestamp("s")),
        pa.array(["2023-11-14 22:13:20", "2023-11-14 22:13:21"]).dictionary_encode(),
    ],
    ids=lambda column: f"{column.type} {column[0]}",
)
def test_every_form_of_a_time_gives_its_microseconds(column: pa.Array) -> None:
    times = as_microseconds(column, Roles(time="ts"), origin=ORIGIN)

    assert times.tolist() == [SECOND * 10**6, SECOND * 10**6 + 10**6]


@pytest.mark.parametrize("unit", ["", "s"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("inf", r"must lie between 1973 and 2128 in 's', as .*, got inf"),
        ("-1", r"must lie between 1973 and 2128 in 's', as .*, got -1"),
        ("0", r"must lie between 1973 and 2128 in 's', as .*, got 0"),
        (str(SECOND * 1000), r"must lie between 1973 and 2128 in 's', as .*, got 1700000000000"),
        ("hello", r"must be ISO 8601 or a number since 1970, got 'hello'"),
        ("nan", r"must lie between .*, got nan"),
        (None, r"every row must have a time, got none"),
    ],
)
def test_wrong_time_is_named_with_its_row_whether_the_unit_is_given_or_not(
    unit: str, value: str | None, message: str
) -> None:
    column = pa.array([str(SECOND), str(SECOND), value, str(SECOND)])

    with pytest.raises(DataError, match=rf"log.csv, column 'ts', row 103: .*{message}"):
        as_microseconds(column, Roles(time="ts", time_unit=unit), origin=ORIGIN)


def test_wrong_time_in_the_first_row_does_not_decide_the_unit() -> None:
    with pytest.raises(DataError, match=r"row 101: .* in 's', as the other times are, got 5"):
        as_microseconds(pa.array([5, SECOND, SECOND]), Roles(time="ts"), origin=ORIGIN)


def test_wrong_iso_time_is_named_with_its_row() -> None:
    good = "2024-01-31 10:00:00"
    column = pa.array([good] * 5 + ["31/01/2024"] + [good] * 5 + ["worse"])

    with pytest.raises(DataError, match=r"row 106: a time must be ISO 8601, .* got '31/01/2024'"):
        as_microseconds(column, Roles(time="ts"), origin=ORIGIN)


@pytest.mark.parametrize("zone", ["Z", "+00:00", " UTC"])
@pytest.mark.parametrize("is_first", [True, False])
def test_times_of_which_some_name_a_zone_are_said_to_be_so(zone: str, is_first: bool) -> None:
    plain = "2024-01-31 10:00:00"
    first, other = (plain + zone, plain) if is_first else (plain, plain + zone)
    column = pa.array([first] * 5 + [other] * 3)

    with pytest.raises(DataError) as caught:
        as_microseconds(column, Roles(time="ts"), origin=ORIGIN)

    assert str(caught.value) == (
        f"log.csv, column 'ts', row 106: all times must name their zone or none of them, got "
        f"{other!r} after {first!r} in row 101. Write all in one way; those without a zone count "
        f"as UTC."
    )


def test_time_stamp_of_another_age_is_refused() -> None:
    column = pa.array([SECOND, 0], pa.timestamp("s"))

    with pytest.raises(DataError, match=r"row 102: a time must lie between .*, got 1970-01-01T00"):
        as_microseconds(column, Roles(time="ts"), origin=ORIGIN)


def test_share_of_times_counts_one_form_and_takes_missing_rows_as_none() -> None:
    numbers = pa.array([str(SECOND), "x", None, str(SECOND * 1000)])
    dates = pa.array(["2024-01-31", "2024-01-31 10:00", "1492-01-01", "31/01/2024"])

    assert share_of_times(numbers, numbers=True, dates=False) == 0.25
    assert share_of_times(numbers, numbers=False, dates=True) == 0.0
    assert share_of_times(dates, numbers=True, dates=True) == 0.5
    assert share_of_times(dates, numbers=True, dates=False) == 0.25
