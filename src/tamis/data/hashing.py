"""Stable 64-bit hashes of strings and integers, vectorised; the same on every machine."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_PRIME1 = np.uint64(0x9E3779B185EBCA87)
_PRIME2 = np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT = np.uint64(29)


def hash_integers(values: NDArray[Any], *, seed: int = 0) -> NDArray[np.uint64]:
    """Hash integers; near inputs give unrelated hashes.

    Args:
        values: (n,) integers of 64 bits at most.
        seed: Another seed gives an unrelated hash.

    Returns:
        (n,) uint64. Distinct inputs give distinct hashes.
    """
    with np.errstate(over="ignore"):
        state = values.astype(np.uint64) + np.uint64(seed) * _PRIME1 + _PRIME2
        return _mix(state)


def hash_strings(values: pa.Array, *, seed: int = 0) -> NDArray[np.uint64]:
    """Hash the UTF-8 bytes of strings.

    Args:
        values: (n,) strings without nulls.
        seed: Another seed gives an unrelated hash.

    Returns:
        (n,) uint64; two of n distinct strings collide with a chance of about n**2 / 2**65.
    """
    array = values.cast(pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array) + 1]
    data = array.buffers()[2]
    octets = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    result = np.empty(len(array), np.uint64)
    with np.errstate(over="ignore"):
        for length in np.unique(lengths):
            which = np.flatnonzero(lengths == length)
            words = -(-int(length) // 8)
            padded = np.zeros((len(which), words * 8), np.uint8)
            padded[:, :length] = octets[offsets[which][:, None] + np.arange(length)]
            state = np.full(len(which), np.uint64(seed) * _PRIME1 + np.uint64(length), np.uint64)
            for word in padded.view("<u8").T:
                state = _mix(state ^ _mix(word + _PRIME2))
            result[which] = _mix(state)
    return result


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits in which every input bit reaches every output bit."""
    state = (state ^ (state >> np.uint64(32))) * _PRIME1
    state = (state ^ (state >> _SHIFT)) * _PRIME2
    return state ^ (state >> np.uint64(32))
