import numpy as np
import pytest

from quantadvisor.kernels.packing import pack_nbits, packed_bytes, unpack_nbits


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (5, 33), (2, 3, 64), (4, 0), (0, 8)])
def test_round_trip(bits: int, shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, shape).astype(np.uint8)
    packed = pack_nbits(codes, bits)
    assert packed.shape == (*shape[:-1], packed_bytes(shape[-1], bits))
    np.testing.assert_array_equal(unpack_nbits(packed, bits, shape[-1]), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_lie_little_end_first(bits: int) -> None:
    """Oracle: one big integer, code i shifted by i * bits."""
    codes = np.random.default_rng(1).integers(0, 1 << bits, 13).astype(np.uint8)
    whole = sum(int(code) << (place * bits) for place, code in enumerate(codes))
    expected = whole.to_bytes(packed_bytes(13, bits), "little")
    assert pack_nbits(codes, bits).tobytes() == expected


def test_the_even_code_is_the_low_nibble() -> None:
    assert pack_nbits(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="code 16 does not fit into 4 bits"):
        pack_nbits(np.array([16], np.uint8), 4)
    with pytest.raises(TypeError, match="int64"):
        pack_nbits(np.array([1]), 4)
    with pytest.raises(ValueError, match="1 to 8"):
        pack_nbits(np.array([1], np.uint8), 9)
    with pytest.raises(ValueError, match="4 codes of 4 bits take 2"):
        unpack_nbits(np.zeros(3, np.uint8), 4, 4)
