"""Which settings may change when a run is resumed."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel

from customized_grpo.config import RunConfig
from customized_grpo.rewards.by_name import REWARDS
from customized_grpo.run.changes import MAY_CHANGE, changes


def test_changes_are_named_by_their_dotted_keys(make_config: Callable[..., RunConfig]):
    old = make_config("rewards.identity.batch=8", "device=cuda:0")
    new = make_config(
        "optimizer.lr=1e-5", "device=cuda:1", "updates=9", "evaluation.metrics=[dino region=centre]", "keep_last=null"
    )
    assert [str(change) for change in changes(old, new)] == [
        "device: cuda:0 -> cuda:1 (results then agree up to rounding, not bit for bit)",
        "updates: 1 -> 9",
        "keep_last: 3 -> null",
        "rewards.identity.batch: 8 -> 64 (results then agree up to rounding, not bit for bit)",
        "optimizer.lr: 0.001 -> 1.0e-05",
        "evaluation.metrics: [oracle_identity, oracle_prompt, joint_success] -> [dino region=centre]",
    ]
    assert [change.key for change in changes(old, new) if not change.allowed] == ["optimizer.lr", "evaluation.metrics"]


def test_adding_or_removing_a_reward_is_not_allowed(make_config: Callable[..., RunConfig]):
    plain, extended = make_config(), make_config("rewards.look={name: copy_paste, role: quality, weight: .1}")
    for old, new in ((plain, extended), (extended, plain)):
        assert "rewards.look.weight" in [change.key for change in changes(old, new) if not change.allowed]


def test_every_setting_that_may_change_exists():
    """Otherwise a renamed key would be refused, and nobody would notice."""

    def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner, f"{prefix}{name}.")
            yield f"{prefix}{name}"

    known = {*fields(RunConfig), *(f"rewards.*.{name}" for kind in REWARDS.values() for name in kind.model_fields)}
    assert set(MAY_CHANGE) - known == set()


def test_the_documentation_names_every_setting_that_may_change():
    text = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")
    names = {key: key.removeprefix("rewards.*.") for key in MAY_CHANGE}
    assert [key for key, name in names.items() if f"`{name}`" not in text] == []
