"""Customized-GRPO: reinforcement learning for subject-driven image generation.

    from customized_grpo import RunConfig, train

    run = train(RunConfig.from_recipe("critters", "optimizer.lr=1e-5"), output="runs/mine")

The names below are the public interface, with those that `shaping` and `rewards` list: docs/api.md. They are imported
when they are first used, so that `import customized_grpo` takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from customized_grpo import algorithm as shaping
    from customized_grpo import rewards
    from customized_grpo.commands.start import Run, train
    from customized_grpo.config import RunConfig
    from customized_grpo.data import Sample
    from customized_grpo.errors import InputError, RunError
    from customized_grpo.policies.base import Policy

    __version__: str

__all__ = [
    "InputError",
    "Policy",
    "Run",
    "RunConfig",
    "RunError",
    "Sample",
    "__version__",
    "rewards",
    "shaping",
    "train",
]

_PLACES = {  # name -> module, or module:name
    "InputError": "customized_grpo.errors:InputError",
    "Policy": "customized_grpo.policies.base:Policy",
    "Run": "customized_grpo.commands.start:Run",
    "RunConfig": "customized_grpo.config:RunConfig",
    "RunError": "customized_grpo.errors:RunError",
    "Sample": "customized_grpo.data:Sample",
    "rewards": "customized_grpo.rewards",
    "shaping": "customized_grpo.algorithm",
    "train": "customized_grpo.commands.start:train",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("customized-grpo")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pkgutil import resolve_name

    globals()[name] = found = resolve_name(_PLACES[name])
    return found


def __dir__() -> list[str]:
    return __all__
