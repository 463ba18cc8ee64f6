"""A base adapter whose file has become another one: nothing that needs the old one goes on with it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.commands.export import ExportRequest, write_export
from customized_grpo.commands.generate import Generator, ModelChoice
from customized_grpo.config import RunConfig, load_config
from customized_grpo.errors import UsageError
from customized_grpo.measure.evaluate import evaluate
from customized_grpo.measure.request import make_request
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training.assemble import assemble
from customized_grpo.training.check import check_run


@pytest.fixture
def save(make_policy: Callable[..., FluxKontextPolicy], excite: Callable[..., None]) -> Callable[..., None]:
    def write(folder: Path, alpha: float) -> None:
        policy = make_policy(rank=2, alpha=alpha)
        excite(policy)
        policy.save_adapter(folder)

    return write


def test_an_exchanged_base_adapter_is_refused_wherever_it_matters(
    save: Callable[..., None], make_config: Callable[..., RunConfig], tmp_path: Path
):
    base = tmp_path / "base"
    save(base, 2.0)
    config = make_config(f"model.base_adapter={base}", "updates=1", "adapter.rank=2", "evaluation.every=1")
    assemble(config).train()
    adapter = Path(config.output) / "adapter"
    choice = ModelChoice(model=None, adapter=adapter, device="cpu")
    longer = load_config(config.output, ["updates=2"])
    request = make_request(config.output, ["data.held_out_samples=4"])

    def all_four() -> list[Callable[[], object]]:
        return [
            lambda: Generator.load(choice),
            lambda: write_export(ExportRequest(adapter, "diffusers", tmp_path / "exported", with_base=True)),
            lambda: evaluate(request, tmp_path / "evaluated"),
            lambda: assemble(longer, resume=True),
        ]

    shutil.move(base, tmp_path / "kept")
    save(base, 4.0)
    for use in all_four():
        with pytest.raises(UsageError, match=rf"^model.base_adapter: {base} is not what .* was trained on any more"):
            use()
    assert any("is not what" in problem for problem in check_run(longer, resume=True).problems)
    shutil.rmtree(base)
    shutil.move(tmp_path / "kept", base)
    for use in all_four():
        use()
    assert not check_run(longer, resume=True).problems
