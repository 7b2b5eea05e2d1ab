"""Servers: the user's own as candidates, and those that are started here where a runtime that serves is asked for by name.

Both are measured beside the others under the declared traffic; the user's is left running. What that one runs is not known:
nothing is predicted of it, its operators are unknown, and its quality is what its log-probabilities tell, and a passkey at the
declared context, since its cache may be quantized. One that does not tell them is measured, and never chosen; nor is any that
loses the passkey, nor any where the spec has tasks, which it is not asked. Of ours the times are
the server's, quality and operators those of the same artifact in the same runtime in a worker, for which the server makes
room.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from quantadvisor.documents import Candidate, CandidateFailed, Figure, Quality, RuntimeChoice, Workload
from quantadvisor.kernels.timing import figure
from quantadvisor.profiling import gpus
from quantadvisor.profiling.environments import interpreter_of
from quantadvisor.profiling.quality import quality_of
from quantadvisor.profiling.runtimes import vllm
from quantadvisor.profiling.served import Launch, OwnServer, Served, free_port
from quantadvisor.profiling.served_quality import LOWER_BOUND, cache_config, pool_tokens, says_passkey, server_scores
from quantadvisor.profiling.server import RunningServer, Stalled
from quantadvisor.profiling.text import text_encoder

from .candidates import GIVEN_SERVER, UNKNOWN
from .context import EVALUATION_TOKENS, Context
from .survey import make_reference, reference_finds

SERVING = ("vllm",)
"""Runtimes whose server is started here where the spec names them; `runtimes: auto` runs their engine in a worker."""
START_LIMIT_S = 600.0
IN_A_WORKER = "timed through a server of its own; quality and operators of the same artifact in the same engine, in a worker"
UNSEEN = "what the server runs cannot be seen through HTTP: its operators are unknown"
PLAIN_CACHES = ("bfloat16", "float16", "half", "float32", "float")
"""What a server says of a cache that is not quantized."""
AUTO = "auto"
"""vLLM's word for the model's own type, or that which its checkpoint asks for."""
NO_PASSKEY = "what its cache keeps is not shown: the fp32 model does not find the passkey at the declared context either"
TASKS_UNASKED = "quality.tasks are asked in workers only: the server is measured, and not chosen"


def given_servers(workload: Workload) -> tuple[Candidate, ...]:
    """A candidate for each `url` of the spec, refused where nobody answers there; BadInput where it is no server's URL."""
    found: list[Candidate] = []
    for choice in choices(workload):
        assert choice.url
        before = sum(c.runtime == choice.name for c in found)
        name = f"{GIVEN_SERVER}{before + 1 if before else ''}@{choice.name}"
        refused = None
        try:
            RunningServer(choice.url, 1, choice.model or "", seed=0, side="").ready()
        except CandidateFailed as error:
            refused = f"{choice.url} {error}"
        found.append(Candidate(name=name, method="given", scheme=UNKNOWN, runtime=choice.name, url=choice.url, refused=refused))
    return tuple(found)


def today(candidates: Sequence[Candidate], profiled: str, workload: Workload) -> str:
    """The baseline that candidates are compared with: the user's server where the spec gives one that could be measured (and
    names no other baseline), else the one that was profiled."""
    running = (c.name for c in candidates if c.url and c.measured and workload.baseline in ("auto", c.name))
    return next(running, profiled)


def choices(workload: Workload) -> list[RuntimeChoice]:
    named = () if workload.runtimes == "auto" else workload.runtimes
    return [choice for choice in named if isinstance(choice, RuntimeChoice) and choice.url]


def serves_here(workload: Workload, candidate: Candidate) -> bool:
    return workload.runtimes != "auto" and candidate.runtime in SERVING and candidate.url is None


def own_server(context: Context, candidate: Candidate) -> Served:
    """The candidate's artifact under the server of its runtime, on a free port of 127.0.0.1; not started yet."""
    python = context.interpreter(candidate.runtime)
    port, model = free_port(), f"quantadvisor-{secrets.token_hex(4)}"
    options = context.options_of(candidate.runtime, candidate.options, candidate.scheme)
    path, threads = str(context.build_of(candidate).out), context.device.threads
    arguments, variables = vllm.server(path, options, port, model, threads)
    launch = Launch(arguments, variables | gpus.environment(context.device), port, model)
    server = OwnServer(python, launch, threads, START_LIMIT_S)
    return Served(server, context.model_folder, model, python=python, allowance=context.allowance(candidate.name))


def session_with(context: Context, candidate: Candidate) -> Served:
    """A client of the candidate's server, with the load generator of the environment that vLLM lives in."""
    choice = next(choice for choice in choices(context.workload) if choice.url == candidate.url)
    assert choice.url
    python = choice.python or interpreter_of("vllm")
    allowance = context.allowance(candidate.name)
    return Served(choice.url, context.model_folder, choice.model or "", python=python, allowance=allowance)


def evidence_of(context: Context, candidate: Candidate, served: Served) -> tuple[Figure | None, Quality | None, list[str]]:
    """Users whose whole contexts its cache holds, and its quality, where it tells them; and what it does not.
    CandidateFailed where it does not answer in time."""
    notes = [UNSEEN, *served.asked.notes]
    cache = cache_config(served.asked)
    held = pool_tokens(cache)
    users = None
    if held is not None:
        count = held // context.workload.traffic.context_length
        users = figure([float(count)], "modelled", f"whole contexts in the {held:,} tokens of the server's cache")
    context.progress.say(f"{candidate.name}: quality")
    text = context.evaluation[1]
    try:
        scores = server_scores(served.asked, context.windows(EVALUATION_TOKENS), make_reference(context))
        quality, more = with_passkey(context, served.asked, quality_of(scores, f"{text.name} ({text.licence})"), cache)
    except Stalled as error:
        raise CandidateFailed(f"while its quality was scored: {error}") from None
    except CandidateFailed as error:
        return users, None, [*notes, f"its quality is not known, so it is not chosen: {error}"]
    return users, quality, [*notes, *more, LOWER_BOUND, *([TASKS_UNASKED] if context.workload.quality.tasks else [])]


def with_passkey(
    context: Context, server: RunningServer, quality: Quality, cache: Mapping[str, str]
) -> tuple[Quality, list[str]]:
    """Its quality with the passkey, which every server is asked for but one that says that its cache is not quantized; and what
    it leaves open. `cache`: what its metrics say. One that is not known to be quantized is not blamed for what the fp32 model
    loses too."""
    kind = cache.get("cache_dtype", AUTO)
    if kind in PLAIN_CACHES:
        return quality, []
    context.progress.say("a passkey through the server")
    prompt, answer = context.passkey()
    found = says_passkey(server, prompt, text_encoder(context.model_folder)[2](answer.tolist()), len(answer))
    reference = None if found else reference_finds(context)
    if reference is False and kind == AUTO:
        return quality, [NO_PASSKEY]
    return quality.model_copy(update={"passkey_found": found, "passkey_reference_found": reference}), []
