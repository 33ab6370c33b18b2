"""Where each of some strings stands in a fixed list of distinct strings, exactly and at once."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tamis.data.hashing import hash_strings
from tamis.errors import ArtifactError


class StringLookup:
    """Positions of strings in a list, built once and asked often.

    Arrow's ``index_in`` builds a hash table of the whole list at every call: 0.2 s for a million
    strings, be it for one question or for all rows. Here the list is hashed and sorted once; a
    question is a binary search, and the string found is compared, so that the answer is exact.
    """

    def __init__(self, values: pa.Array) -> None:
        """Prepare to answer.

        Args:
            values: (V,) distinct strings without nulls.

        Raises:
            ArtifactError: A string is there twice.
        """
        self._values = values
        # Two of a million strings collide once in 40 million lists; another seed parts them.
        for seed in itertools.count():
            hashes = hash_strings(values, seed=seed)
            order = np.argsort(hashes, kind="stable")
            ordered = hashes[order]
            if not (ordered[1:] == ordered[:-1]).any():
                break
            # Equal strings collide under every seed.
            if (count := pc.count_distinct(values).as_py()) < len(values):
                raise ArtifactError(
                    f"vocabulary: must hold each category once, got {count} different ones among "
                    f"{len(values)}. It was altered after it was written; ingest the log anew."
                )
        self._seed, self._hashes, self._order = seed, ordered, order

    def positions(self, strings: pa.Array) -> NDArray[np.int64]:
        """Position (n,) of each string in the list; -1 where it is not in it.

        Args:
            strings: (n,) strings without nulls.
        """
        if not len(self._values) or not len(strings):
            return np.full(len(strings), -1, np.int64)
        hashes = hash_strings(strings, seed=self._seed)
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = self._hashes[place] == hashes
        result = np.where(found, self._order[place], -1)
        candidates = self._values.take(pa.array(self._order[place[found]]))
        same = pc.equal(candidates, strings.filter(pa.array(found)))
        result[np.flatnonzero(found)[~same.to_numpy(zero_copy_only=False)]] = -1
        return result
