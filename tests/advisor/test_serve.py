"""Serve commands of an artifact: executed once, and said to be unverified, with the reason, where they cannot run."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quantadvisor.advisor import serve
from quantadvisor.advisor.candidates import CACHE_OPTIONS
from quantadvisor.advisor.catalogue import NOMINAL
from quantadvisor.advisor.serve import (
    COMMANDS,
    SAID,
    command_of,
    continued,
    loaders_of,
    options_for,
    try_serve,
    try_vllm,
    wrong_with,
)
from quantadvisor.documents import Candidate, CandidateFailed
from quantadvisor.methods.schemes import scheme
from quantadvisor.profiling.runtimes import llama_cpp, openvino, triton, vllm
from quantadvisor.profiling.served import Launch

from ..kernels.test_guardian import leaves_nobody

SAID_IT = "Paris. The city"


def served_by(runtime: str, name: str, *options: str) -> Candidate:
    made = scheme(name)
    return Candidate(name="x", method="none", scheme=made, runtime=runtime, options=options, target="kv_cache", refused=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_triton_without_a_gpu_is_not_verified_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(NOMINAL))
    found = try_serve("triton", folder, served_by("triton", "bf16-kv4-turbo"), sys.executable, "")
    command = "python -m quantadvisor.profiling.triton_complete artifact 'The capital of France is' --cache kvturbo"
    assert (found.runtime, found.command, found.verified) == ("triton", command, False)
    assert found.reason is not None
    assert "exit code 2" in found.reason and "needs an NVIDIA GPU" in found.reason


def test_a_cache_of_another_runtime_is_not_asked_of_triton(tmp_path: Path) -> None:
    found = try_serve("triton", tmp_path / "missing", served_by("vllm", "bf16-kvf8-unit"), sys.executable, "")
    assert "--cache" not in found.command
    assert "no config.json" in str(found.reason)


@pytest.mark.parametrize(
    ("server", "choice", "said"),
    [
        (
            "openvino-genai",
            served_by("openvino", "fp32", "bf16"),
            ("INFERENCE_PRECISION_HINT='bf16'", "KV_CACHE_PRECISION='f16'"),
        ),
        (
            "openvino-genai",
            served_by("openvino", "fp32-kv8", "f32"),
            ("INFERENCE_PRECISION_HINT='f32'", "KV_CACHE_PRECISION='u8'"),
        ),
        ("llama.cpp", served_by("llama.cpp", "q8_0", "fa"), ("flash_attn=True",)),
        ("llama.cpp", served_by("llama.cpp", "q8_0-kv8", "fa"), ("flash_attn=True", "type_k=8, type_v=8")),
        ("llama.cpp", served_by("llama.cpp", "q8_0", "cuda"), ("n_gpu_layers=-1",)),
        ("torch", served_by("torch", "bf16", "cuda"), ("device_map='cuda'",)),
    ],
)
def test_a_command_carries_the_options_of_the_candidate(
    tmp_path: Path, server: str, choice: Candidate, said: tuple[str, ...]
) -> None:
    command = command_of(server, tmp_path / "artifact", choice, sys.executable)
    plain = command_of(
        server, tmp_path / "artifact", served_by(choice.runtime, choice.scheme.name.removesuffix("-kv8")), sys.executable
    )
    for words in said:
        assert f", {words}" in command
    assert command != plain


def test_every_option_of_a_runtime_has_its_words_or_is_said_to_have_none(tmp_path: Path) -> None:
    """llama.cpp's binding has no word for `plain`."""
    assert set(openvino.PRECISIONS) | {
        option for kinds in (CACHE_OPTIONS["openvino"],) for option in (*kinds[0], *kinds[1].values())
    } <= set(SAID["openvino-genai"])
    assert set(llama_cpp.OPTIONS) - set(SAID["llama.cpp"]) == {"plain"}
    assert set(triton.OPTIONS) == set(SAID["triton"])
    found = try_serve("llama.cpp", tmp_path / "artifact", served_by("llama.cpp", "q8_0", "plain"), sys.executable, "")
    assert (found.verified, found.reason) == (False, "the command cannot say plain, which the candidate was measured with")
    assert all("{options}" in text for server, text in COMMANDS.items() if server in SAID)
    assert options_for("onnxruntime-genai", served_by("onnxruntime", "fp32")) == ()


@pytest.mark.parametrize(("name", "cache"), [("bf16", False), ("bf16-kvf8-unit", True)])
def test_vllm_is_served_as_it_was_measured(tmp_path: Path, python: str, name: str, cache: bool) -> None:
    """A stand-in of its server: started, asked once, and ended. An FP8 cache and the pool are in the command."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "faults.json").write_text(json.dumps({"says": [*SAID_IT.split(), "and", "more", "of", "it"]}))
    found = try_vllm(folder, served_by("vllm", name), python, 5 << 20, 1, SAID_IT)
    assert found.verified, found.reason
    assert found.reason is None
    assert found.command.startswith(f"{python} -m vllm.entrypoints.openai.api_server --model artifact ")
    assert ("--kv-cache-dtype fp8" in found.command) == cache
    assert f"--kv-cache-memory-bytes {5 << 20} --max-model-len -1" in found.command
    asked = [json.loads(line)["prompt"] for line in (folder / "asked").read_text().splitlines()]
    assert asked[-1] == "The capital of France is"


@pytest.mark.parametrize(
    ("kind", "runtime", "method", "found"),
    [
        ("onnx", "onnxruntime", None, ("ONNX (GroupQueryAttention)", ("onnxruntime-genai",))),
        ("torch", "torch", None, ("safetensors", ("torch", "vllm", "triton"))),
        ("compressed", "vllm", None, ("safetensors", ("vllm", "torch", "triton"))),
        ("torch", "torch", "gptq", ("GPTQ", ("torch", "vllm"))),
        ("compressed", "vllm", "awq", ("AWQ", ("vllm", "torch"))),
        ("torch", "torch", "bitsandbytes", ("bitsandbytes", ("torch",))),
        ("compressed", "triton", "compressed-tensors", ("compressed-tensors", ("triton", "vllm", "torch"))),
        ("torch", "torch", "eetq", ("eetq", ("torch",))),
    ],
)
def test_a_folder_is_served_by_all_that_load_its_format(
    tmp_path: Path, kind: str, runtime: str, method: str | None, found: tuple[str, tuple[str, ...]]
) -> None:
    settings = {"quantization_config": {"quant_method": method}} if method else {}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert loaders_of(kind, tmp_path, runtime) == found


PACKED = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True}, True),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}, False),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": PACKED}}}, True),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {}}, False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, True),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, False),
    ],
)
def test_triton_serves_what_it_has_a_kernel_for(tmp_path: Path, settings: dict[str, Any], reads: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert ("triton" in loaders_of("compressed", tmp_path, "vllm")[1]) == reads


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_artifact_of_another_runtime_says_why_triton_was_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "config.json").write_text(json.dumps(NOMINAL))
    monkeypatch.setattr(serve, "try_vllm", lambda *_: serve.Serve(runtime="vllm", command="", verified=True))
    monkeypatch.setitem(serve.COMMANDS, "torch", "print('The capital of France is Paris'){options}")
    choice = served_by("vllm", "bf16")
    found = serve.place_artifact(tmp_path / "built", tmp_path, "compressed", choice, sys.executable, 5 << 20, 1, "")
    assert [(one.runtime, one.verified) for one in found.serve] == [("vllm", True), ("torch", True), ("triton", False)]
    assert "triton_complete artifact" in found.serve[-1].command
    assert "needs an NVIDIA GPU" in str(found.serve[-1].reason)


def test_vllm_serves_torch_s_folder_where_it_is_installed(tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is not quantized; whether vLLM is there is asked before its server is started."""
    (tmp_path / "faults.json").write_text(json.dumps({"says": SAID_IT.split()}))
    plain = served_by("torch", "bf16")
    monkeypatch.setattr(serve, "refusal", lambda *_: None)
    found = try_vllm(tmp_path, plain, python, 5 << 20, 1, SAID_IT)
    assert found.verified and "--dtype bfloat16" in found.command
    monkeypatch.setattr(serve, "refusal", lambda *_: "vllm is not installed")
    asked = (tmp_path / "asked").read_text()
    found = try_vllm(tmp_path, plain, python, 5 << 20, 1, SAID_IT)
    assert (found.verified, found.reason) == (False, "vllm is not installed")
    assert (tmp_path / "asked").read_text() == asked
    assert options_for("vllm", served_by("torch", "bf16", "cuda")) == ("cuda",)
    assert options_for("torch", served_by("vllm", "bf16", "cuda")) == ("cuda",)


def test_a_vllm_that_says_one_word_over_and_over_is_not_verified(tmp_path: Path, python: str) -> None:
    found = try_vllm(tmp_path, served_by("vllm", "bf16"), python, 5 << 20, 1, "")
    assert (found.verified, found.reason) == (False, f"it is incoherent: {'w ' * 11 + 'w'!r}")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (" Paris. The city of light, and", None),
        (" Paris. The</s>", None),
        (" Paris.", None),
        ("", "said nothing"),
        (" \n ", "said nothing"),
        (" !!!!!!!!!!!!", "incoherent"),
        (" thethethethethe", "incoherent"),
        (" Paris. The, the, the, the, the", "incoherent"),
        (" Paris. blijven 一 Rhône kann", "where the worker that was measured says 'Paris. The city'"),
        (" located in the north of", "where the worker that was measured says"),
    ],
)
def test_a_continuation_is_as_coherent_as_the_workers(said: str, wrong: str | None) -> None:
    found = wrong_with(said, " Paris. The city")
    assert (found is None) == (wrong is None), found
    assert (wrong or "") in (found or "")
    assert wrong_with("The the capital of France, then", "") is None  # where nothing is at hand


@pytest.mark.parametrize(
    ("printed", "wrong"),
    [
        ("The capital of France is Paris. The city", None),
        ("The capital of France is was was", "it said 'was was' where the worker that was measured says 'Paris. The'"),
        ("Paris. The city", "it does not continue the prompt"),
    ],
)
def test_a_command_is_judged_by_what_it_prints_after_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, wrong: str | None
) -> None:
    monkeypatch.setitem(serve.COMMANDS, "torch", f"print('a warning'); print('{printed}'){{options}}")
    (tmp_path / "artifact").mkdir()
    found = try_serve("torch", tmp_path / "artifact", served_by("torch", "bf16"), sys.executable, " Paris. The")
    assert found.verified is (wrong is None)
    assert (wrong or "") in (found.reason or "")


def test_a_command_that_hangs_ends_at_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(serve.COMMANDS, "torch", "import time; time.sleep(600){options}")
    monkeypatch.setattr(serve, "COMMAND_LIMIT_S", 1.0)
    found = try_serve("torch", tmp_path / "artifact", served_by("torch", "bf16"), sys.executable, "")
    assert (found.verified, found.reason) == (False, "it did not end within 1 s")


def test_nothing_of_a_command_is_left_when_we_are_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from tests.advisor.test_serve import serve, served_by, try_serve\n"
        "serve.COMMANDS['torch'] = \"import time; open('started', 'w').close(); time.sleep(600){options}\"\n"
        "try_serve('torch', Path(sys.argv[2]) / 'artifact', served_by('torch', 'bf16'), sys.executable, '')"
    )
    leaves_nobody(code, tmp_path / "started", str(Path(__file__).parents[2]), str(tmp_path))


def test_the_measured_worker_continues_the_prompt(tmp_path: Path) -> None:
    """Its tokens as text; without a tokenizer nothing is known."""
    from tokenizers import Tokenizer, models

    letters = {chr(i): i for i in range(256)}
    asked: list[list[list[int]]] = []

    def generate(tokens: Any, output_tokens: int) -> SimpleNamespace:
        asked.append(tokens.tolist())
        return SimpleNamespace(generated=[[ord(one) for one in " Paris. It is"][:output_tokens]])

    worker: Any = SimpleNamespace(generate=generate)
    assert continued(tmp_path, worker) == ""
    Tokenizer(models.BPE(letters, [])).save(str(tmp_path / "tokenizer.json"))
    assert continued(tmp_path, worker).replace(" ", "") == "Paris.Iti"
    assert asked == [[[ord(one) for one in "The capital of France is"]]]


def test_a_vllm_is_started_on_the_device(tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(python: str, launch: Launch, threads: int, limit_s: float) -> None:
        raise CandidateFailed(launch.environment["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(serve, "OwnServer", started)
    found = try_vllm(tmp_path, served_by("vllm", "bf16", "cuda"), python, 0, 1, "", {"CUDA_VISIBLE_DEVICES": "3"})
    assert found.reason == "3"


def test_a_vllm_that_does_not_start_is_a_reason(tmp_path: Path, python: str) -> None:
    (tmp_path / "faults.json").write_text(json.dumps({"error": "ValueError: no kernel for this scheme"}))
    found = try_vllm(tmp_path, served_by("vllm", "bf16"), python, 5 << 20, 1, SAID_IT)
    assert (found.verified, found.reason) == (False, "the server ended: ValueError: no kernel for this scheme")
    assert set(vllm.OPTIONS) == {"kvfp8", "kvturbo", "cuda"}
