"""The auction: which candidates are shown, in which order, and at what price."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import DataError
from tamis.funnel.candidates import order_of_best


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bids:
    """What n candidates bring to an auction."""

    ads: NDArray[np.int64]
    """(n,) different ad rows."""
    advertiser: NDArray[np.int64]
    """(n,) who bids."""
    bid: NDArray[np.float64]
    """(n,) money for one billed event; finite, not negative."""
    rate: NDArray[np.float64]
    """(n,) billed events expected of an impression; finite, not negative."""
    offset: NDArray[np.float64]
    """(n,) money that an impression is worth whatever is bid: quality less penalties; finite."""

    def __post_init__(self) -> None:
        for name in ("bid", "rate"):
            values = getattr(self, name)
            broken = ~((values >= 0) & (values < np.inf))
            if broken.any():
                at = int(np.argmax(broken))
                raise DataError(
                    f"auction: {name} must be finite and not negative, got {values[at].item()!r} "
                    f"for ad {self.ads[at]}. Check the predictions and the value function."
                )
        if not np.isfinite(self.offset).all():
            at = int(np.argmin(np.isfinite(self.offset)))
            raise DataError(
                f"auction: offset must be finite, got {self.offset[at].item()!r} for ad "
                f"{self.ads[at]}. Check the predictions and the value function."
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slate:
    """The ads that answer a request, first slot first."""

    ads: NDArray[np.int64]
    """(k,) ad rows of k different advertisers."""
    prices: NDArray[np.float64]
    """(k,) money for one billed event, from the reserve price to the bid."""
    values: NDArray[np.float64]
    """(k,) total value of an impression, money; NaN where nothing was predicted."""
    rates: NDArray[np.float64]
    """(k,) billed events expected of an impression; NaN where nothing was predicted."""

    @property
    def expected_revenue(self) -> float:
        """Money that the slate is expected to be billed; NaN where nothing was predicted."""
        return float(self.prices @ self.rates)

    def to_json(self) -> dict[str, Any]:
        """Columns by name; None stands for NaN."""
        return {
            "ads": self.ads.tolist(),
            "prices": self.prices.tolist(),
            "values": [None if np.isnan(value) else value for value in self.values.tolist()],
            "rates": [None if np.isnan(rate) else rate for rate in self.rates.tolist()],
        }


def run_auction(bids: Bids, *, slots: int, reserve: float, seed: int) -> Slate:
    """Fill slots by total value ``rate * bid + offset`` and charge the second price.

    Each advertiser takes part with its ad of the highest total value alone. Ads that bid less than
    the reserve price or are worth less than nothing, which an empty slot is worth, do not take
    part. The ad in slot j, of value v_j, pays what it would have had to bid at least to keep that
    slot against the ads of others::

        price_j = clip((max(v_{j+1}, 0) - offset_j) / rate_j, reserve, bid_j)

    With one slot no bidder of one ad gains from another bid than its true value; with several slots
    this is the generalised second price auction, in which it may.

    Args:
        bids: Who takes part.
        slots: Ads wanted. At least 1.
        reserve: Least price of a billed event, money. Not negative.
        seed: Decides ties.

    Returns:
        At most ``slots`` ads; fewer where fewer advertisers take part.

    Source:
        Edelman, Ostrovsky and Schwarz, Internet Advertising and the Generalized Second-Price
        Auction, American Economic Review 2007, with the total value of Wang et al., AdKDD 2023, in
        place of the bid.

    Differs from the source:
        Values have an offset that is not bid for. An advertiser's other ads do not raise its price.
    """
    value = bids.rate * bids.bid + bids.offset
    takes_part = np.flatnonzero((bids.bid >= reserve) & (value >= 0))
    value = value[takes_part]
    order = order_of_best(bids.ads[takes_part], value, len(takes_part), seed=seed)
    _, first = np.unique(bids.advertiser[takes_part][order], return_index=True)
    # One place more than there are slots: who missed the last one sets its price.
    places = order[np.sort(first)[: slots + 1]]
    ranked, shown = takes_part[places], slice(0, slots)
    bid, rate, offset = bids.bid[ranked], bids.rate[ranked], bids.offset[ranked]
    to_beat = np.append(value[places][1:], 0.0)
    # An ad that is never billed is shown for its quality; no bid would change its place.
    least = np.full(len(rate), -np.inf)
    with np.errstate(over="ignore"):  # beyond every bid, which then is the price
        np.divide(to_beat - offset, rate, out=least, where=rate > 0)
    return Slate(
        ads=bids.ads[ranked][shown],
        prices=np.minimum(np.maximum(least, reserve), bid)[shown],
        values=value[places][shown],
        rates=rate[shown],
    )


def fill_without_predictions(
    ads: NDArray[np.int64],
    scores: NDArray[np.float64],
    advertiser: NDArray[np.int64],
    bid: NDArray[np.float64],
    *,
    slots: int,
    reserve: float,
    seed: int,
) -> Slate:
    """Fill slots in the order of the scores, where every stage that predicts fell back.

    One ad of each advertiser, none that bids less than the reserve price; each pays the reserve
    price, since nobody knows that more was needed to be shown.

    Args:
        ads: (n,) different ad rows.
        scores: (n,) of the last stage that gave any.
        advertiser: (n,) who bids.
        bid: (n,) money for one billed event.
        slots: Ads wanted. At least 1.
        reserve: Least price of a billed event, money.
        seed: Decides ties.
    """
    takes_part = np.flatnonzero(bid >= reserve)
    order = order_of_best(ads[takes_part], scores[takes_part], len(takes_part), seed=seed)
    _, first = np.unique(advertiser[takes_part][order], return_index=True)
    shown = takes_part[order[np.sort(first)[:slots]]]
    unknown = np.full(len(shown), np.nan)
    return Slate(ads=ads[shown], prices=np.full(len(shown), reserve), values=unknown, rates=unknown)
