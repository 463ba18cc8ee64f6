"""The command `customized-grpo`. Commands import heavy libraries themselves, so that `--help` is fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from customized_grpo.commands.guarded import guarded, kept_demo, kept_pictures, kept_rows, kept_run
from customized_grpo.commands.options import (
    Device,
    Metric,
    NameOption,
    OptionsOnce,
    Overrides,
    PathArgument,
    PathOption,
    Recipe,
    RecipeDevice,
    Seed,
    Target,
    chosen_device,
    with_options,
)
from customized_grpo.commands.tools import build_critters, check_rewards, env, export, plan, push, report
from customized_grpo.errors import InputError, RunError, UsageError
from customized_grpo.files.notices import show_in_lines
from customized_grpo.inputs import LARGEST_SEED
from customized_grpo.runtime import launchers
from customized_grpo.runtime.stopping import ending

app = typer.Typer(
    cls=OptionsOnce, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

DISTRIBUTED = ("train", "env")  # commands that may run as several processes; env writes nothing
FAILED, BAD_INPUT = 1, 2  # exit codes


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"customized-grpo {version('customized-grpo')}")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback reads it)
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Fine-tune a subject-driven image generator with online RL: better at identity and at the prompt."""
    if context.invoked_subcommand is not None and context.invoked_subcommand not in DISTRIBUTED:
        launchers.check_alone(context.invoked_subcommand)


@app.command()
@guarded()
def demo(
    output: Annotated[Path | None, PathOption(help="A new folder.  [default: runs/demo, runs/demo-2, ...]")] = None,
    recipe: Annotated[
        Literal["critters", "critters-paper"], typer.Option(help="critters-paper: the paper's method, SARS + TDW.")
    ] = "critters",
    seed: Seed = 0,
    updates: Annotated[int, typer.Option(help="Number of updates.", min=1)] = 80,
    cases: Annotated[int, typer.Option(help="Number of held-out cases to measure on.", min=12)] = 512,
    device: Device = None,
) -> None:
    """Train the built-in model and compare it with its base.

    Measures both on cases that neither has seen, and writes a table, pictures and a report.
    """
    from customized_grpo.commands.demo import new_folder, run_demo

    folder = new_folder(output)
    with ending(lambda: kept_demo(folder)):
        run_demo(folder, recipe=recipe, seed=seed, updates=updates, cases=cases, device=chosen_device(device))


@app.command()
@guarded("nothing was trained; start again with the same command")
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all but weights, print the configuration and exit.")
    ] = False,
    output: Annotated[Path | None, PathOption(help="Folder of the run.  [default: the recipe's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.  [default: the recipe's]", min=0)] = None,
    device: RecipeDevice = None,
    on_degradation: Annotated[
        Literal["say", "stop", "balance"] | None,
        typer.Option(help="When a reward falls while another rises.  [default: the recipe's]"),
    ] = None,
) -> None:
    """Train an adapter with the settings of a recipe.

    The run's folder holds its logs, pictures, checkpoints and the adapter. --resume continues a run that stopped.
    """
    from customized_grpo.config import dump_config, load_config

    options = {"output": output, "seed": seed, "device": device, "on_degradation": on_degradation}
    moved = [("output", Path(recipe))] if resume and _is_run(recipe) else []  # the folder may have been moved
    config = load_config(recipe, [*moved, *with_options(overrides, options)])
    if dry_run:
        from customized_grpo.commands.dry_run import check_training

        typer.echo(dump_config(config), nl=False)
        return check_training(config, resume=resume)
    with ending(lambda: kept_run(Path(config.output))):
        from customized_grpo.commands.train import run_training

        run_training(config, resume=resume)


@app.command()
@guarded()
def generate(
    reference: Annotated[list[Path] | None, PathOption(help="Picture of the subject. Repeat for more.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to show. Repeat for more.")] = None,
    prompts: Annotated[Path | None, PathOption(help="Text file with one prompt per line.")] = None,
    model: Annotated[
        str | None,
        NameOption(help="Folder or hub id in diffusers' format.  [default: the adapter's model, or critters]"),
    ] = None,
    adapter: Annotated[Path | None, PathOption(help="Folder of a run, checkpoint or adapter, or a file.")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of a picture. Repeat for more.  [default: 0]", min=0, max=LARGEST_SEED),
    ] = None,
    output: Annotated[Path, PathOption(help="Folder for the pictures (PNG).")] = Path("generated"),
    compare: Annotated[bool, typer.Option("--compare", help="Also write reference, base and tuned.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Pixels per side.  [default: the adapter's, or 512]", min=8, max=8192)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Denoising steps.  [default: the adapter's, or the model's usual]", min=1, max=1000),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Precision of the weights.  [default: the adapter's, or the model's usual one]"),
    ] = None,
    device: Device = None,
) -> None:
    """Generate pictures of a subject with a model or adapter.

    Every reference is combined with every prompt and every seed.
    """
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
        device=chosen_device(device),
        dtype=dtype,
    )
    written = 0
    with ending(lambda: kept_pictures(written, output)):
        for path in write_pictures(request, output, compare=compare):
            written += 1
            typer.echo(path)


@app.command()
@guarded()
def evaluate(
    target: Target,
    overrides: Overrides = None,
    adapter: Annotated[Path | None, PathOption(help="Folder or file of the adapter.  [default: the run's]")] = None,
    base: Annotated[bool, typer.Option("--base", help="Measure the model without the adapter.")] = False,
    metric: Metric = None,
    cases: Annotated[int | None, typer.Option(help="Number of samples.  [default: all; critters: 512]", min=1)] = None,
    images: Annotated[int | None, typer.Option(help="Images per sample.  [default: 1; dreambench: 4]", min=1)] = None,
    root: Annotated[Path | None, PathOption(help="Folder of the data, the setting data.root.")] = None,
    against: Annotated[Path | None, PathOption(help="Base's evaluation, to count better and worse samples.")] = None,
    output: Annotated[Path | None, PathOption(help="A new folder, or that of an evaluation to continue.")] = None,
    device: Device = None,
) -> None:
    """Measure a model or adapter on samples not trained on.

    Run the same command again to continue an evaluation that stopped.
    """
    folder = output
    with ending(lambda: kept_rows(folder)):
        from customized_grpo.measure.evaluate import write_evaluation
        from customized_grpo.measure.request import default_output, make_request

        request = make_request(
            target,
            [("device", chosen_device(None)), *with_options(overrides, {"device": device, "data.root": root})],
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
@guarded("finished runs are kept, and what others saved; the same command goes on")
def compare(
    file: Annotated[Path, PathArgument(help="YAML file with recipe, arms, seeds and primary question.")],
    output: Annotated[Path | None, PathOption(help="Folder of the comparison.  [default: the file's]")] = None,
    jobs: Annotated[int | None, typer.Option(help="Concurrent runs.  [default: one per GPU or core]", min=1)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run and exit.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only report on finished runs.")] = False,
    device: Device = None,
) -> None:
    """Train and test several arms over several seeds.

    An arm is a recipe with a few changed settings. Run the same command again to continue after an interruption.
    """
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
@guarded()
def probe(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[Path | None, PathOption(help="Folder or file of an adapter.  [default: none]")] = None,
    prompts: Annotated[int, typer.Option(help="Number of training samples.", min=2)] = 32,
    draws: Annotated[int, typer.Option(help="Images per sample and denoising step.", min=2)] = 8,
    output: Annotated[Path | None, PathOption(help="A new folder for figures, plot and schedule.")] = None,
    device: RecipeDevice = None,
) -> None:
    """Find out which denoising steps decide which reward.

    Puts noise at one step at a time, and fits a weight schedule to the result.
    """
    from customized_grpo.config import load_config
    from customized_grpo.measure.probe import run_probe

    config = load_config(recipe, with_options(overrides, {"device": device}))
    run_probe(config, adapter, prompts=prompts, draws=draws, output=output)


@app.command()
@guarded()
def studio(
    runs: Annotated[
        list[Path] | None,
        PathArgument(help="Folders of runs or demos.  [default: the newest in ./runs, or the built-in model]"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the page.  [default: 7860, or the next]", min=1, max=65535)
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
    device: Device = None,
) -> None:
    """Try a model and watch runs on a local page.

    Base and tuned side by side with scores, every denoising step and checkpoint; the curves of a run while it trains;
    its held-out cases. Only this machine can open the page.
    """
    from customized_grpo.studio.server import serve

    serve(runs or [], port=port, browser=not no_browser, device=device)


for command in (report, export, push, plan, build_critters, check_rewards, env):
    app.command()(command)


def _is_run(recipe: str) -> bool:
    return (Path(recipe) / "environment.json").is_file()  # an adapter's folder has only a configuration


def main() -> None:
    """Entry point. Errors of the user and of a run are one line each; any other exception is a bug with a traceback.

    Exit codes: docs/running.md.
    """
    # transformers warns at every import that torchvision is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # this package has its own messages on weights and prompts
    # How long torch's threads spin before they sleep, on Linux. OpenMP's default is a hundred times this, and one
    # other busy program can then make training on a CPU ten times slower: benchmarks/busy_cores.py.
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
