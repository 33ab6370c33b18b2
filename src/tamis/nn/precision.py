"""Which types of matrix products the hardware is made for."""

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32.

    With AMX tiles they are 4 to 8 times as fast, with AVX-512 BF16 twice; without either they are
    emulated.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def has_fast_int8(device: torch.device) -> bool:
    """Whether products of whole numbers of 8 bits are faster than in float32: VNNI, or AMX."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()
