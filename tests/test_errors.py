"""Every error is the user's (`InputError`), a run's (`RunError`), or a bug, which keeps its traceback."""

import ast
import builtins
import importlib
import pkgutil
from collections.abc import Iterator

from customized_grpo.errors import InputError, RunError
from structure import PACKAGE, parsed

STANDARD = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}

# Where the package raises a standard exception: "file:function" and why no user sees it. A new one is either added
# here, or, if a user can cause it, made a leaf of InputError or RunError. algorithm/ raises ValueError for its callers
# throughout, and validators raise it because pydantic asks for it.
CALLERS_MISTAKES = {
    "compare/front.py:beyond_front": "the caller passes a front of one point",
    "critters/build/pictures.py:target_of_kind": "the caller names a kind of picture that does not exist",
    "critters/oracle.py:_cells": "the caller passes a picture of another size or type",
    "data/images.py:fit": "the caller asks for a side below 1, or passes a picture that load_image did not open",
    "data/sample.py:Sample.__post_init__": "the caller makes a sample without an id or a reference",
    "data/sources.py:load_data": "the caller asks for files of the built-in world, which has none",
    "calibration/intervals.py:estimate": "the caller passes no scored value",
    "calibration/intervals.py:paired_difference": "the caller passes seeds with none in common",
    "policies/diffusers_policy.py:DiffusersPolicy.noise": "the caller passes another number of seeds than of images",
    "rewards/settings.py:RewardSettings.make": "abstract",
}
CAUGHT_INSIDE = {
    "__init__.py:__getattr__": "Python and hasattr expect an AttributeError",
    "data/images.py:_eight_bit_grey": "load_image makes a PictureError of it",
    "data/images.py:_check_visible": "check_image makes a PictureError of it",
    "rewards/by_name.py:from_line": "pydantic makes a line of it, config.py a ConfigError",
    "data/subjects200k.py:_boxes": "the loader makes a problem of the list of it",
    "files/own_modules.py:_importer.import_": "user_code.py makes an OwnCodeError of it",
}
NEVER_RAISED_TO_USERS = {"AskError", "_KeyTwiceError"}  # rewards/remote.py and data/entries.py catch them


# --- the classes -----------------------------------------------------------------------------------------------------


def leaves() -> Iterator[type[Exception]]:
    """All exception classes of the package except the two roots."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "customized_grpo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    waiting: list[type[Exception]] = [Exception]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("customized_grpo") and kind not in (InputError, RunError):
                yield kind


def test_every_error_has_one_root_and_is_a_standard_error():
    kinds = {kind.__name__: kind for kind in leaves()}
    assert len(kinds) > 10
    assert kinds.keys() >= NEVER_RAISED_TO_USERS
    for name in kinds.keys() - NEVER_RAISED_TO_USERS:
        assert issubclass(kinds[name], InputError) != issubclass(kinds[name], RunError), name
        assert issubclass(kinds[name], ValueError | RuntimeError | OSError), name


# --- where they are raised -------------------------------------------------------------------------------------------


def names(node: ast.AST | None) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node else set()


def validators(tree: ast.Module) -> set[str]:
    """Functions that pydantic calls: decorated methods, and arguments of BeforeValidator and the like."""
    functions = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(d) for d in node.decorator_list):
            functions.add(node.name)
        if isinstance(node, ast.Call) and "validator" in ast.unparse(node.func).lower():
            functions |= names(node)
    return functions


def standard_exceptions(tree: ast.AST, place: str = "") -> Iterator[str]:
    """Dotted names of the functions that make or raise a standard exception."""
    for node in ast.iter_child_nodes(tree):
        inner = place
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{place}.{node.name}".lstrip(".")
        made = node.func if isinstance(node, ast.Call) else node.exc if isinstance(node, ast.Raise) else None
        if isinstance(made, ast.Name) and made.id in STANDARD:
            yield place
        yield from standard_exceptions(node, inner)


def standard_raises(modules: dict[str, ast.Module]) -> set[str]:
    return {
        f"{file}:{function}"
        for file, tree in modules.items()
        if not file.startswith("algorithm/")
        for function in standard_exceptions(tree)
        if function.rpartition(".")[2] not in validators(tree)
    }


def test_what_a_user_can_cause_is_no_standard_exception():
    raised, known = standard_raises(parsed()), CALLERS_MISTAKES.keys() | CAUGHT_INSIDE.keys()
    assert sorted(raised - known) == [], "make it a leaf of InputError or RunError, or add it to the tables above"
    assert sorted(known - raised) == [], "these raise no standard exception any more: take them out of the tables"


def test_standard_exceptions_are_found_wherever_they_are_raised():
    source = """
class A:
    @model_validator(mode="after")
    def _consistent(self): raise ValueError("for pydantic")
    def method(self):
        def inner(): raise OSError
def _check(value): raise ValueError("for pydantic")
Number = Annotated[int, BeforeValidator(_check)]
def returned(): return RuntimeError("raised by the caller")
def ours(): raise UsageError("one line")
def again():
    try: ...
    except ValueError as error: raise
"""
    assert standard_raises({"a.py": ast.parse(source), "algorithm/b.py": ast.parse(source)}) == {
        "a.py:A.method.inner",
        "a.py:returned",
    }


# --- where they are caught -------------------------------------------------------------------------------------------


def handlers(tree: ast.AST) -> list[set[str]]:
    """What is caught, without handlers that let the error pass in the end."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    return [names(node.type) for node in nodes if not (isinstance(node.body[-1], ast.Raise) and not node.body[-1].exc)]


def test_only_two_modules_report_errors():
    """The program, and an arm of a comparison in a process of its own: both print one line and end.

    A dry run collects them, so that it can report all at once; the studio shows them on its page and goes on.
    """
    catching, ending = set[str](), set[str]()
    for file, tree in parsed().items():
        if any(caught & {"InputError", "RunError"} for caught in handlers(tree)):
            catching.add(file)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "SystemExit"):
                ending.add(file)
    programs = {"cli.py", "compare/arm.py"}
    # During a run bad input becomes a failure of the run; a dry run collects all problems.
    shown = {"studio/page.py", "studio/generating.py"}
    assert catching == programs | {"commands/start.py", "training/check.py"} | shown
    assert ending == programs | {"runtime/stopping.py"}  # after a signal


def test_they_catch_nothing_but_the_two_roots():
    for file in ("cli.py", "compare/arm.py"):
        main = next(n for n in ast.walk(parsed()[file]) if isinstance(n, ast.FunctionDef) and n.name == "main")
        caught = handlers(main)
        assert all(caught), file  # no bare `except:`
        assert set.union(*caught) == {"InputError", "RunError"}, file
