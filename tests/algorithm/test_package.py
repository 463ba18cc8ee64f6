"""The algorithm imports torch and no other part of the package, and keeps its public signatures."""

import ast
import inspect
import sys
from pathlib import Path

import pytest

from customized_grpo import algorithm

HERE = Path(algorithm.__file__).parent
SOURCES = sorted(HERE.rglob("*.py"))
SIGNATURES = {
    "sigma_schedule": "num_steps shift",
    "progress": "step num_steps",
    "progress_from_sigma": "sigma",
    "step_distribution": "dynamics latents velocity sigma sigma_next noise_level sigma_max",
    "step_gradient_factor": "dynamics sigma sigma_next noise_level sigma_max",
    "log_prob": "sample mean std",
    "group_advantages": "rewards",
    "synergy_bonus": "prompt_advantage identity_advantage gamma",
    "TimeAwareWeights": "high low final start centre end rate",
    "combine_advantages": "advantages_by_role weights bonus clip",
    "clipped_objective": "log_prob old_log_prob advantage clip_range",
    "kl_to_base": "mean base_mean std",
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(HERE)))
def test_imports_only_torch_and_the_standard_library(source: Path):
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            # A relative import stays inside `algorithm` if it has at most as many dots as the file's depth in it.
            assert not isinstance(node, ast.ImportFrom) or node.level <= len(source.relative_to(HERE).parts)
            continue
        for module in modules:
            root = module.partition(".")[0]
            assert root == "torch" or root in sys.stdlib_module_names, f"{source.name} imports {module}"


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signatures(name: str):
    parameters = inspect.signature(getattr(algorithm, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == SIGNATURES[name].split()
    assert name in algorithm.__all__
