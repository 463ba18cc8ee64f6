"""One root for the user's errors, one for the run's; whatever is raised by name in the package is of one of them."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import customized_grpo
from customized_grpo.errors import InputError, RunError

PACKAGE = Path(customized_grpo.__file__).parent


def leaves() -> list[type[Exception]]:
    """All exception classes of the package but the roots; `remote` has one that never leaves it."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "customized_grpo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = list[type[Exception]](), [Exception]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("customized_grpo") and kind not in (InputError, RunError):
                found.append(kind)
    return [kind for kind in found if kind.__name__ != "AskError"]


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_every_error_is_the_users_or_the_runs_and_a_standard_one(kind: type[Exception]):
    assert issubclass(kind, InputError) != issubclass(kind, RunError)
    assert issubclass(kind, ValueError | RuntimeError | OSError)


def test_the_command_line_catches_nothing_but_the_two_roots():
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    main = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "main")
    caught = [node.type for node in ast.walk(main) if isinstance(node, ast.ExceptHandler)]
    assert [each.id for each in caught if isinstance(each, ast.Name)] == ["InputError", "RunError"]
    assert len(caught) == 2
