import numpy as np
import pytest

from quantadvisor.methods.affine import (
    affine_grid,
    dequantize_groups,
    fake_activations,
    fake_tokens,
    in_groups,
    quantize,
    quantize_channels,
    quantize_groups,
    round_groups,
    rounded_groups,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecated, still an oracle

X = np.array([-1.5, -1, 0, 1, 1.5, 2.4921875, 2.5], np.float32)


def test_golden_affine() -> None:
    """x in [-1.5, 2.5] to int8: torch, ONNX Runtime and MinMaxObserver agree on these codes."""
    scale, zero = affine_grid(X.min(), X.max(), -128, 127)
    assert (float(scale), int(zero)) == (pytest.approx(4 / 255), -32)
    assert quantize(X, scale, zero, -128, 127).tolist() == [-128, -96, -32, 32, 64, 127, 127]


def test_affine_like_onnxruntime_and_torch() -> None:
    import torch
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    zero, scale = compute_scale_zp(*(np.array(v, np.float32) for v in (-1.5, 2.5)), np.array(-128), np.array(127), False)
    ours = affine_grid(X.min(), X.max(), -128, 127)
    assert (float(ours[0]), int(ours[1])) == (pytest.approx(float(scale)), int(zero))
    codes = torch.quantize_per_tensor(torch.from_numpy(X), float(scale), int(zero), torch.qint8).int_repr()
    assert codes.tolist() == quantize(X, *ours, -128, 127).tolist()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_like_torch_per_channel(bits: int, symmetric: bool) -> None:
    """Every group is one channel of torch.quantize_per_channel with our scales and zeros: codes are equal."""
    import torch

    w = np.random.default_rng(bits).standard_normal((6, 96)).astype(np.float32)
    codes, scales, zeros = quantize_groups(w, bits, 32, symmetric)
    rows = torch.from_numpy(w.reshape(-1, 32))
    theirs = torch.quantize_per_channel(
        rows, torch.from_numpy(scales.reshape(-1)).double(), torch.from_numpy(zeros.reshape(-1)).long(), 0, torch.quint8
    ).int_repr()
    clipped = np.clip(theirs.numpy(), 0, (1 << bits) - 1)
    np.testing.assert_array_equal(codes.reshape(-1, 32), clipped)


@pytest.mark.parametrize("width", [32, 33, 100, 7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_half_a_step(width: int, symmetric: bool) -> None:
    w = np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
    codes, scales, zeros = quantize_groups(w, 4, 32, symmetric)
    assert codes.shape == w.shape
    assert scales.shape == zeros.shape == (5, -(-width // 32))
    step = np.repeat(scales, 32, axis=1)[:, :width]
    assert (np.abs(dequantize_groups(codes, scales, zeros, 32) - w) <= step * 0.5001 + (0 if symmetric else step)).all()


def test_half_goes_to_even_and_zero_stays_zero() -> None:
    w = np.array([[7, 0.5, 1.5, 2.5, -0.5, -1.5, 0, -7]], np.float32)
    codes, scales, zeros = quantize_groups(w, 4, 8, True)
    assert float(scales[0, 0]) == 1
    assert (codes.astype(int) - int(zeros[0, 0])).tolist() == [[7, 0, 2, 2, 0, -2, 0, -7]]
    codes, scales, zeros = quantize_groups(np.zeros((2, 8), np.float32), 4, 8, False)
    assert not dequantize_groups(codes, scales, zeros, 8).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric_codes_like_onnxruntime(bits: int, tmp_path) -> None:
    """MatMulNBitsQuantizer rounds half away from zero after adding the zero: ours may differ only at a tie."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    from quantadvisor.kernels.packing import unpack_nbits

    w = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 22]> agraph (float[m, 64] x) => (float[m, 48] y) { y = MatMul(x, w) }'
    )
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(w.T), "w"))
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, accuracy_level=4, bits=bits)
    theirs = MatMulNBitsQuantizer(graph, algo_config=config)
    theirs.process()
    made = [onnx.numpy_helper.to_array(tensor) for tensor in theirs.model.model.graph.initializer]
    packed = next(tensor for tensor in made if tensor.ndim == 3)
    their_scales = next(tensor for tensor in made if tensor.dtype == np.float32)
    codes, scales, _ = quantize_groups(w, bits, 32, False)
    their_codes = unpack_nbits(packed, bits, 32).reshape(48, 64)
    np.testing.assert_allclose(scales.reshape(-1), their_scales.reshape(-1), rtol=1e-6)
    differ = codes.astype(int) - their_codes
    assert np.abs(differ).max() <= 1
    assert (differ != 0).mean() < 0.01


def test_channels_are_symmetric_over_127() -> None:
    codes, scale = quantize_channels(np.array([[127, -63.5, 1], [0, 0, 0]], np.float32))
    assert codes.tolist() == [[127, -64, 1], [0, 0, 0]]
    assert scale.tolist() == [1, 1]


def test_activations_round_like_dynamic_quantize_linear() -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 22]> agraph (float[m, k] x) => (uint8[m, k] q, float s, uint8 z)'
        " { q, s, z = DynamicQuantizeLinear(x) }"
    )
    x = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    q, s, z = ReferenceEvaluator(graph).run(None, {"x": x})
    np.testing.assert_allclose(fake_activations(x), (q.astype(np.float32) - z) * s, atol=1e-6)


def test_tokens_have_scales_of_their_own() -> None:
    x = np.array([[1, -127], [0.01, 0.0127]], np.float32)
    np.testing.assert_allclose(fake_tokens(x), x, rtol=1e-6)
    assert fake_activations(x)[1].tolist() == [0, 0]


def test_widths_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        quantize_groups(np.zeros((1, 4), np.float32), 9, 4, True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_without_codes_is_what_the_codes_stand_for(bits: int, symmetric: bool) -> None:
    """To the last bit, the filled-up end of a row among them; on grids smaller than the range, so that codes are clipped."""
    w = np.random.default_rng(bits).standard_normal((5, 40)).astype(np.float32)
    _, scales, zeros = quantize_groups(w * np.float32(0.7), bits, 16, symmetric)
    codes = round_groups(w, scales, zeros, bits, 16)
    found = rounded_groups(in_groups(w, 16), scales, zeros, bits).reshape(5, -1)
    np.testing.assert_array_equal(found[:, :40], dequantize_groups(codes, scales, zeros, 16))
    assert not found[:, 40:].any()
