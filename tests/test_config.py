import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import get_args

import pytest
import yaml

from customized_grpo.algorithm import SHAPING_RULES, TRUST_REGIONS
from customized_grpo.algorithm.schedule import ProgressReading, WindowStrategy
from customized_grpo.algorithm.sde import Dynamics, StepScaleMode
from customized_grpo.algorithm.weighting import WEIGHTINGS
from customized_grpo.config import ConfigError, RunConfig, dump_config, load_config, recipes
from customized_grpo.fields import Section
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.sections import BuiltInRule, Noise, Objective, Weighting, Window

# Windows of two steps among the steps 0 to 7.
TEN_STEPS = ("sampling.num_steps=10", "window={strategy: random, size: 2, last: 7}", "shaping.rule=sars")


def mistakes(*overrides: str, recipe: str = "critters") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value).splitlines()


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_in_the_package_loads(name: str):
    config = load_config(name)
    assert isinstance(config, RunConfig)
    assert config.output == f"runs/{name}"


@pytest.mark.parametrize("name", recipes())
def test_every_line_of_a_recipe_has_a_comment(name: str):
    """Except sections, and the second line of a pair."""
    lines = [line for line in recipes()[name].read_text().splitlines() if not line.startswith("#")]
    bare = [line.strip() for line in lines if "#" not in line and not line.endswith(":")]
    assert {line.split(":")[0] for line in bare} <= {"width", "update_batch"}


def test_the_example_of_a_sharded_base_loads():
    assert load_config(str(Path(__file__).parents[1] / "docs" / "examples" / "sharded.yaml")).model.shard


def test_a_recipe_may_be_a_path(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("updates: 7\ndata: {train_samples: 5}\n")
    config = load_config(str(file))
    assert (config.updates, config.data.train_samples) == (7, 5)
    assert config.sampling.num_steps == 10  # the default


def test_an_unknown_recipe_is_refused_with_the_nearest_name():
    (line,) = mistakes(recipe="criters")
    assert line.startswith("no recipe 'criters'; did you mean 'critters'?")


@pytest.mark.parametrize(
    ("text", "complaint"), [("a: [", "is not YAML"), ("- 1\n- 2\n", "holds a list; a recipe is a mapping")]
)
def test_a_file_that_is_not_a_recipe_is_refused(text: str, complaint: str, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert complaint in "\n".join(mistakes(recipe=str(file)))


@pytest.mark.parametrize("name", recipes())
def test_the_resolved_config_reads_back_to_itself(name: str, tmp_path: Path):
    config = load_config(name, ["optimizer.lr=1e-5", "adapter.targets=[to_q, to_k]", "sampling.shift=checkpoint"])
    file = tmp_path / "resolved.yaml"
    file.write_text(dump_config(config))
    assert load_config(str(file)) == config
    assert yaml.safe_load(dump_config(config)).keys() == RunConfig.model_fields.keys()  # defaults are written out


@pytest.mark.parametrize(
    ("section", "field", "names"),
    [
        (Window, "strategy", get_args(WindowStrategy)),
        (Noise, "dynamics", set(get_args(Dynamics)) - {"ode"}),  # "ode" has no noise to train with
        (Weighting, "kind", WEIGHTINGS),
        (Weighting, "progress", {*get_args(ProgressReading), "position"}),  # "position" is no property of a step
        (Objective, "trust", TRUST_REGIONS),
        (Objective, "step_scale", get_args(StepScaleMode)),
    ],
)
def test_a_setting_takes_the_names_that_the_algorithm_knows(
    section: type[Section], field: str, names: Collection[str]
):
    """The sections repeat them, because importing the algorithm means importing torch."""
    assert set(get_args(section.model_fields[field].annotation)) == set(names)


def test_the_built_in_rules_are_those_that_the_algorithm_knows():
    assert set(get_args(BuiltInRule)) == set(SHAPING_RULES)


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.lr=1e-5", lambda c: c.optimizer.lr == 1e-5),  # a text for YAML 1.1
        ("seed=3", lambda c: c.seed == 3),
        ("shaping.recentre=true", lambda c: c.shaping.recentre is True),
        ("sampling.shift=checkpoint", lambda c: c.sampling.shift == "checkpoint"),
        ("sampling.shift=2", lambda c: c.sampling.shift == 2.0),
        ("adapter.targets=[to_q, to_k]", lambda c: c.adapter.targets == ("to_q", "to_k")),
        ("window={strategy: all, size: null}", lambda c: c.window.size is None and c.window.last is None),
        ("data.root=/a=b", lambda c: c.data.root == "/a=b"),
        ("rewards.identity.against=other_view", lambda c: c.rewards["identity"].name == "dino"),
        ("rewards.prompt.model=somewhere", lambda c: c.rewards["prompt"].name == "clip_t"),
    ],
)
def test_overrides_are_typed(override: str, read: Callable[[RunConfig], bool]):
    assert read(load_config("critters", [override]))


@pytest.mark.parametrize(
    ("first", "whole"),
    [("rewards.identity.against=other_view", "rewards.identity=dino"), ("optimizer.lr=1e-4", "optimizer={warmup: 3}")],
)
def test_a_setting_that_a_later_section_would_drop_is_refused(first: str, whole: str):
    key, section = first.partition("=")[0], whole.partition("=")[0]
    with pytest.raises(ConfigError, match=f"^{key}: {section}, which comes later, would replace it; write"):
        load_config("critters", [first, whole])
    assert load_config("critters", [whole, first]) != load_config("critters", [whole])


def test_the_last_override_wins():
    assert load_config("critters", ["seed=1", "seed=2"]).seed == 2


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_settings_of_a_replaced_reward_are_refused_with_the_way_to_drop_them():
    with pytest.raises(ConfigError, match=r"judges: unknown key; .*to drop .*'rewards.prompt={name: clip_t}'"):
        load_config("kontext-vlm", ["rewards.prompt.name=clip_t"])
    config = load_config("kontext-vlm", ["rewards.prompt={name: clip_t}"])
    assert config.rewards["prompt"].label == "clip_t"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key; did you mean 'lr'?"),
        ("optimiser.lr=1", "optimiser: unknown key; did you mean 'optimizer'?"),
        ("evaluation.metrics=[dino agianst=x]", "evaluation.metrics.0.agianst: unknown key; did you mean 'against'?"),
        ("evaluation.metrics=[dyno]", "evaluation.metrics.0.name: no reward is named 'dyno'; did you mean 'dino'?"),
        ("rewards.prompt.name=clipt", "rewards.prompt.name: no reward is named 'clipt'; did you mean 'clip_t'?"),
        ("rewards.identity.aginst=reference", "rewards.identity.aginst: unknown key; did you mean 'against'?"),
        ("adapter.xyz=1", "adapter.xyz: unknown key; known here: rank, alpha, targets, share_qkv, ema"),
        ("dino=1", "dino: unknown key; did you mean 'window'?"),
        ("rewards.x={name: 'a.py:b', role: quality, weight: 1, optoins: {}}", "rewards.x.optoins: .* mean 'options'?"),
        ("rewards.prompt={name: http}", "rewards.prompt.url: is missing and has no default; set it"),
        ("sampling.shift=-1", "sampling.shift: input should be greater than .*; or 'checkpoint', not -1"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(override: str, line: str):
    (message,) = mistakes(override)
    assert re.fullmatch(line.replace("?", r"\?"), message), message


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["window.last=9"], "window.last: with num_steps=10 it must be at most 8, not 9"),
        (["window.first=8"], "window.first: must be at most 7, the last step, not 8"),
        (["window.size=9"], "window.size: must be at most 8 within steps 0 to 7, not 9"),
        (["window.strategy=fixed", "window.start=7"], "window.start: must be 0 to 6 for 2 steps within 0 to 7, not 7"),
        (
            ["window.strategy=sliding", "window.stride=7"],
            "window.stride: a stride of 7 over 7 places never trains steps 2, 3, 4, 5, 6, 7; use 1, or another "
            "number that has no divisor in common with 7",
        ),
        (["window.stride=2"], 'window: stride is only for the strategy "sliding", not "random"; set window.stride=1'),
        (["window.every=2"], 'window: every is only for the strategy "sliding", not "random"; set window.every=1'),
        (["window.strategy=all"], 'window: strategy "all" has no window, and size is 2; set window.size=null'),
        (["window.size=null"], 'window: strategy "random" needs a size; set for instance window.size=2'),
        (["window.strategy=fixed"], 'window: strategy "fixed" needs a start; set for instance window.start=0'),
        (["window.start=1"], 'window: start is only for the strategy "fixed", not "random"; set window.start=null'),
        (
            ["window.per=update"],
            'window: per is only for the strategy "scattered": with "random" all images of an update train the same '
            "steps; set window.per=image",
        ),
        (["window.strategy=scattered", "window.size=9"], "window.size: must be at most 8 within steps 0 to 7, not 9"),
        (
            ["objective.minibatches=9"],
            "objective.minibatches: must be at most 8, the images of a group (groups.size), not 9",
        ),
        (
            ["objective.trust=guard"],
            'objective.step_scale: "guard" scales the ratio of each step by its own noise, and two scales would undo '
            "each other; set objective.step_scale=none, or objective.trust=clip",
        ),
        (
            ["objective.kind=nft", "objective.kl=.1"],
            "objective.kl: 0.1 needs noisy steps, and nft has none; set objective.kl=0, and a larger objective.beta "
            "to keep the policy nearer",
        ),
        (
            ["objective.kind=nft", "objective.trust=dppo"],
            'objective.trust: "dppo" limits a ratio of probabilities, and nft has none; set objective.trust=clip, '
            "which nft does not read",
        ),
        (
            ["objective.kind=nft", "noise.steps=all"],
            "noise.steps: nft samples without noise; set noise.steps=trained, or objective.kind=grpo",
        ),
        *(
            (
                ["weighting.progress=position", *more],
                'weighting.progress: "position" is the order in which each image draws its steps; add '
                "window.strategy=scattered window.per=image",
            )
            for more in ([], ["window.strategy=scattered", "window.per=update"])
        ),
        (
            ["shaping.rule=gdpo", "weighting.kind=tdw"],
            'shaping.rule: "gdpo" needs static weights; add weighting.kind=constant',
        ),
        (
            ["weighting.kind=tdw", "weighting.prompt=.6"],
            "weighting.prompt: 0.6 is a constant weight, which tdw ignores; add weighting.kind=constant, or set "
            "weighting.high and weighting.low",
        ),
        (["weighting.start=.5"], "weighting: start 0.5, centre 0.4 and end 0.88 must be in this order"),
        (["noise.dynamics=cps", "noise.level=1.5"], 'noise.level: must be at most 1 with "cps", not 1.5'),
        (
            ["data.train_samples=null"],
            "data.train_samples: critters are drawn without limit; set a number, for instance 2000",
        ),
    ],
)
def test_contradictions_are_refused_with_the_way_out(overrides: list[str], line: str):
    assert mistakes(*TEN_STEPS, *overrides) == [line]


def test_models_other_than_the_built_in_one_have_other_defaults(tmp_path: Path):
    """A user's recipe that names FLUX and nothing else must not train at 32 pixels on a CPU."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {path: some/FLUX}\ndata: {source: list.json}\n")
    config = load_config(str(recipe))
    assert (config.device, config.model.dtype) == ("cuda", "bfloat16")
    assert (config.model.height, config.model.width, config.model.max_sequence_length) == (512, 512, 512)
    config = load_config(str(recipe), ["device=cpu", "model.height=64", "model.dtype=float32"])
    assert (config.device, config.model.dtype, config.model.height, config.model.width) == ("cpu", "float32", 64, 512)
    recipe.write_text("model: {gradient_checkpointing: true}\ndata: {train_samples: 4}\n")
    config = load_config(str(recipe))
    assert (config.device, config.model.dtype, config.model.height) == ("cpu", "float32", 32)


def test_settings_at_the_limit_are_accepted():
    load_config("critters", [*TEN_STEPS, "window.strategy=fixed", "window.start=6"])
    load_config("critters", [*TEN_STEPS, "window.size=8"])
    load_config("critters", [*TEN_STEPS, "shaping.rule=gdpo", "weighting.kind=constant"])
    load_config("critters", [*TEN_STEPS, "window.strategy=all", "window.size=null", "window.first=7"])


def test_all_mistakes_are_reported_at_once():
    """Bad overrides, unknown keys, wrong types, contradictions inside a section and between sections."""
    lines = mistakes(
        "optimizer.lrr=1",
        "updates=many",
        "oops",
        "window.start=1",
        "adapter.targets.0=x",
        "noise.dynamics=cps",
        "noise.level=2",
        "sampling.shift=wide",
    )
    starts = ["oops", "window", "noise.level", "optimizer.lrr", "updates", "adapter.targets", "sampling.shift"]
    assert sorted(line.split(":")[0] for line in lines) == sorted(starts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dyno", "metric 'dyno': name: no reward is named 'dyno'; did you mean 'dino'?; write for instance .*"),
        ("dino agianst=x", "metric 'dino': agianst: unknown key; did you mean 'against'?; write .*"),
        ("dino batch=0", "metric 'dino': batch: input should be greater than or equal to 1, not '0'; .*"),
    ],
)
def test_a_mistake_in_a_metric_names_its_own_keys(line: str, message: str):
    with pytest.raises(ConfigError) as caught:
        parse_metric(line)
    assert re.fullmatch(message.replace("?", r"\?"), str(caught.value)), caught.value


def test_a_mistake_in_a_metric_does_not_repeat_a_key():
    with pytest.raises(ConfigError, match="may not hold a user or password") as caught:
        parse_metric("http url=http://user:secret-key@host/score")
    assert "secret-key" not in str(caught.value)


def test_a_reward_that_is_written_as_a_line_takes_further_settings(tmp_path: Path):
    """In a file, or in an earlier override, and also with settings in the line."""
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {train_samples: 8}\nrewards: {identity: dino region=centre}\n")
    identity = load_config(str(file), ["rewards.identity.against=other_view"]).rewards["identity"]
    assert str(identity.model_copy(update={"role": None})) == "dino against=other_view region=centre"
    further = ["rewards.taste=clip_t batch=3", "rewards.taste.role=quality", "rewards.taste.weight=0.1"]
    taste = load_config(str(file), further).rewards["taste"]
    assert (taste.role, taste.weight, taste.model_dump()["batch"]) == ("quality", 0.1, 3)
    with pytest.raises(ConfigError, match=r"rewards\.taste\.batch: .* has a quotation mark that is not closed"):
        load_config(str(file), ["rewards.taste='clip_t", "rewards.taste.batch=3"])


def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_made():
    """A run could be trained there, but its files not be opened again."""
    with pytest.raises(ConfigError, match=r"output: the name 'stra\\udce1e' is not UTF-8; give the folder another"):
        load_config("critters", [("output", Path("stra\udce1e"))])
