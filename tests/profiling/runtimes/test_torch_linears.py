"""Which linears of a torch model count as quantized: by the codes that they hold, in every package's way of holding them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantadvisor.profiling.runtimes.registry import runtime_file
from quantadvisor.profiling.runtimes.torch import codes_of, is_linear, linear_kinds
from quantadvisor.profiling.workers import RunningWorker

from ...methods.conftest import write_llama

TOKENS = np.random.default_rng(3).integers(3, 250, (1, 16)).astype(np.int64)


class Packed(torch.nn.Module):
    """As GPTQModel's and AutoAWQ's linears: no `weight`, codes packed into words, and no child of nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 32
        self.register_buffer("qweight", torch.zeros(8, 32, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(2, 32))


class Sized(torch.nn.Module):
    """Has the sizes of a linear and holds one: a wrapper, not a linear of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 32
        self.inner = torch.nn.Linear(64, 32)


def with_weight(weight: Any) -> Any:
    made = torch.nn.Linear(64, 32)
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    return made


def test_codes_make_a_linear_quantized() -> None:
    plain, half = torch.nn.Linear(64, 32), torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    assert [codes_of(one) for one in (plain, half)] == ["", ""]
    assert codes_of(with_weight(torch.zeros(1024, 1, dtype=torch.uint8))) == "uint8"  # bitsandbytes, 4 bit
    assert codes_of(with_weight(torch.zeros(32, 64, dtype=torch.float8_e4m3fn))) == "float8_e4m3fn"
    assert codes_of(Packed()) == "int32"


def test_kinds_are_counted_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), Sized(), Packed(), Packed(), torch.nn.LayerNorm(32))
    assert not is_linear(model[1])
    assert linear_kinds(model) == {("Linear", ""): 2, ("Packed", "int32"): 2}


@pytest.mark.parametrize(
    ("package", "config", "codes"),
    [
        ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "uint8"),
        ("bitsandbytes", {"load_in_8bit": True}, "int8"),
    ],
)
def test_a_real_checkpoint_runs_on_its_codes(tmp_path: Path, package: str, config: dict[str, Any], codes: str) -> None:
    """transformers quantizes at load and saves; the worker loads that folder and says what ran."""
    pytest.importorskip(package)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    hf = write_llama(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(hf, quantization_config=BitsAndBytesConfig(**config), device_map="cpu")
    model.save_pretrained(tmp_path / "low")
    with RunningWorker(runtime_file("torch"), tmp_path / "low", (), 2) as worker:
        seen = worker.operators(TOKENS)["decode"]
    assert seen["linears"] == 15
    assert seen["quantized_linears"] == 14  # lm_head stays
    assert any(codes in note for note in seen["notes"])


def test_an_adapter_in_the_folder_is_computed_beside_its_linears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PEFT computes it; its products are none of the model's linears."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'quantadvisor[train]'")
    from transformers import AutoModelForCausalLM

    from quantadvisor.profiling.runtimes.torch import missing_package, open_session

    hf = write_llama(tmp_path / "hf")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)  # B is no zero
    torch.manual_seed(0)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(hf), settings).eval()
    made.save_pretrained(hf / "adapter")
    with torch.no_grad():
        wanted = made(input_ids=torch.from_numpy(TOKENS)).logits[0].numpy()
        with made.disable_adapter():
            plain = made(input_ids=torch.from_numpy(TOKENS)).logits[0].numpy()
    session = open_session(str(hf), (), 1)
    got = np.concatenate(list(session.score(TOKENS[0], None)))
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert np.abs(wanted - plain).max() > 1e-2
    assert sum(linear_kinds(session.model).values()) == 15
    session.close()
    assert missing_package(str(hf)) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert "of LoRA needs peft" in str(missing_package(str(hf)))
