"""One name for each metric, and the rewards that are trained on it."""

from pathlib import Path

from customized_grpo.calibration.named_metrics import named_metrics, trained_names
from customized_grpo.config import load_config
from customized_grpo.rewards.mistakes import parse_metric

TINY = str(Path(__file__).parents[1] / "tiny.yaml")


def test_every_metric_has_one_name_and_the_keys_that_it_is_trained_under():
    rewards = ["rewards.taste={name: clip_t, role: quality, weight: .2}", "rewards.more={name: dino, role: identity}"]
    config = load_config(TINY, [*rewards, "rewards.more.model=a/b", "evaluation.metrics=[clip_t, 'clip_i model=c/d']"])
    named = named_metrics(config, [parse_metric("dino model=a/b"), parse_metric("dino model=e/f")])
    assert {name: metric.keys for name, metric in named.items()} == {
        "dino": ("identity",),
        "clip_t": ("prompt", "taste"),
        "dino model=a/b": ("more",),
        "clip_i": (),
        "dino model=e/f": (),
    }
    assert {name: metric.settings.own_model for name, metric in named.items()} == {
        "dino": "critters",
        "clip_t": "critters",
        "dino model=a/b": "a/b",
        "clip_i": "c/d",
        "dino model=e/f": "e/f",
    }
    assert named["clip_i"].written == "clip_i model=c/d"
    assert all(metric.settings == metric.settings.as_metric() for metric in named.values())
    names = {"identity": "dino", "prompt": "clip_t", "taste": "clip_t", "more": "dino model=a/b"}
    assert trained_names(config) == names
    assert list(trained_names(config)) == list(config.rewards)
    in_full = trained_names(config, ["dino"])
    assert in_full == names | {"identity": "dino model=critters"}


def test_batches_and_patience_are_not_part_of_a_name():
    """The same scorer twice is one metric; a server of another address is another one."""
    config = load_config(TINY, ["rewards.identity.batch=8", "evaluation.metrics=[dino, dino device=cpu]"])
    servers = [parse_metric(f"http url=http://{host}/score retries=0") for host in ("one", "two")]
    named = named_metrics(config, servers)
    assert list(named) == ["dino", "clip_t", "http url=http://one/score", "http url=http://two/score"]
    assert named["dino"].settings.model_dump()["batch"] == 8
