"""Diagnosis on planted profiles: the tensor that was made to bind is the one that is named."""

import pytest

from quantadvisor.advisor.diagnose import amdahl, amdahl_of_scheme, diagnose, flat_share
from quantadvisor.documents import (
    Device,
    Inventory,
    KernelTiming,
    LedgerItem,
    LinearShape,
    MemoryLedger,
    PhaseTime,
    Profile,
    Shares,
    SourceCheckpoint,
)
from quantadvisor.methods.schemes import scheme

from .documents import figure, workload

INVENTORY = Inventory(
    architecture="LlamaForCausalLM", layers=2, hidden=64, vocabulary=128, heads=2, kv_heads=2, head_dim=32,
    max_context_tokens=4096, tied_embeddings=True, linears=(LinearShape(name="q", n=64, k=64, count=2),),
    embedding_parameters=8192, linear_parameters=8192, other_parameters=128, kv_values_per_token=256,
)  # fmt: skip


def kernels(flat_until: int) -> tuple[KernelTiming, ...]:
    """Time flat in M up to `flat_until`, proportional beyond."""
    return tuple(
        KernelTiming(
            probe="bf16_torch",
            scheme=scheme("bf16"),
            runtime="torch",
            m=m,
            n=64,
            k=64,
            time_s=figure(1e-3 * max(1.0, m / flat_until)),
        )
        for m in (1, 4, 16, 128, 512)
    )


def phase(name: str, linears: float, attention: float, other: float) -> PhaseTime:
    total = linears + attention + other
    return PhaseTime.model_validate(
        {
            "phase": name, "batch": 1, "tokens": 1, "context_tokens": 512, "wall_s": figure(total), "linears_s": linears,
            "attention_s": attention, "other_s": other, "residue_s": 0.0,
        }
    )  # fmt: skip


def profile(prefill: tuple[float, float, float], decode: tuple[float, float, float], cache: int = 10) -> Profile:
    sizes = {"weights": 100, "kv_cache": cache, "activations": 20, "overhead": 5}
    items = tuple(LedgerItem(tensor=k, bytes=v, kind="modelled", source="test") for k, v in sizes.items())  # type: ignore[arg-type]
    return Profile(
        device=Device(name="d", cores=2, threads=2, memory_bytes=1 << 34, fingerprint="f"),
        inventory=INVENTORY,
        source=SourceCheckpoint(model="m", path="p", sha256="0" * 64),
        baseline="none-bf16@torch",
        memory=MemoryLedger(items=items),
        phases=(phase("prefill", *prefill), phase("decode", *decode)),
        kernels=kernels(16),
    )


def test_decode_of_a_chat_is_bound_by_weights() -> None:
    found = diagnose(profile((0.2, 0.05, 0.01), (0.03, 0.002, 0.005)), workload())
    assert found.binds == "weights"
    assert found.decode.binds == "weights"
    assert found.prefill.binds == "activations"
    assert found.ceilings["weights"] == pytest.approx(1 / (1 - found.shares.weights))


def test_long_prompts_are_bound_by_activations() -> None:
    traffic = {"prompt_tokens": 1024, "output_tokens": 4, "concurrency": 4}
    assert diagnose(profile((4.0, 1.0, 0.1), (0.05, 0.01, 0.01)), workload(traffic=traffic)).binds == "activations"


def test_memory_for_many_users_is_bound_by_the_cache() -> None:
    found = diagnose(profile((0.2, 0.05, 0.01), (0.03, 0.05, 0.005), cache=900), workload(objective="concurrency"))
    assert found.binds == "kv_cache"


def test_other_can_bind() -> None:
    assert diagnose(profile((0.01, 0.0, 0.0), (0.003, 0.0, 0.03)), workload()).binds == "other"


def test_the_side_of_the_roofline_is_measured() -> None:
    assert flat_share(kernels(16), "torch", "bf16", 1) == 1.0
    assert flat_share(kernels(16), "torch", "bf16", 512) == 0.0


def test_amdahl_against_the_closed_form() -> None:
    assert amdahl(0.75, 0.0) == pytest.approx(4.0)
    assert amdahl(0.5, 0.5) == pytest.approx(1 / 0.75)
    shares = Shares(weights=0.8, activations=0.1, kv_cache=0.1, other=0.0)
    assert amdahl_of_scheme(shares, scheme("w4-g64"), "bf16") == pytest.approx(1 / (1 - 0.8 * 0.75))
    assert amdahl_of_scheme(shares, scheme("fp32-kv8"), "bf16") == pytest.approx(1 / (1 - 0.1 * 0.5))
