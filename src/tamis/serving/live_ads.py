"""The ads that may be shown now: a bundle's, with what the store says on top."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tamis.data.columns import Origin, alone_where_missing, as_codes
from tamis.data.dataset import EncodedRows
from tamis.errors import ArtifactError
from tamis.funnel.ads import AdTable
from tamis.funnel.blueprint import Blueprint
from tamis.funnel.inventory import Inventory
from tamis.funnel.log import ads_of
from tamis.serving.columns import Columns, text_of
from tamis.serving.records import RawRow, StoredAd


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LiveAds:
    """All N ads that may be shown, by ad row; never changed, but made anew."""

    blueprint: Blueprint | None
    """The bundle's funnel around these ads; None where there is none."""
    inventory: Inventory
    """The ads; ``raw`` holds the item's columns as ``Columns`` types them."""
    ids: tuple[str, ...]
    """(N,) ids, as a log spells them."""
    row_by_id: Mapping[str, int]
    """The other way round."""
    num_of_bundle: int
    """The first so many are the bundle's, the others the store's."""
    advertisers: tuple[str | None, ...]
    """Who bids for each of the store's, as ``StoredAd`` has it. Of its own the bundle has codes."""

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self, rows: NDArray[np.int64]) -> list[RawRow]:
        """The log's columns of some ads."""
        raw = self.inventory.raw
        assert raw is not None
        found: list[RawRow] = raw.take(pa.array(rows)).to_pylist()
        return found

    def of_bundle(self, ad: str) -> StoredAd | None:
        """One of the bundle's ads as the store would have it; None where it has none of that id."""
        row = self.row_by_id.get(ad)
        if row is None or row >= self.num_of_bundle:
            return None
        attributes = self.inventory.attributes
        (columns,) = self.columns(np.array([row]))
        return StoredAd(
            ad=ad,
            columns=columns,
            bid=float(attributes.bid[row]),
            billing=attributes.billing[row].item(),
            advertiser=None,
            quality=float(attributes.quality[row]),
            popularity=float(self.inventory.popularity[row]),
        )


class Catalogue:
    """Makes the live ads of one bundle from whatever the store holds."""

    def __init__(self, blueprint: Blueprint) -> None:
        """Take a bundle's ads.

        Raises:
            ArtifactError: The bundle was published without the ads' columns.
        """
        inventory, schema = blueprint.inventory, blueprint.encoders.schema
        if inventory.raw is None:
            raise ArtifactError(
                "bundle: must hold the ids and columns of its ads to be served, got their codes "
                "alone. Name the log of the dataset as ads.log of the recipe and publish anew."
            )
        # Encoders count what they meet: these are of the ads alone.
        self._encoders = replace(blueprint.encoders, counts={})
        self._item = schema.roles.item
        self._all_columns, self._columns = Columns(schema), Columns(schema, ("item",))
        self.said = Columns(schema, ("item",), without=(self._item,))
        """What may be said of an ad beside its id."""
        ids = text_of(inventory.raw[self._item].combine_chunks())
        self._ids: tuple[str, ...] = tuple(ids.to_pylist())
        inventory = replace(inventory, raw=self._columns.of_log(inventory.raw, where="ads"))
        self._blueprint = replace(blueprint, inventory=inventory)
        self._by_code = np.argsort(inventory.codes)
        self._popularity = float(inventory.popularity.mean()) if len(inventory) else 0.0

    def live(self, stored: Mapping[str, StoredAd | None]) -> LiveAds:
        """The bundle's ads, but for those that the store replaces or has deleted, and the store's.

        Args:
            stored: Ads of the store by id, None for those that were deleted. Columns that this
                bundle does not know are not read; those that an ad lacks are missing.
        """
        is_kept = np.array([name not in stored for name in self._ids], np.bool_)
        put = [ad for ad in stored.values() if ad is not None]
        blueprint: Blueprint | None
        if is_kept.any():
            changed = self._blueprint
            if not is_kept.all():
                # What is replaced goes too: an index places the new one by its content.
                changed = changed.without_ads(changed.inventory.codes[~is_kept])
            if put:
                changed = changed.with_ads(self.of_store(put))
            blueprint, inventory = changed, changed.inventory
        else:
            inventory = self.of_store(put)
            # An index of nothing else has no place for these: it is made of them.
            blueprint = self._blueprint.of_ads(inventory) if put else None
        ids = (*itertools.compress(self._ids, is_kept.tolist()), *(ad.ad for ad in put))
        return LiveAds(
            blueprint=blueprint,
            inventory=inventory,
            ids=ids,
            row_by_id={name: row for row, name in enumerate(ids)},
            num_of_bundle=int(is_kept.sum()),
            advertisers=tuple(ad.advertiser for ad in put),
        )

    def check(self, ad: StoredAd) -> None:
        """Refuse an ad that has no place in the bundle's funnel.

        Raises:
            TamisError: It is billed by what no stage predicts, say.
        """
        self._blueprint.of_ads(self.of_store([ad])).build()

    def of_store(self, ads: Sequence[StoredAd]) -> Inventory:
        """Some ads of the store, as a bundle would hold them."""
        known = self._columns.names
        rows = [
            {**{n: ad.columns[n] for n in known if n in ad.columns}, self._item: ad.ad}
            for ad in ads
        ]
        popularity = [self._popularity if ad.popularity is None else ad.popularity for ad in ads]
        return Inventory(
            codes=codes_of([ad.ad for ad in ads]),
            attributes=AdTable(
                bid=np.array([ad.bid for ad in ads], np.float64),
                billing=np.array([ad.billing for ad in ads]),
                advertiser=self._advertisers(ads),
                quality=np.array([ad.quality for ad in ads], np.float64),
            ),
            rows=self._encoded(rows),
            popularity=np.array(popularity, np.float64),
            raw=self._columns.table(rows),
        )

    def _advertisers(self, ads: Sequence[StoredAd]) -> NDArray[np.int64]:
        """Codes of those who bid for some ads of the store."""
        said = codes_of([ad.advertiser for ad in ads])
        own = codes_of([ad.ad for ad in ads])
        inventory = self._blueprint.inventory
        rows = ads_of(own, inventory.codes, self._by_code)
        found = alone_where_missing(said, own)
        is_bundles = (said < 0) & (rows >= 0)
        found[is_bundles] = inventory.attributes.advertiser[rows[is_bundles]]
        return found

    def _encoded(self, rows: Sequence[RawRow]) -> EncodedRows:
        """Item fields of ads; those of user and context, which are missing here, are left out."""
        found = self._encoders.encode(
            self._all_columns.table(rows), first_row=0, origin=Origin(file="ads"), inputs_only=True
        )
        like = self._blueprint.inventory.rows
        return EncodedRows(
            row=found.row,
            numeric={name: found.numeric[name] for name in like.numeric},
            ids={name: found.ids[name] for name in like.ids},
            sequences={name: found.sequences[name] for name in like.sequences},
        )


def codes_of(ids: Sequence[str | None]) -> NDArray[np.int64]:
    """Codes of ids, as the roles of a dataset have them; -1 for None."""
    return as_codes(pa.array(list(ids), pa.string()))
