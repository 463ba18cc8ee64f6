"""What a user writes as text or as a path stays what it is: in options, overrides, files, and in what is printed."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from customized_grpo.compare.comparison import Comparison
from customized_grpo.config import ConfigError, RunConfig, dump_config, load_config
from customized_grpo.files.kinds import is_text
from customized_grpo.rewards.by_name import REWARDS, AnyReward
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.settings import OwnFunctionSettings
from customized_grpo.run.changes import Change, changes
from program import TINY, Refusal, start

# Texts that YAML takes for a number, a date, a truth value, a comment, a mapping, an alias and so on.
ODD = [
    *("runs/trial #2", "2024", "007", "1_000", "0x10", "1e3", "1.50", ".inf", "12:30:45", "2026-01-05", "2026-13-45"),
    *("day: two", "a: b: c", "on", "no", "YES", "True", "=", "<<", "-", "? x", "[x]", "{x}", "{a: 1}", "@x", "*x"),
    *("!x", "%x", "| x", "> x", "`x`", "a'b", "'a' b", '"a', "a, b", "né", "a\nb", "x:", "# x", "k=v", "0b_", " x"),
    "&x y",
]
FIELDS: dict[str, Callable[[RunConfig], Any]] = {
    "output": lambda config: config.output,
    "data.class_word": lambda config: config.data.class_word,
    "data.root": lambda config: config.data.root,
    "model.path": lambda config: config.model.path,
    "rewards.identity.model": lambda config: config.rewards["identity"].own_model,
}
BASE = ("data.source=list.json",)


@pytest.mark.parametrize("text", ODD)
def test_a_text_in_an_override_is_all_of_it_and_survives_a_dump(text: str, tmp_path: Path):
    config = load_config(TINY, [*BASE, *(f"{key}={text}" for key in FIELDS)])
    assert {key: read(config) for key, read in FIELDS.items()} == dict.fromkeys(FIELDS, text)
    assert load_config(TINY, [*BASE, *((key, text) for key in FIELDS)]) == config
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(tmp_path)) == config
    printed = str(Change("output", config.output, None)).removeprefix("output: ").removesuffix(" -> null")
    assert load_config(TINY, [*BASE, f"output={printed}"]).output == text  # what messages show can be pasted


# Those that YAML takes for one value without quotes, so that they may stand in a file and inside brackets.
PLAIN = [text for text in ODD if re.fullmatch(r"[\w.-]*\w|12:30:45|<<|=", text)]


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_in_a_file_or_inside_a_value_is_as_written(text: str, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {text}\ndata: {{source: {text}, root: {text}, class_word: {text}}}\nmodel:\n  path: {text}\n"
        f"rewards:\n  identity: {{name: dino, model: {text}}}\nadapter: {{targets: [{text}, b]}}\ndevice: cpu\n"
    )
    config = load_config(str(recipe))
    assert {read(config) for read in FIELDS.values()} == {text}
    assert (config.data.source, config.adapter.targets) == (text, (text, "b"))
    inside = load_config(TINY, [f"data={{source: {text}}}", f"adapter.targets=[{text}]"])
    assert (inside.data.source, inside.adapter.targets) == (text, (text,))
    metric = f"{{name: vlm_judge, base_url: 'http://h/v1', model: {text}, judges: prompt}}"
    assert load_config(TINY, [*BASE, f"evaluation.metrics=[{metric}]"]).evaluation.metrics[0].own_model == text


def test_values_that_are_no_text_are_still_yaml():
    options = "{a: 5, b: on, c: [1.5, 2026-01-05], d: null, 7: x}"
    config = load_config(TINY, [*BASE, "updates=0x10", "groups={size: 3}", "model.shard=on", "seed=5 # five"])
    assert (config.updates, config.groups.size, config.model.shard, config.seed) == (16, 3, True, 5)
    written = f"{{name: 'x.py:f', role: identity, options: {options}}}"
    own = load_config(TINY, [*BASE, f"rewards.own={written}"]).rewards["own"]
    assert isinstance(own, OwnFunctionSettings)
    assert {key: str(value) for key, value in own.options.items()} == {
        **{"a": "5", "b": "True", "c": "[1.5, datetime.date(2026, 1, 5)]", "d": "None", "7": "x"}
    }


def test_numbers_are_decimal():
    """YAML 1.1 would read 010 as 8 and 1:30 as 90."""
    config = load_config(TINY, [*BASE, "updates=010", "seed=08", "optimizer.lr=0.5"])
    assert (config.updates, config.seed, config.optimizer.lr) == (10, 8, 0.5)
    with pytest.raises(ConfigError, match=r"updates: .*1:30"):
        load_config(TINY, [*BASE, "updates=1:30"])


@pytest.mark.parametrize("null", ["null", "", " ", "~"])
def test_null_is_null_where_a_field_may_be_null(null: str):
    config = load_config(TINY, [*BASE, "data.class_word=dog", f"data.class_word={null}", "adapter.targets=null"])
    assert (config.data.class_word, config.adapter.targets) == (None, None)
    assert load_config(TINY, [*BASE, "data.class_word='null'", "data.root='2024'"]).data.class_word == "null"


def test_the_right_side_of_a_key_in_a_metric_is_text():
    line = "vlm_judge base_url=http://localhost/v1 model=2024 judges=prompt"
    assert parse_metric(line).own_model == "2024"
    assert load_config(TINY, [*BASE, f"evaluation.metrics=[{line}]"]).evaluation.metrics == (parse_metric(line),)
    own = parse_metric("'my scores #1.py:f' timeout=3")
    assert own.name == "my scores #1.py:f"
    assert parse_metric(str(own)) == own
    assert parse_metric("dino model='some where' batch=2").label == "dino"
    for twice, what in (("against=reference against=other_view", "against"), ("name=clip_t", "name")):
        with pytest.raises(ConfigError, match=f"has {what} twice"):
            parse_metric(f"dino {twice}")


def test_a_key_is_text_in_every_reward_or_in_none():
    """So that an override can be read before the reward's name, and thus its class, is known."""
    kinds: list[type[BaseModel]] = [*REWARDS.values(), OwnFunctionSettings]
    for key in {key for kind in kinds for key in kind.model_fields}:
        fields = [kind.model_fields[key] for kind in kinds if key in kind.model_fields]
        assert len({is_text(field.annotation) for field in fields}) == 1, key
    assert is_text(AnyReward)  # "dino against=other_view"


def test_a_comparison_keeps_texts_too(tmp_path: Path):
    file = tmp_path / "file.yaml"
    file.write_text(
        f"output: 2026-01-05\nrecipe: {TINY}\nseeds: [0]\nprimary: {{arm: no, against: [2024]}}\n"
        "overrides: {data.source: 007, data.class_word: on, data.root: 1_0, updates: 0x3}\n"
        "arms:\n  2024: {model.path: 1e3}\n  no: {seeds: [0x1], model: {path: 12:30}}\n"
    )
    comparison = Comparison.read(file)
    assert (str(comparison.output), comparison.primary.arm) == ("2026-01-05", "no")
    assert [*comparison.arms] == ["2024", "no"]
    config = comparison.config("2024", 0)
    data = config.data
    assert (data.source, data.class_word, data.root, config.updates) == ("007", "on", "1_0", 3)
    assert (config.model.path, config.output) == ("1e3", "2026-01-05/arms/2024/seed-0/run")
    assert (comparison.config("no", 1).model.path, comparison.seeds_of("no")) == ("12:30", (1,))


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dry_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> RunConfig:
        answer = start(("train", *arguments, "--dry-run"), monkeypatch, capsys)
        return RunConfig.model_validate(yaml.safe_load(answer.out))

    return run


@pytest.mark.parametrize("text", [*(text for text in ODD if text[0] != "-"), "output=x", "'quoted'", "null", "./~"])
def test_an_option_is_what_is_typed(text: str, dry_run: Callable[..., RunConfig]):
    config = dry_run(TINY, *BASE, "--output", text, "--device", text)
    assert (config.output, config.device) == (text, text)


def test_a_run_is_resumed_in_the_folder_that_is_named(dry_run: Callable[..., RunConfig]):
    for name in ("trial #2", "2024", "day: one", "~"):
        folder = Path(name)
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_config(load_config(TINY, [*BASE, "output=elsewhere"])))
        (folder / "environment.json").write_text(json.dumps({}))
        typed = f"./{name}" if name == "~" else name
        assert dry_run(typed, "--resume").output == typed


# --- the user's folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("home #")
    monkeypatch.setenv("HOME", str(folder))
    return str(folder)


PATHS = {"output", "data.source", "data.root", "model.path", "model.condition_cache", "rewards.identity.model"}


@pytest.mark.parametrize("key", sorted(PATHS))
@pytest.mark.parametrize("written", ["~", "~/a b", "~root/x", "./~", "a/~", "owner/name~1"])
def test_a_tilde_at_the_beginning_of_a_path_is_the_users_folder(key: str, written: str, home: str, tmp_path: Path):
    expected = os.path.expanduser(written)  # noqa: PTH111 - Path drops "./"
    assert expected.startswith(home) == (written[:2] in ("~", "~/"))
    *sections, last = key.split(".")
    nested: Any = {last: written}
    for section in reversed(sections):
        nested = {section: nested}
    plain = yaml.safe_dump(nested, default_flow_style=False).replace("'~'", "~")
    (tmp_path / "file.yaml").write_text(plain)
    more = () if key == "data.source" else BASE
    for config in (load_config(str(tmp_path / "file.yaml"), more), load_config(TINY, [*more, f"{key}={written}"])):
        assert _value(config, key) == expected
        (tmp_path / "config.yaml").write_text(dump_config(config))
        assert load_config(str(tmp_path)) == config
        assert not list(changes(config, load_config(str(tmp_path))))


def _value(config: RunConfig, key: str) -> Any:
    values: Any = config.model_dump()
    for part in key.split("."):
        values = getattr(values, part) if hasattr(values, part) else values[part]
    return values


def test_a_tilde_before_a_reward_of_ones_own(home: str):
    config = load_config(TINY, [*BASE, "rewards.mine={name: ~/s.py:f, role: identity}", "rewards.prompt=~/p.py:f"])
    assert [config.rewards[key].name for key in ("mine", "prompt")] == [f"{home}/s.py:f", f"{home}/p.py:f"]
    assert parse_metric("dino model=~/dino").own_model == f"{home}/dino"
    assert load_config(TINY, [*BASE, "data.class_word=~x"]).data.class_word == "~x"  # no path


def test_a_tilde_in_options_and_arguments(home: str, refused: Refusal, dry_run: Callable[..., RunConfig]):
    (Path(home) / "r.yaml").write_text(Path(TINY).read_text())
    assert dry_run("~/r.yaml", *BASE, "--output", "~/x").output == f"{home}/x"
    picture = ("--reference", "~/r.png", "--prompt", "a cat", "--device", "cpu")
    for arguments in (
        ("generate", *picture),
        ("generate", "--prompts", "~/p.txt", "--device", "cpu"),
        ("evaluate", TINY, *BASE, "--adapter", "~/a", "--device", "cpu"),
        ("evaluate", "~/none", "--device", "cpu"),
        ("evaluate", TINY, "data.train_samples=2", "--against", "~/ev", "--device", "cpu"),
        ("probe", TINY, *BASE, "--output", "~/r.yaml"),
        ("check-rewards", TINY, *BASE, "--output", "~/r.yaml"),
        ("demo", "--output", "~/r.yaml"),
        ("compare", "~/c.yaml"),
        ("report", "~/run"),
        ("export", "~/run", "--format", "peft"),
        ("push", "~/run", "ann/rex"),
    ):
        assert f"{home}/" in refused(*arguments), arguments


@pytest.mark.parametrize(
    ("path", "user", "message"),
    [
        ("~no-such-user/x", "x", "~no-such-user/x: there is no user 'no-such-user'; write the whole path, or ./~no-"),
        ("~/x", "", "~/x: HOME does not name your folder; write the whole path, or ./~/x for a folder of that name"),
        (" ", "x", "the path ' ' is blank; write one, or leave it out"),
    ],
)
def test_a_path_that_names_nothing(
    path: str, user: str, message: str, refused: Refusal, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", user)
    assert refused.line("train", TINY, *BASE, "--output", path).startswith(message)
    assert refused.line("evaluate", path).startswith(message)
    assert refused.line("train", TINY, *BASE, f"output='{path}'").startswith(f"output: {message}")


# --- rewards without a role ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["clip_i", "clip_i against=other_view", "{name: clip_i}", "'clip_i'"])
def test_the_key_says_the_role(written: str, tmp_path: Path):
    (tmp_path / "file.yaml").write_text(f"rewards:\n  identity: {written}\n  prompt: {written}\n")
    overrides = [f"rewards.{key}={written}" for key in ("identity", "prompt")]
    for config in (load_config(str(tmp_path / "file.yaml"), BASE), load_config(TINY, [*BASE, *overrides])):
        roles = {key: (reward.name, reward.role) for key, reward in config.rewards.items()}
        assert roles == {"identity": ("clip_i", "identity"), "prompt": ("clip_i", "prompt")}


def test_a_key_that_says_nothing_asks_for_the_role():
    with pytest.raises(ConfigError, match=r"^rewards\.mine\.role: is missing; set it to identity, prompt or quality$"):
        load_config(TINY, [*BASE, "rewards.mine=dino"])
