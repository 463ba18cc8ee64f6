"""The commands around training: pages, exports, plans, checks. Like `cli`, it imports heavy libraries late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from customized_grpo.commands.guarded import guarded, kept_stages
from customized_grpo.commands.options import (
    Device,
    Metric,
    NameOption,
    Overrides,
    PathArgument,
    PathOption,
    Recipe,
    RecipeDevice,
    Seed,
    chosen_device,
    with_options,
)
from customized_grpo.runtime.stopping import ending


@guarded("no page was written; start again with the same command")
def report(
    folders: Annotated[list[Path], PathArgument(help="Folders of runs, evaluations, comparisons, probes, demos.")],
    output: Annotated[Path, PathOption(help="File to write; an existing one is replaced.")] = Path("report.html"),
) -> None:
    """Write an HTML page that shows runs and evaluations.

    The page has figures, curves, warnings and pictures, in one file that needs no network.
    """
    from customized_grpo.report import write_report

    typer.echo(f"report: {write_report(folders, output)}")


@guarded()
def export(
    target: Annotated[Path, PathArgument(help="Folder of a run, checkpoint or adapter, or a file.")],
    format: Annotated[Literal["comfyui", "diffusers", "peft"], typer.Option(help="The program that will read it.")],
    output: Annotated[Path | None, PathOption(help="A new file (comfyui) or folder.  [default: in exported/]")] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Add the run's model.base_adapter to it.")] = False,
    model: Annotated[str | None, NameOption(help="Of an adapter from elsewhere.  [default: the run's]")] = None,
) -> None:
    """Write an adapter for ComfyUI, diffusers or peft.

    Loads no model: a laptop can do it. Each format changes the model's layers by exactly the same amount.
    """
    from customized_grpo.commands.export import ExportRequest, write_export

    typer.echo(f"exported: {write_export(ExportRequest(target, format, output, with_base, model))}")


@guarded("the Hub keeps what was committed; start again with the same command")
def push(
    target: Annotated[Path, PathArgument(help="Folder of a run, checkpoint or adapter.")],
    repository: Annotated[str, typer.Argument(help="Where to, as OWNER/NAME.")],
    format: Annotated[
        Literal["comfyui", "diffusers", "peft"], typer.Option(help="The program that will read the weights.")
    ] = "diffusers",
    with_base: Annotated[bool, typer.Option("--with-base", help="Add the run's model.base_adapter to it.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.  [default: main]")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.  [default: names this program]")] = None,
    without_pictures: Annotated[
        bool, typer.Option("--without-pictures", help="Keep references and generated pictures here.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also commit over files that this program did not write.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded and exit.")] = False,
) -> None:
    """Upload an adapter with its card to the Hugging Face Hub.

    First lists what is uploaded: weights, card, pictures, and settings without folders and servers of this machine.
    """
    from customized_grpo.commands.push import PushRequest
    from customized_grpo.commands.push import push as upload

    request = PushRequest(
        target,
        repository,
        format=format,
        with_base=with_base,
        private=private,
        revision=revision,
        message=message,
        pictures=not without_pictures,
        replace=replace,
    )
    if address := upload(request, dry_run=dry_run):
        typer.echo(f"pushed: {address}")


@guarded()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    references: Annotated[int, typer.Option(help="Reference pictures of a sample.", min=1, max=8)] = 1,
    processes: Annotated[int, typer.Option(help="Processes, one per card, that share the work.", min=1)] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Share of a card's dense bfloat16 rate that is reached (MFU).", min=0.01, max=1)
    ] = 0.4,
) -> None:
    """Print what an update costs and which cards it fits.

    Passes, FLOPs, seconds on named cards, memory by part, and what to change for a smaller card. Loads no weights.
    """
    from customized_grpo.commands.plan import plan as lines_of

    for line in lines_of(recipe, overrides or [], references=references, processes=processes, utilisation=utilisation):
        typer.echo(line)


@guarded()
def build_critters(
    world: Annotated[
        Literal["critters", "critters-dye"],
        typer.Option(help="World whose models are trained: with hats, or with dyes."),
    ] = "critters",
    output: Annotated[Path | None, PathOption(help="Folder for the weights.  [default: build/WORLD/weights]")] = None,
    work: Annotated[
        Path | None, PathOption(help="Folder for unfinished stages.  [default: build/WORLD/stages]")
    ] = None,
    seed: Seed = 0,
    shorten: Annotated[int, typer.Option(help="Divide all step counts by this, to try it out.", min=1)] = 1,
    device: Device = None,
) -> None:
    """Train the models of a built-in world from scratch.

    Run the same command again to continue after an interruption.
    """
    weights, stages = output or Path("build") / world / "weights", work or Path("build") / world / "stages"
    with ending(lambda: kept_stages(stages)):
        from customized_grpo.critters.build.run import Build, Recipe

        recipe = Recipe(world=world, seed=seed).shortened(shorten)
        Build(recipe, stages, chosen_device(device)).run(weights)
    typer.echo(f"weights: {weights}")


@guarded()
def check_rewards(
    recipe: Recipe,
    overrides: Overrides = None,
    metric: Metric = None,
    cases: Annotated[int, typer.Option(help="Number of samples, at most.", min=2)] = 256,
    output: Annotated[Path | None, PathOption(help="Folder for its files.  [default: only print]")] = None,
    device: RecipeDevice = None,
) -> None:
    """Check a recipe's rewards before training with them.

    Scores pictures whose quality is known, and reports what would go wrong in training.
    """
    from transformers.utils import logging

    from customized_grpo.config import load_config
    from customized_grpo.files.durable import check_folder
    from customized_grpo.measure.check_rewards import check_rewards, write_check

    logging.disable_progress_bar()  # one per reward while weights load; those of downloads stay
    if output is not None:
        check_folder(output)
    config = load_config(recipe, with_options(overrides, {"device": device}))
    check = check_rewards(config, metric or [], cases)
    typer.echo(check.text())
    if output is not None:
        typer.echo(f"\n{write_check(check, output)}")


def env() -> None:
    """Print versions and hardware for bug reports."""
    import json

    from customized_grpo.run.environment import environment

    typer.echo(json.dumps(environment(), indent=2))
