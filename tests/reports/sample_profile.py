"""SYNTHETIC TEST DATA, measured nowhere: the profile of the sample results.

The shapes are SmolLM2-135M's; the times follow a roofline of 20 GB/s.
"""

from __future__ import annotations

from quantadvisor.documents import (
    ActivationStats,
    Device,
    Figure,
    Format,
    Inventory,
    KernelTiming,
    LayerActivations,
    LedgerItem,
    LinearShape,
    MemoryLedger,
    Peaks,
    PhaseTime,
    Profile,
    Scheme,
    SourceCheckpoint,
)

MIB = 2**20
LINEARS = (
    LinearShape(name="attention.qkv", n=960, k=576, count=30, layers=30),
    LinearShape(name="attention.o", n=576, k=576, count=30, layers=30),
    LinearShape(name="mlp.gate_up", n=3072, k=576, count=30, layers=30),
    LinearShape(name="mlp.down", n=576, k=1536, count=30, layers=30),
    LinearShape(name="lm_head", n=49152, k=576, count=1, lm_head=True),
)


BASELINE = "none-bf16@torch"


def figure(value: float, width: float = 0.03, kind: str = "measured") -> Figure:
    """A figure with a symmetric interval and five samples."""
    samples = tuple(value * (1 + width * step) for step in (-0.9, -0.4, 0.0, 0.5, 1.1))
    return Figure.model_validate(
        {"median": value, "low": value * (1 - width), "high": value * (1 + width), "samples": samples, "kind": kind}
    )


def scheme(name: str, weights: int = 0, activations: int = 0, cache: int = 0, compute: str = "fp32") -> Scheme:
    def part(bits: int, granularity: str) -> Format | None:
        group = 64 if granularity == "group" else None
        made = {"number": "int", "bits": bits, "granularity": granularity, "group_size": group}
        return Format.model_validate(made) if bits else None

    return Scheme.model_validate(
        {
            "name": name,
            "compute": compute,
            "weights": part(weights, "channel" if activations else "group"),
            "activations": part(activations, "token"),
            "keys": part(cache, "channel"),
            "values": part(cache, "channel"),
        }
    )


SCHEMES = {
    "fp32": scheme("fp32"),
    "bf16": scheme("bf16", compute="bf16"),
    "w4-g64": scheme("w4-g64", 4),
    "w8-g64": scheme("w8-g64", 8),
    "w4w8-g64": scheme("w4w8-g64", 6),
    "w8a8": scheme("w8a8", 8, 8),
    "w8-g64-kv8": scheme("w8-g64-kv8", 8, cache=8),
}


def kernels() -> tuple[KernelTiming, ...]:
    """Times from a roofline of 20 GB/s and the peaks below, with an overhead per call."""
    probes = (
        ("torch_linear", "bf16", "torch", 0.9e12, 2.0, 1.0),
        ("torch_linear", "fp32", "torch", 0.26e12, 4.0, 1.0),
        ("ort_matmul", "fp32", "onnxruntime", 0.24e12, 4.0, 1.15),
        ("ort_matmulnbits", "w8-g64", "onnxruntime", 0.23e12, 1.1, 1.3),
        ("ort_matmulnbits", "w4-g64", "onnxruntime", 0.2e12, 0.6, 1.3),
        ("ort_dynamic_quantize_matmul", "w8a8", "onnxruntime", 0.8e12, 1.0, 1.6),
        ("openvino_fullyconnected", "w8-g64", "openvino", 0.25e12, 1.1, 1.2),
    )
    made = []
    for probe, kind, runtime, peak, width, slack in probes:
        for shape in LINEARS:
            for m in (1, 8, 64, 512):
                cost = slack * (max(2 * m * shape.n * shape.k / peak, shape.n * shape.k * width / 2e10) + 3e-6)
                share = min(1.0, (2 * m * shape.n * shape.k / cost) / 1.1e12)
                made.append(
                    KernelTiming(
                        probe=probe,
                        scheme=SCHEMES[kind],
                        runtime=runtime,
                        m=m,
                        n=shape.n,
                        k=shape.k,
                        time_s=figure(cost),
                        operator=probe.partition("_")[2],
                        roofline_share=share,
                    )
                )
    why = "the wheel has no INT4 matmul for this CPU"
    refused = KernelTiming(probe="torch_int4", scheme=SCHEMES["w4-g64"], runtime="torch", m=1, n=960, k=576, refused=why)
    return (*made, refused)


def activations() -> ActivationStats:
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    layers = []
    for layer in range(30):
        for place, kind in enumerate(kinds):
            absmax = 2.5 + layer * 0.12 + place * 1.7 + (280.0 if (layer, place) == (28, 3) else 0.0)
            layers.append(
                LayerActivations(
                    name=f"model.layers.{layer}.{kind}",
                    absmax=absmax,
                    absmax_channel_p50=absmax / 7,
                    outlier_channels=max(0, round(absmax - 6)),
                    outlier_tokens_share=min(1.0, max(0.0, absmax - 6) / 40),
                    error_per_tensor=0.0004 * absmax,
                    error_per_token=0.0001 * absmax,
                    error_per_channel=0.00003 * absmax,
                )
            )
    return ActivationStats(tokens=4096, layers=tuple(layers), outlier_layers_share=0.55)


def device() -> Device:
    rates = {"fp32": figure(0.27e12), "bf16": figure(1.1e12), "int8": figure(1.9e12)}
    return Device(
        name="Synthetic CPU with AMX",
        isa=("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8"),
        cores=2,
        threads=2,
        memory_bytes=8 * 2**30,
        last_level_cache_bytes=32 * MIB,
        fingerprint="synthetic-0000",
        peaks=Peaks(read_bytes_per_s=figure(2.0e10), flops_per_s=rates),
    )


def inventory() -> Inventory:
    return Inventory(
        architecture="LlamaForCausalLM",
        layers=30,
        hidden=576,
        vocabulary=49152,
        heads=9,
        kv_heads=3,
        head_dim=64,
        max_context_tokens=8192,
        tied_embeddings=True,
        linears=LINEARS,
        embedding_parameters=28_311_552,
        linear_parameters=106_168_320,
        other_parameters=35_136,
        kv_values_per_token=11_520,
    )


def profile() -> Profile:
    items = (
        LedgerItem.model_validate({"tensor": "weights", "bytes": 269 * MIB, "kind": "modelled", "source": "config"}),
        LedgerItem.model_validate(
            {"tensor": "kv_cache", "bytes": 14 * MIB, "kind": "modelled", "source": "640 tokens × 1 × 23,040 bytes"}
        ),
        LedgerItem.model_validate(
            {"tensor": "activations", "bytes": 118 * MIB, "kind": "modelled", "source": "prefill of 512 tokens"}
        ),
        LedgerItem.model_validate(
            {"tensor": "overhead", "bytes": 240 * MIB, "kind": "measured", "source": "session without a model"}
        ),
    )
    prefill = PhaseTime(
        phase="prefill", batch=1, tokens=512, context_tokens=512, wall_s=figure(0.161), linears_s=0.096,
        attention_s=0.031, cache_s=0.004, other_s=0.022, residue_s=0.008,
    )  # fmt: skip
    decode = PhaseTime(
        phase="decode", batch=1, tokens=1, context_tokens=576, wall_s=figure(0.0357), linears_s=0.0243,
        attention_s=0.0041, cache_s=0.0009, other_s=0.0052, residue_s=0.0012,
    )  # fmt: skip
    return Profile(
        device=device(),
        inventory=inventory(),
        source=SourceCheckpoint(
            model="builtin:smollm2-135m",
            path="synthetic/model",
            sha256="0" * 64,
            already_quantized="Q4_1",
            reparametrised="input-channel scales, log-uniform in [0.5, 2], seed 0",
        ),
        baseline=BASELINE,
        memory=MemoryLedger(items=items, measured_peak_bytes=655 * MIB),
        phases=(prefill, decode),
        activations=activations(),
        kernels=kernels(),
    )
