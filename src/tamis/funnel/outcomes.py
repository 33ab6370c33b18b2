"""What came of the impressions of a live market, and what that was worth."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.market import ServedHour
from tamis.funnel.ads import AdTable, Valuation

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """n impressions, with events that may come later than other impressions."""

    user: NDArray[np.int32]
    ad: NDArray[np.int32]
    """(n,) who saw what."""
    time_micros: NDArray[np.int64]
    """(n,) when, since 1970 UTC."""
    click: NDArray[np.bool_]
    """(n,) clicked."""
    conversion_micros: NDArray[np.int64]
    """(n,) time of the conversion; the largest integer where none ever comes."""
    hide: NDArray[np.bool_]
    """(n,) hidden."""
    cost_per_click: NDArray[np.float64]
    """(n,) price of a click, money; NaN where the policy set none."""

    def __len__(self) -> int:
        return len(self.user)

    def converted(self, *, now_micros: int | None = None) -> NDArray[np.bool_]:
        """Which impressions (n,) have converted by a time; None: ever will."""
        return self.conversion_micros < (_NEVER if now_micros is None else now_micros)

    def total_value(
        self, ads: AdTable, value: Valuation, *, now_micros: int | None = None
    ) -> NDArray[np.float64]:
        """What each impression (n,) turned out to be worth, money.

        The function of the total value with what happened in place of probabilities: a click pays
        the bid, a hide costs its penalty. It is the bid that counts and not the price, so that a
        funnel gains nothing by charging more.

        Args:
            ads: Attributes of all ads of the market, by ``ad_id``.
            value: Combines ``click``, ``conversion`` and ``hide`` with bids.
            now_micros: Conversions count until then; None: all that ever come.
        """
        happened = {
            "click": self.click.astype(np.float64),
            "conversion": self.converted(now_micros=now_micros).astype(np.float64),
            "hide": self.hide.astype(np.float64),
        }
        return ads.total_value(value, happened, self.ad.astype(np.int64))


def outcomes(hours: list[ServedHour]) -> Outcomes:
    """The impressions of some hours, at least one, in their order."""
    log = pa.concat_tables([hour.log for hour in hours])
    costs = pa.concat_tables([hour.slates for hour in hours])["cost_per_click"]
    converted = log["conversion_time"].cast(pa.int64()).combine_chunks().fill_null(_NEVER)
    return Outcomes(
        user=log["user_id"].to_numpy(),
        ad=log["ad_id"].to_numpy(),
        time_micros=log["event_time"].cast(pa.int64()).to_numpy(),
        click=log["click"].to_numpy() == 1,
        conversion_micros=converted.to_numpy(zero_copy_only=False),
        hide=log["hide"].to_numpy() == 1,
        cost_per_click=costs.to_numpy(),
    )
