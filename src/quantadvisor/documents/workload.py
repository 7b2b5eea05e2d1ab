"""The declared serving workload: what `advisor run SPEC` reads (schema quantadvisor/workload/1).

Every field is described here; `advisor schema workload` prints it as JSON Schema and `advisor init` as comments.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Document

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]

SCHEMA = "quantadvisor/workload/1"


class Lengths(Document):
    """A distribution of token counts: normal, cut to [min, max]."""

    mean: Annotated[float, Field(gt=0)]
    std: Annotated[float, Field(ge=0)] = 0.0
    min: Positive = 1
    max: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Lengths:
        if not self.min <= self.mean or (self.max is not None and self.mean > self.max):
            raise ValueError(f"mean {self.mean:g} must lie in [min, max]")
        return self


class BatchLimit(Document):
    max_sequences: Positive | None = Field(None, description="most requests in one step of the scheduler")
    max_batched_tokens: Positive | None = Field(None, description="most tokens in one forward pass of the scheduler")


class Arrivals(Document):
    rate_per_s: Annotated[float, Field(gt=0)] = Field(description="Poisson arrivals, requests per second")


class Traffic(Document):
    prompt_tokens: Positive | Lengths = Field(description="tokens of a prompt; context length = prompt + output")
    output_tokens: Positive | Lengths = Field(description="tokens generated per request")
    concurrency: Positive = Field(description="requests in flight")
    batch: BatchLimit | None = Field(None, description="the scheduler's limit; null: concurrency")
    shared_prefix_tokens: Natural = Field(0, description="tokens that all prompts share")
    arrivals: Literal["closed"] | Arrivals = Field("closed", description="closed loop, or a rate of arrivals")

    @property
    def prompt_length(self) -> int:
        """Mean prompt length in tokens: what is measured."""
        return self.prompt_tokens if isinstance(self.prompt_tokens, int) else round(self.prompt_tokens.mean)

    @property
    def output_length(self) -> int:
        return self.output_tokens if isinstance(self.output_tokens, int) else round(self.output_tokens.mean)

    @property
    def context_length(self) -> int:
        """The longest context, in tokens: it sizes the cache."""

        def longest(x: int | Lengths) -> int:
            return x if isinstance(x, int) else (x.max or round(x.mean + 2 * x.std))

        return longest(self.prompt_tokens) + longest(self.output_tokens)


class SLO(Document):
    ttft_ms: Annotated[float, Field(gt=0)] | None = Field(None, description="time to first token, milliseconds")
    tpot_ms: Annotated[float, Field(gt=0)] | None = Field(None, description="time per output token, milliseconds")
    percentile: Annotated[float, Field(gt=0, lt=100)] = Field(95, description="of requests that must meet it, percent")


class TaskBudget(Document):
    max_drop: Annotated[float, Field(ge=0, le=1)] = Field(description="largest fall of the mean score (0..1) against fp32")
    items: Positive = Field(200, description="items of the task that are asked")


class QualityBudget(Document):
    kl_mean_max: Annotated[float, Field(gt=0)] | None = Field(
        0.05, description="largest mean KL divergence against the fp32 logits of the same model, nats per token"
    )
    top1_agreement_min: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="smallest share of tokens whose most likely next token is the fp32 model's"
    )
    text: str | None = Field(None, description="UTF-8 text file to evaluate on; null: the built-in text")
    tasks: dict[str, TaskBudget] = Field(
        default_factory=dict, description="{FILE.yaml: {max_drop, items}}: lm-evaluation-harness tasks over local files; off"
    )


class Calibration(Document):
    text: str | None = Field(None, description="UTF-8 text file to calibrate on; null: the built-in text")
    samples: Positive | None = Field(
        None,
        description="calibration sequences, all read by GPTQ, OBQ, AWQ and importance matrices too; null: 128, and 64 by them",
    )

    @property
    def drawn(self) -> int:
        """Sequences that are drawn from the text."""
        return self.samples or 128


class Parallel(Document):
    tensor: Positive = Field(1, description="tensor parallel degree")


class Budget(Document):
    advise_s: Annotated[float, Field(gt=0)] = Field(
        180, description="seconds of measuring; once spent, two rounds each; one that takes them alone, and 1,200, is refused"
    )
    apply_s: Annotated[float, Field(gt=0)] = Field(
        3600, description="seconds that applying one method may take, train_s apart; one that takes longer is refused"
    )
    train_s: Annotated[float, Field(ge=0)] = Field(
        0, description="seconds that each method which trains may take; 0 excludes them"
    )
    weights_mib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="MiB of all weights where 4 and 8 bits are mixed; null: the cheapest mixture of a small error"
    )
    linears_ms: Annotated[float, Field(gt=0)] | None = Field(
        None, description="or milliseconds that its linears may take of a request, by their kernels' times here"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Budget:
        if self.weights_mib is not None and self.linears_ms is not None:
            raise ValueError("weights_mib and linears_ms bound the same mixture of 4 and 8 bits: give one of them")
        return self


class RuntimeChoice(Document):
    """A runtime of its own environment or a running server."""

    name: str
    python: str | None = Field(None, description="interpreter of the environment it lives in")
    url: str | None = Field(None, description="a running server, measured as it is (OpenAI-compatible, streaming)")
    model: str | None = Field(None, description="the model's name over there, where the server has several")
    options: tuple[str, ...] = Field((), description="candidates only where named: compile, of torch")


class Workload(Document):
    """A serving workload. Required: schema, model, traffic.{prompt_tokens, output_tokens, concurrency}."""

    schema_: Literal["quantadvisor/workload/1"] = Field(alias="schema", description="format of this file")
    model: str = Field(min_length=1, description="builtin:smollm2-135m, a local folder, a GGUF file, or a hub id")
    family: tuple[str, ...] = Field((), description="other sizes of the model, of which one may be advised instead")
    checkpoints: tuple[str, ...] = Field(
        (), description="existing quantized checkpoints (GGUF files, folders), which compete as they are"
    )
    device: str = Field("auto", description="auto (the first GPU that a runtime can use, else the CPU), cpu, or cuda:N")
    runtimes: Literal["auto"] | tuple[str | RuntimeChoice, ...] = Field("auto", description="auto, or a list of names")
    baseline: str = Field("auto", description="what runs today: auto, or a candidate's name such as none-bf16@torch")
    traffic: Traffic
    slo: SLO | None = Field(None, description="service level objective; null: none")
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="bound on peak memory, GiB: of the process above its imports, or of the GPU; null: what the device has"
    )
    quality: QualityBudget = QualityBudget()
    calibration: Calibration = Calibration()
    objective: Literal["latency", "throughput", "concurrency"] = Field(
        "latency", description="minimise request latency, maximise output tokens/s, or maximise requests in flight"
    )
    parallel: Parallel = Parallel()
    price_per_hour: Annotated[float, Field(gt=0)] | None = Field(None, description="cost of the device, per hour")
    budget: Budget = Budget()
    trust_remote_code: bool = Field(False, description="run code that ships inside a model folder")

    model_config = Document.model_config | {"populate_by_name": True, "serialize_by_alias": True}

    @model_validator(mode="before")
    @classmethod
    def _time_budget(cls, data: Any) -> Any:
        if isinstance(data, dict) and "time_budget_s" in data:
            data = dict(data)
            seconds = data.pop("time_budget_s")
            budget = dict(data.get("budget") or {})
            if "advise_s" in budget:
                raise ValueError("time_budget_s is another name of budget.advise_s: give one of them")
            data["budget"] = budget | {"advise_s": seconds}
        return data
