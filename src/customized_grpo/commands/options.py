"""The types of options and arguments that several commands have, and how a path among them is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup, TyperOption

from customized_grpo.errors import UsageError
from customized_grpo.inputs import LARGEST_SEED, expand_user


def path_of_user(given: str | Path) -> Path:
    """A path as it is written, `~` at its beginning apart. Raises PathError."""
    return given if isinstance(given, Path) else Path(expand_user(given))  # an option's default is a Path


class OptionsOnce(TyperGroup):
    """Refuses an option that is given twice but has one value: the first would be lost without a word."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raises UsageError."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            parser = command.make_parser(ctx)
            parser.allow_interspersed_args = command.allow_interspersed_args  # instead of those of the group
            _, _, given = parser.parse_args(args=list(rest))
            for option in given:
                single = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
                if single and (times := given.count(option)) > 1:
                    raise UsageError(f"{option.opts[0]} is given {times} times but has one value; keep one of them")
        return name, command, rest


PathOption: Any = partial(typer.Option, parser=path_of_user, metavar="<path>")
PathArgument: Any = partial(typer.Argument, parser=path_of_user)
NameOption: Any = partial(typer.Option, parser=expand_user, metavar="<str>")  # of a path, or of something else

Recipe = Annotated[
    str,
    typer.Argument(
        help="Name of a recipe (critters, kontext, own-subject, ...), a YAML file, or a run's folder.",
        parser=expand_user,
    ),
]
Target = Annotated[
    str,
    typer.Argument(help="Folder of a run or an adapter, name of a recipe, or a YAML file.", parser=expand_user),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, e.g. seed=1 optimizer.lr=1e-5. All of them: docs/configuration.md."),
]
Metric = Annotated[
    list[str] | None, typer.Option(help="Another reward to measure, e.g. 'dino against=other_view'. Repeat for more.")
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=LARGEST_SEED)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: cuda if available, else cpu]")]
RecipeDevice = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...  [default: the recipe's]")]


def with_options(overrides: list[str] | None, options: Mapping[str, Any]) -> list[Any]:
    """Overrides, and the settings that were given as options (None: not given), by their keys.

    Raises UsageError if a setting is given as both.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for override in overrides or ():
        key = override.partition("=")[0]
        if key in given:
            option = f"--{key.rpartition('.')[2].replace('_', '-')}"
            raise UsageError(f"{key} is given twice, as {option} {given[key]} and as {override}; keep one of them")
    return [*(overrides or []), *given.items()]


def chosen_device(given: str | None) -> str:
    """The device of commands without a recipe."""
    if given is not None:
        return given
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
