"""The command line of `baton`: what can be typed, and nothing of what it does."""

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster_core.errors import SettingsError
from cluster_launcher import generate_options as given
from cluster_launcher.output import Output
from cluster_launcher.surroundings import Surroundings

app = typer.Typer(
    name="baton",
    help="Serve a language model on two pools of workers: prefill reads prompts, decode writes answers.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=(
        "Exit codes: 0 done, 1 what was asked for is not so, 2 usage or configuration, 3 no cluster answers, "
        "130 ended by Ctrl-C (demo, generate; up ends with 0)."
    ),
)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on standard output, and no progress.")]
Address = Annotated[str, typer.Option("--address", help="HOST:PORT of a router; without it, the one on this machine.")]
ClusterName = Annotated[str, typer.Option("--cluster", help="Name of the cluster, where several run on this machine.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the logs of Ray and of the workers.")]
Config = Annotated[Path, typer.Argument(help="The cluster's configuration, such as cluster_configs/local_cpu.toml.")]
OptionalConfig = Annotated[Path | None, typer.Argument(help="A configuration to look at as well.")]


class Benchmark(StrEnum):
    """What `baton bench` can measure."""

    KV = "kv"
    ENGINE = "engine"
    SERVE = "serve"
    SPECULATION = "speculation"
    ROUTE = "route"
    FAILOVER = "failover"


@app.command()
def up(context: typer.Context, config: Config, as_json: Json = False, verbose: Verbose = False) -> None:
    """Start the cluster of CONFIG and serve until Ctrl-C, which ends exactly what was started."""
    from cluster_launcher.up_command import up as command  # noqa: PLC0415 - `--help` must not load a cluster

    surroundings: Surroundings = context.obj
    code = asyncio.run(command(config, surroundings.state_files, Output(as_json=as_json), verbose=verbose))
    raise typer.Exit(code)


@app.command()
def demo(as_json: Json = False, verbose: Verbose = False) -> None:
    """Start a small real cluster, show four requests going through it, and compare with one engine."""
    from cluster_launcher.demo_command import demo as command  # noqa: PLC0415 - as above

    raise typer.Exit(asyncio.run(command(Output(as_json=as_json), verbose=verbose)))


@app.command()
def generate(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="The prompt.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: given.TopP = None,
    top_k: given.TopK = None,
    min_p: given.MinP = None,
    typical_p: given.TypicalP = None,
    seed: given.Seed = None,
    n: given.Choices = None,
    presence_penalty: given.PresencePenalty = None,
    frequency_penalty: given.FrequencyPenalty = None,
    repetition_penalty: given.RepetitionPenalty = None,
    logit_bias: given.LogitBias = None,
    logprobs: given.Logprobs = None,
    prompt_logprobs: given.PromptLogprobs = None,
    min_tokens: given.MinTokens = None,
    bad_words: given.BadWords = None,
    max_thinking_tokens: given.MaxThinkingTokens = None,
    json_schema: given.JsonSchema = None,
    json_object: given.JsonObject = False,
    regex: given.Regex = None,
    grammar: given.Grammar = None,
    choice: given.Choice = None,
    suffix: given.Suffix = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer. May be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Write on after the end-of-text token.")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Send TEXT as a user's message.")] = False,
    system: Annotated[str, typer.Option(help="With --chat: the system message.")] = "",
    cache_salt: Annotated[str, typer.Option(help="Share cached blocks only with requests of the same salt.")] = "",
    priority: Annotated[int, typer.Option(help="0 (first) to 7 (last).")] = 0,
    recovery: given.WhenAWorkerFails = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show where it went, why, and what each stage took.")] = (
        False
    ),
    address: Address = "",
    cluster: ClusterName = "",
    as_json: Json = False,
) -> None:
    """Send TEXT to the running cluster and stream the answer."""
    from cluster_launcher.generate_command import generate as command  # noqa: PLC0415 - as above
    from cluster_rpc.generate_request import FillIn, Prompt  # noqa: PLC0415 - as above

    options = given.chosen(
        {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "typical_p": typical_p,
            "seed": seed,
            "n": n,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "repetition_penalty": repetition_penalty,
            "logit_bias": logit_bias,
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
            "min_tokens": min_tokens,
            "bad_words": bad_words,
            "max_thinking_tokens": max_thinking_tokens,
            "json_schema": json_schema,
            "json_object": json_object,
            "regex": regex,
            "grammar": grammar,
            "choice": choice,
            "stop": stop,
            "ignore_eos": ignore_eos,
            "cache_salt": cache_salt,
            "priority": priority,
            "recovery": recovery,
        }
    )
    if system and not chat:
        message = "--system: needs --chat"
        raise SettingsError(message)
    if suffix is not None and chat:
        message = "--suffix: not with --chat"
        raise SettingsError(message)
    messages = [{"role": "system", "content": system}] if system else []
    prompt: Prompt = [*messages, {"role": "user", "content": text}] if chat else text
    if suffix is not None:
        prompt = FillIn(prefix=text, suffix=suffix)
    where = _find(context, address, cluster)
    raise typer.Exit(asyncio.run(command(where, prompt, options, Output(as_json=as_json), explain=explain)))


@app.command()
def status(context: typer.Context, address: Address = "", cluster: ClusterName = "", as_json: Json = False) -> None:
    """Show both pools: who serves, what waits, what is cached."""
    from cluster_launcher.status_command import status as command  # noqa: PLC0415 - as above

    raise typer.Exit(asyncio.run(command(_find(context, address, cluster), Output(as_json=as_json))))


@app.command()
def scale(
    context: typer.Context,
    pools: Annotated[list[str], typer.Argument(help="prefill=N, decode=N, or both.")],
    address: Address = "",
    cluster: ClusterName = "",
    as_json: Json = False,
) -> None:
    """Change how many workers run, while the cluster serves: [bold]baton scale prefill=1 decode=3[/]."""
    from cluster_launcher.scale_command import parse_pools  # noqa: PLC0415 - as above
    from cluster_launcher.scale_command import scale as command  # noqa: PLC0415 - as above

    wanted = parse_pools(pools)
    raise typer.Exit(asyncio.run(command(_find(context, address, cluster), wanted, Output(as_json=as_json))))


@app.command()
def plan(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder, or a config.json.")],
    gpu: Annotated[list[str] | None, typer.Option(help="Such as H100-80 (the default). May be repeated.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    context: Annotated[list[int] | None, typer.Option(help="Tokens of a sequence. May be repeated.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens of a block.")] = 16,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share one worker's model.")] = 1,
    workspace: Annotated[float, typer.Option(help="Percent of a GPU's memory for neither weights nor KV.")] = 10.0,
    weights_gb: Annotated[float, typer.Option(help="What the weights take, where that is known better.")] = 0.0,
    prefill_rate: Annotated[float, typer.Option(help="Prompt tokens a second that a prefill worker reads.")] = 10_000.0,
    as_json: Json = False,
) -> None:
    """Say what of MODEL fits on which GPU: blocks, largest batches, time of a hand-over. Starts nothing."""
    from cluster_launcher.plan_command import plan as command  # noqa: PLC0415 - as above
    from cluster_launcher.plan_computation import DEFAULT_GPU, PlanOptions  # noqa: PLC0415 - as above

    options = PlanOptions(
        gpus=gpu or (DEFAULT_GPU,),
        dtype=dtype,
        contexts=context or (),
        block_size_tokens=block_size,
        ranks=tensor_parallel,
        workspace_percent=workspace,
        weights_gb=weights_gb,
        prefill_tokens_per_s=prefill_rate,
    )
    raise typer.Exit(command(model, options, Output(as_json=as_json)))


@app.command()
def doctor(context: typer.Context, config: OptionalConfig = None, as_json: Json = False) -> None:
    """Look at versions, UCX, Redis, ports, memory and GPUs, and name the cure beside each finding."""
    from cluster_launcher.doctor_command import doctor as command  # noqa: PLC0415 - as above

    surroundings: Surroundings = context.obj
    raise typer.Exit(command(config, surroundings, Output(as_json=as_json)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, what: Benchmark, as_json: Json = False) -> None:
    """Measure one part against its limit or peer. Further options go to benchmarks/WHAT.py."""
    from cluster_launcher.benchmark_script import run_benchmark  # noqa: PLC0415 - as above

    options = [*(["--json"] if as_json else []), *context.args]
    raise typer.Exit(run_benchmark(what.value, options))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check(
    context: typer.Context,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the cluster's real code through simulated faults, one history a seed, and check that nothing is ever lost.

    --seeds N (1000) or --requests N says how long, --jobs N on how many cores (all); --corruptions N and --blocks N
    hand over blocks that something corrupts, and blocks that nothing does.
    """
    from cluster_launcher.check_command import run_check  # noqa: PLC0415 - as above

    options = [*context.args, "--first", str(first), *(["--json"] if as_json else [])]
    raise typer.Exit(run_check(options))


def _find(context: typer.Context, address: str, name: str) -> str:
    """Return the router's address: the given one, or that of the cluster which runs on this machine."""
    surroundings: Surroundings = context.obj
    return address or surroundings.state_files.find(name).address
