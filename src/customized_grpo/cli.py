"""The command `customized-grpo`. Heavy libraries are imported inside the commands: `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, NoReturn, ParamSpec

import typer

from customized_grpo.errors import InputError, RunError, UsageError
from customized_grpo.files.notices import show_in_lines
from customized_grpo.runtime import launchers

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda where there is one.")]
RecipeDevice = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; default: the recipe's.")]
Recipe = Annotated[str, typer.Argument(help="A recipe (critters, kontext, own-subject, ...), a YAML file, or a run.")]
LARGEST_SEED = 2**63 - 1  # as in a configuration
Seed = Annotated[int, typer.Option(help="Everything random follows from it.", min=0, max=LARGEST_SEED)]

DIVIDED = ("train", "env")  # what several processes may be started of; env writes nothing
FAILED, BAD_INPUT = 1, 2  # exit codes


P = ParamSpec("P")


def computes(command: Callable[P, None]) -> Callable[P, None]:
    """For commands that load models: memory that runs out is reported in one line."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            command(*arguments, **options)
        except RuntimeError as error:
            from customized_grpo.runtime.memory import raise_if_exhausted  # not earlier: torch takes a second to load

            raise_if_exhausted(error)
            raise

    return run


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"customized-grpo {version('customized-grpo')}")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback reads it)
        bool, typer.Option("--version", help="Show the version and stop.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Customized-GRPO: fine-tune a subject-driven image generator to be better at identity and prompt at once."""
    if context.invoked_subcommand is not None and context.invoked_subcommand not in DIVIDED:
        launchers.check_alone(context.invoked_subcommand)


@app.command()
@computes
def demo(
    output: Annotated[Path | None, typer.Option(help="A new folder; default: runs/demo, runs/demo-2, ...")] = None,
    seed: Seed = 0,
    updates: Annotated[int | None, typer.Option(help="Shorter or longer than the recipe's.", min=1)] = None,
    cases: Annotated[int, typer.Option(help="Held-out cases to measure on.", min=12)] = 512,
    device: Device = None,
) -> None:
    """Train the built-in model with SARS + TDW, and show base against tuned on cases that nothing has seen."""
    from customized_grpo.commands.demo import run_demo

    run_demo(output, seed=seed, updates=updates, cases=cases, device=device or _default_device())


@app.command()
@computes
def train(
    recipe: Recipe,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, e.g. optimizer.lr=1e-5 seed=1")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in `output`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration and stop.")] = False,
    output: Annotated[Path | None, typer.Option(help="The run's folder; default: the recipe's.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Everything random follows from it; default: the recipe's.", min=0)
    ] = None,
    device: RecipeDevice = None,
) -> None:
    """Train an adapter by a recipe, with overrides."""
    from customized_grpo.config import dump_config, load_config

    options = {"output": output, "seed": seed, "device": device}
    chosen = [f"{key}={value}" for key, value in options.items() if value is not None]
    here = [f"output={recipe}"] if resume and _is_run(recipe) else []  # wherever the run's folder was moved to
    config = load_config(recipe, [*here, *(overrides or []), *chosen])
    if dry_run:
        typer.echo(dump_config(config), nl=False)
        return
    from customized_grpo.run.checkpoints import FINAL
    from customized_grpo.training.assemble import assemble
    from customized_grpo.training.record import held_out_summary

    trainer = assemble(config, resume=resume)
    main = trainer.processes.main
    notices = (*trainer.directory.notices, *launchers.notices(), *trainer.plan.notices())
    for notice in notices if main else ():
        typer.echo(f"note: {notice}", err=True)
    with _during_the_run():
        trainer.train()
    if main:
        path = trainer.directory.path
        if summary := held_out_summary(trainer.directory.logs()[1]):
            typer.echo(summary, err=True)
        typer.echo(f"as a page: customized-grpo report {path}", err=True)
        typer.echo(f"adapter: {path / FINAL}")


@app.command()
@computes
def generate(
    reference: Annotated[list[Path] | None, typer.Option(help="Picture of the subject; repeatable.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to show; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id in diffusers' format; default: the adapter's, or critters.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="A run, or the folder of a trained adapter.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed; repeatable, one picture each. Default 0.", min=0, max=LARGEST_SEED),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("generated"),
    compare: Annotated[bool, typer.Option("--compare", help="Also write reference, base and tuned in one row.")] = (
        False
    ),
    size: Annotated[
        int | None, typer.Option(help="Pixels a side; default: the adapter's, or 512.", min=8, max=8192)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; default: the adapter's, or 28.", min=1, max=1000)
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the weights; default: the adapter's, or usual."),
    ] = None,
    device: Device = None,
) -> None:
    """Write pictures of a subject: every reference with every prompt and seed."""
    from customized_grpo.commands.generate import GenerationRequest, read_prompts, write_pictures

    texts = list(prompt or [])
    if prompts is not None:
        texts += read_prompts(prompts)
    request = GenerationRequest(
        references=reference or [],
        prompts=texts,
        seeds=seed or [0],
        model=model,
        adapter=adapter,
        size=size,
        steps=steps,
        device=device or _default_device(),
        dtype=dtype,
    )
    for path in write_pictures(request, output, compare=compare):
        typer.echo(path)


@app.command()
@computes
def evaluate(
    target: Annotated[str, typer.Argument(help="A run, an adapter's folder, a recipe's name, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, e.g. data.source=list.json")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a trained adapter; default: the run's.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Without the adapter, all else alike.")] = False,
    metric: Annotated[list[str] | None, typer.Option(help="e.g. 'dino against=other_view'; repeatable.")] = None,
    cases: Annotated[int | None, typer.Option(help="Samples; default: all (critters: 512).", min=1)] = None,
    images: Annotated[int | None, typer.Option(help="Per sample; default: 1 (dreambench: 4).", min=1)] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data's files: data.root.")] = None,
    against: Annotated[Path | None, typer.Option(help="Evaluation of the base, for joint dominance.")] = None,
    output: Annotated[Path | None, typer.Option(help="A new folder, or one to go on with.")] = None,
    device: Device = None,
) -> None:
    """Score a model, with or without adapter, on samples that it was not trained on; goes on where it stopped."""
    from customized_grpo.measure.evaluate import write_evaluation
    from customized_grpo.measure.request import default_output, make_request

    chosen = [f"device={device or _default_device()}", *([f"data.root={root}"] if root else [])]
    request = make_request(
        target,
        [*chosen, *(overrides or [])],
        adapter=adapter,
        base=base,
        cases=cases,
        images=images,
        metrics=metric or [],
    )
    folder = output or default_output(request, target)
    typer.echo(write_evaluation(request, folder, against))
    typer.echo(f"\nfigures: {folder / 'summary.json'}   rows: {folder / 'rows.jsonl'}   pictures: {folder / 'images'}")


@app.command()
@computes
def compare(
    file: Annotated[Path, typer.Argument(help="A comparison: recipe, arms, seeds, primary question.")],
    output: Annotated[Path | None, typer.Option(help="Another folder than the file's.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at once; default: one per GPU or CPU core.", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run and stop.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; write the report of what is finished.")
    ] = False,
    device: Device = None,
) -> None:
    """Train and test arms over seeds on equal terms; run it again to go on after an interruption."""
    if dry_run and report_only:
        raise UsageError("--dry-run writes nothing and --report-only runs nothing; choose one of them")
    if dry_run:
        from customized_grpo.compare.comparison import Comparison
        from customized_grpo.compare.runner import describe

        typer.echo(describe(Comparison.read(file, output)))
        return
    from customized_grpo.compare import runner as comparison

    if report_only:
        typer.echo(comparison.report(file, output=output))
        return
    typer.echo(comparison.compare(file, output=output, jobs=jobs, device=device))


@app.command()
@computes
def probe(
    recipe: Recipe,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, e.g. noise.level=0.7")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a trained adapter; default: the base model.")] = None,
    prompts: Annotated[int, typer.Option(help="Training samples to probe with.", min=2)] = 32,
    draws: Annotated[int, typer.Option(help="Images of each, at every step.", min=2)] = 8,
    output: Annotated[Path | None, typer.Option(help="A new folder for figures, plot and schedule.")] = None,
    device: RecipeDevice = None,
) -> None:
    """Which denoising steps decide which reward? Noise at one step only, and a weight schedule fitted to that."""
    from customized_grpo.config import load_config
    from customized_grpo.measure.probe import run_probe

    chosen = [f"device={device}"] if device else []
    config = load_config(recipe, [*(overrides or []), *chosen])
    run_probe(config, adapter, prompts=prompts, draws=draws, output=output)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Runs, evaluations, comparisons, probes, demos, together.")],
    output: Annotated[Path, typer.Option(help="The page; an older one is replaced.")] = Path("report.html"),
) -> None:
    """Make one page of folders: figures, curves, warnings, pictures. It holds everything and opens by double click."""
    from customized_grpo.report import write_report

    typer.echo(f"report: {write_report(folders, output)}")


@app.command()
@computes
def build_critters(
    output: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("build/critters/weights"),
    work: Annotated[Path, typer.Option(help="Where unfinished stages are kept.")] = Path("build/critters/stages"),
    seed: Seed = 0,
    shorten: Annotated[int, typer.Option(help="Divide all step counts, for trying it out.", min=1)] = 1,
    device: Device = None,
) -> None:
    """Train every part of the built-in world from scratch; run it again to go on after an interruption."""
    from customized_grpo.critters.build.run import Build, Recipe

    recipe = Recipe(seed=seed).shortened(shorten)
    Build(recipe, work, device or _default_device()).run(output)
    typer.echo(f"weights: {output}")


@app.command()
@computes
def check_rewards(
    recipe: Recipe,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings, e.g. data.source=list.json")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help='A further reward, e.g. "dino against=other_view"; repeatable.')
    ] = None,
    cases: Annotated[int, typer.Option(help="Samples to check on, at most.", min=2)] = 256,
    output: Annotated[Path | None, typer.Option(help="Folder for check_rewards.json; default: only print.")] = None,
    device: RecipeDevice = None,
) -> None:
    """Before training: score pictures of known worth by a recipe's rewards, and say what is wrong with them."""
    from transformers.utils import logging

    from customized_grpo.config import load_config
    from customized_grpo.files.durable import check_folder
    from customized_grpo.measure.check_rewards import check_rewards, write_check

    logging.disable_progress_bar()  # of loading weights, one for each reward; downloads keep theirs
    if output is not None:
        check_folder(output)
    chosen = [f"device={device}"] if device else []
    check = check_rewards(load_config(recipe, [*(overrides or []), *chosen]), metric or [], cases)
    typer.echo(check.text())
    if output is not None:
        typer.echo(f"\nfigures: {write_check(check, output)}")


@app.command()
def env() -> None:
    """Versions and hardware, for bug reports."""
    import json

    from customized_grpo.run.environment import environment

    typer.echo(json.dumps(environment(), indent=2))


def _is_run(recipe: str) -> bool:
    return (Path(recipe) / "environment.json").is_file()  # an adapter's folder has a configuration too


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _during_the_run() -> Iterator[None]:
    """Once a run has started, bad input (a photograph that has disappeared) is a failure of the run."""
    try:
        yield
    except InputError as error:
        raise RunError(str(error)) from error


def main() -> None:
    """Entry point: errors of the user or of a run are one line each; anything else is a bug and keeps its traceback.

    Exit codes: docs/running.md.
    """
    # transformers warns at every import that torchvision is missing; nothing here wants it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # our own messages say more about weights and long prompts
    # How long torch's threads spin before they sleep, on Linux. With OpenMP's own count, a hundred times this, one
    # other busy program can make training on a CPU ten times slower: benchmarks/busy_cores.py.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    show_in_lines()
    try:
        app(standalone_mode=True)
    except InputError as error:
        _fail(error, BAD_INPUT)
    except RunError as error:
        _fail(error, FAILED)


def _fail(error: Exception, code: int) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    sys.exit(code)
