"""The level of balanced weights stands on the page, and only where weights are balanced."""

from collections.abc import Callable

import pytest

from customized_grpo.report import write_report
from customized_grpo.training.trainer import Trainer
from runs import SMALL


@pytest.mark.parametrize("balance", ["dual", "off"])
def test_the_level_of_balanced_weights_has_a_chart(balance: str, make_trainer: Callable[..., Trainer]):
    trainer = make_trainer(*SMALL, "weighting.kind=constant", f"weighting.balance={balance}", "updates=3")
    trainer.train()
    page = write_report([trainer.directory.path], trainer.directory.path / "report.html")
    assert ("Level of the weights" in page.read_text(encoding="utf-8")) == (balance == "dual")
