"""Integer codes to bytes and back, little end first: code i of a row fills bits [i*b, (i+1)*b) of the row's bytes.

With b = 4 the even code is the low nibble, as MatMulNBits and GatherBlockQuantized of ONNX Runtime read it; with b = 8
packing is the identity. Every row starts on a byte of its own; the bits left over are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes of one row of `codes` codes."""
    return (codes * bits + 7) // 8


def pack_nbits(codes: Codes, bits: int) -> Codes:
    """codes: [..., K] below 2**bits -> bytes [..., ceil(K * bits / 8)]."""
    _check(bits)
    if codes.dtype != np.uint8:
        raise TypeError(f"codes have dtype {codes.dtype}; pack_nbits takes uint8")
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit into {bits} bits")
    if bits == 8:
        return codes.copy()
    if 8 % bits == 0:
        return _pack_even(codes, bits)
    planes = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(planes.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1, bitorder="little")


def unpack_nbits(packed: Codes, bits: int, count: int) -> Codes:
    """bytes [..., ceil(count * bits / 8)] -> codes [..., count]: the inverse of `pack_nbits`."""
    _check(bits)
    if packed.shape[-1] != packed_bytes(count, bits):
        raise ValueError(f"{packed.shape[-1]} bytes a row; {count} codes of {bits} bits take {packed_bytes(count, bits)}")
    if bits == 8:
        return packed.copy()
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes: Codes = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return codes.reshape(*packed.shape[:-1], packed.shape[-1] * (8 // bits))[..., :count]
    flat = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    planes = flat.reshape(*packed.shape[:-1], count, bits)
    return np.packbits(planes, axis=-1, bitorder="little")[..., 0]


def pack_words(codes: Codes, bits: int) -> NDArray[np.int32]:
    """codes: [..., K] -> 32-bit words [..., ceil(K * bits / 32)], rows filled up with zeros (AutoGPTQ, compressed-tensors)."""
    rows = pack_nbits(codes, bits)
    padded = np.zeros((*rows.shape[:-1], -(-rows.shape[-1] // 4) * 4), np.uint8)
    padded[..., : rows.shape[-1]] = rows
    words: NDArray[np.int32] = padded.view("<i4")
    return words


def unpack_words(words: NDArray[np.int32], bits: int, count: int) -> Codes:
    """words: [..., ceil(count * bits / 32)] -> codes [..., count]: the inverse of `pack_words`."""
    rows = np.ascontiguousarray(words, "<i4").view(np.uint8)
    return unpack_nbits(rows[..., : packed_bytes(count, bits)], bits, count)


def _pack_even(codes: Codes, bits: int) -> Codes:
    """Widths that divide a byte (1, 2, 4): shift and or, several times faster than bit planes."""
    per_byte = 8 // bits
    missing = -codes.shape[-1] % per_byte
    if missing:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), np.uint8)], axis=-1)
    lanes = codes.reshape(*codes.shape[:-1], codes.shape[-1] // per_byte, per_byte)
    packed: Codes = lanes[..., 0].copy()
    for lane in range(1, per_byte):
        packed |= lanes[..., lane] << np.uint8(lane * bits)
    return packed


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits a code; 1 to 8 can be packed")
