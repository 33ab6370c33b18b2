"""What the auction knows of every ad, and what an ad is worth to the platform."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tamis.errors import DataError


class Valuation(Protocol):
    """Total value of an impression, without the ad's own quality; linear in the bid.

    ``bid * p_click * p_conversion - penalties`` is one, without the second factor for ads that pay
    by click.
    """

    def score(
        self,
        predictions: Mapping[str, NDArray[np.float64]],
        bid: NDArray[np.float64],
        billing: NDArray[Any],
    ) -> NDArray[np.float64]:
        """Money (n,) for n impressions, given predictions by task, bids and how they are billed."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AdTable:
    """Attributes of all N ads, by ad row."""

    bid: NDArray[np.float64]
    """(N,) money for one billed event; finite, not negative."""
    billing: NDArray[Any]
    """(N,) the event that is billed, in the codes of the value function."""
    advertiser: NDArray[np.int64]
    """(N,) who bids; equal numbers are one advertiser."""
    quality: NDArray[np.float64]
    """(N,) money that an impression is worth whatever is bid, on top of the value function."""

    def __post_init__(self) -> None:
        for name in ("bid", "billing", "advertiser", "quality"):
            values = getattr(self, name)
            if values.shape != (len(self.bid),):
                raise DataError(
                    f"AdTable.{name}: must be of shape ({len(self.bid)},) as bid is, got "
                    f"{values.shape}. Give every ad one value."
                )
        for name, broken, must in (
            ("bid", ~((self.bid >= 0) & (self.bid < np.inf)), "finite and not negative"),
            ("quality", ~np.isfinite(self.quality), "finite"),
        ):
            if broken.any():
                row = int(np.argmax(broken))
                raise DataError(
                    f"AdTable.{name}: must be {must}, got {getattr(self, name)[row].item()!r} for "
                    f"ad {row}. Mend it, or leave the ad out."
                )

    def __len__(self) -> int:
        return len(self.bid)

    def total_value(
        self,
        value: Valuation,
        predictions: Mapping[str, NDArray[np.float64]],
        ads: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """What impressions of some ads are worth: early and final stages order by it.

        Args:
            value: Combines predictions and bid.
            predictions: (n,) by task.
            ads: (n,) ad rows.

        Returns:
            (n,) money.

        Source:
            Working definition of Wang et al., Towards the Better Ranking Consistency, AdKDD 2023.

        Differs from the source:
            The paper names action, bid and quality; constants and form are ours.
        """
        bids = value.score(predictions, self.bid[ads], self.billing[ads])
        return bids + self.quality[ads]

    def linear_value(
        self,
        value: Valuation,
        predictions: Mapping[str, NDArray[np.float64]],
        ads: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The total value as ``rate * bid + offset``, which prices are solved from.

        Returns:
            (n,) rate: billed events expected of an impression; (n,) offset: money.
        """
        billing = self.billing[ads]
        zero = value.score(predictions, np.zeros(len(ads)), billing)
        rate = value.score(predictions, np.ones(len(ads)), billing) - zero
        return rate, zero + self.quality[ads]
