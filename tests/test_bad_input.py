"""What a user types wrong: settings, recipes, options. One line for each mistake, exit code 2, nothing written."""

import random
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from customized_grpo.config import ConfigError, load_config
from program import TINY, Refusal

COMMANDS = ("train", "evaluate", "probe", "check-rewards")  # all that take a recipe and overrides
REFERENCE = ("--reference", "none.png", "--prompt", "a critter")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, monkeypatch, capsys)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # what is no number, or none that can be meant
        ("optimizer.lr=.nan", "optimizer.lr: input should be a finite number, not nan"),
        ("optimizer.lr=.inf", "optimizer.lr: input should be a finite number, not inf"),
        ("optimizer.lr=1e400", "optimizer.lr: input should be a finite number, not '1e400'"),
        ("optimizer.lr=-1", "optimizer.lr: input should be greater than 0, not -1"),
        ("optimizer.lr=fast", "optimizer.lr: input should be a valid number, unable to parse .*, not 'fast'"),
        ("optimizer.lr=[1]", r"optimizer.lr: input should be a valid number, not \[1\]"),
        ("optimizer.lr=", "optimizer.lr: input should be a valid number, not None"),
        ("weighting.rate=.inf", "weighting.rate: input should be a finite number, not inf"),
        ("sampling.shift=-.inf", "sampling.shift: input should be a finite number; or 'checkpoint', not -inf"),
        ("noise.level=.nan", "noise.level: input should be a finite number, not nan"),
        ("model.guidance=.inf", "model.guidance: input should be a finite number, not inf"),
        ("max_unscored=2", "max_unscored: input should be less than or equal to 1, not 2"),
        ("data.held_out_share=-0.1", "data.held_out_share: input should be greater than or equal to 0, not -0.1"),
        ("seed=-1", "seed: input should be greater than or equal to 0, not -1"),
        ("seed=9223372036854775808", "seed: input should be less than or equal to 9223372036854775807, not 92.*08"),
        ("seed=1.5", "seed: input should be a valid integer, got a number with a fractional part, not 1.5"),
        ("seed=true", "seed: write a number, not true"),
        ("updates=1e9999", "updates: input should be a valid integer, .*, not '1e9999'"),
        ("updates=100000000000", "updates: input should be less than or equal to 1000000, not 100000000000"),
        ("groups.size=1", "groups.size: input should be greater than or equal to 2, not 1"),
        ("groups.size=100000000000", "groups.size: input should be less than or equal to 4096, not 100000000000"),
        ("groups.prompts=100000000000", "groups.prompts: input should be less than or equal to 1000000, not 1.*"),
        (
            "data.train_samples=0",
            "data.train_samples: input should be greater than or equal to 1, not 0\n.*: critters .*",
        ),
        ("adapter.rank=0", "adapter.rank: input should be greater than or equal to 1, not 0"),
        ("adapter.rank=1000000", "adapter.rank: input should be less than or equal to 4096, not 1000000"),
        ("model.height=0", "model.height: input should be greater than or equal to 1, not 0"),
        ("model.width=100000", "model.width: input should be less than or equal to 8192, not 100000"),
        ("model.max_sequence_length=4096", "model.max_sequence_length: input should be .* equal to 512, not 4096"),
        ("sampling.num_steps=100000", "sampling.num_steps: input should be less than or equal to 1000, not 100000"),
        ("keep_last=0", "keep_last: input should be greater than or equal to 1, not 0"),
        # names
        ("optimzer.lr=1", "optimzer: unknown key; did you mean 'optimizer'.*"),
        ("optimizer.rl=1", "optimizer.rl: unknown key; .*'lr'.*|optimizer.rl: unknown key; known here: lr, .*"),
        ("shaping.rule=SARS", "shaping.rule: input should be 'sars', .*, not 'SARS'"),
        ("model.dtype=float16", "model.dtype: input should be 'float32' or 'bfloat16', not 'float16'"),
        ("tracking=wandb", "tracking: write a list such as \\[wandb\\], not 'wandb'"),
        ("tracking=[mlflow]", "tracking.0: input should be 'tensorboard', 'wandb' or 'trackio', not 'mlflow'"),
        # forms
        ("updates", "updates: an override is written key=value, for instance optimizer.lr=1e-4"),
        ("=1", "=1: an override is written key=value, .*"),
        ("clip_t,", "clip_t,: an override is written key=value, .*; put quotes around a value with spaces"),
        ("optimizer..lr=1", r"optimizer..lr=1: an override is written key=value, .*"),
        ("updates.x=1", "updates.x=1: updates is a value, not a section of keys"),
        ("seed=[1", r"seed: '\[1' is not YAML: line 1, column 3: .*"),
        ("optimizer=[1]", r"optimizer: write keys with values, such as {key: value}, not \[1\]"),
        ("optimizer=null", "optimizer: write keys with values, such as {key: value}, not None"),
        (
            "data={source: a, source: b}",
            "data: .* is not YAML: line 1, column 13: 'source' is written twice; keep one",
        ),
        ("output=null", "output: input should be a valid string, not None"),
        ("seed=!!python/object/apply:os.getcwd []", "seed: .* is not YAML: .*could not determine a constructor .*"),
        # contradictions
        ("window.size=9", "window.size: must be at most 3 within steps 0 to 2, not 9"),
        ("window.start=1", 'window: start is only for the strategy "fixed", not "random"; set window.start=null'),
        ("weighting.start=.9", "weighting: start 0.9, centre 0.4 and end 0.88 must be in this order"),
        ("data.train_samples=null", "data.train_samples: critters are drawn without limit; set a number, .*"),
        # rewards
        ("rewards=1", "rewards: write keys with values, such as {key: value}, not 1"),
        (
            "rewards.identity=dyno",
            "rewards.identity: .*, not 'dyno'|rewards.identity.name: no reward is named 'dyno'; .*",
        ),
        ("rewards.x={name: dino}", "rewards.x.role: is missing; set it to identity, prompt or quality"),
        ("rewards.x={name: dino, role: quality}", "rewards.x.weight: is missing; a quality reward needs a weight, .*"),
        ("rewards.x={name: dino, role: quality, weight: .nan}", "rewards.x.weight: input should be a finite .*"),
        ("rewards.a-b={name: dino, role: quality, weight: 1}", "rewards.a-b: the key becomes part of file names; .*"),
        ("evaluation.metrics=[5]", "evaluation.metrics.0: .*"),
        ("evaluation.metrics=['']", "evaluation.metrics.0.name: no reward is named ''.*"),
    ],
)
def test_a_setting(override: str, message: str, refused: Refusal):
    said = refused.train(override)
    assert re.fullmatch(message, said), said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_all_mistakes_at_once(command: str, refused: Refusal):
    said = refused(command, TINY, "updates=x", "optimizer.lrr=1", "noise.level=.nan", "oops", "seed=-1")
    assert [line.split(":")[0] for line in said.split("\n")] == [
        "oops",
        "seed",
        "updates",
        "noise.level",
        "optimizer.lrr",
    ]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "no device is named 'gpu'; use cpu, cuda or cuda:1"),
        (" ", "no device is named ' '; use cpu, cuda or cuda:1|device: input should be a valid string, not None"),
        ("meta", "device meta is not supported; use cpu, cuda or cuda:1"),
        ("cuda:99", "device cuda:99: .*; use device=c.*"),
    ],
)
def test_a_device(command: str, device: str, message: str, refused: Refusal):
    few = ("--prompts", 2, "--draws", 2) if command == "probe" else ()
    chosen = ("--device", device) if command == "evaluate" else (f"device={device}",)  # it looks for a GPU itself
    said = refused(command, TINY, *chosen, *few, *(() if command == "train" else ("--output", "out")))
    assert re.fullmatch(message, said), said


def test_a_device_of_a_reward(refused: Refusal):
    assert refused.train("rewards.identity.device=gpu") == "no device is named 'gpu'; use cpu, cuda or cuda:1"


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("generate", *REFERENCE, "--seed", "-1"),
            "Invalid value for '--seed': Input should be greater than or equal to 0",
        ),
        (
            ("generate", *REFERENCE, "--seed", "9223372036854775808"),
            "Invalid value for '--seed': Input should be less than or equal",
        ),
        (("generate", *REFERENCE, "--seed", "one"), "Invalid value for '--seed': Input should be a valid integer"),
        (
            ("generate", *REFERENCE, "--size", "100000"),
            "Invalid value for '--size': Input should be less than or equal to 8192",
        ),
        (
            ("generate", *REFERENCE, "--steps", "0"),
            "Invalid value for '--steps': Input should be greater than or equal to 1",
        ),
        (("demo", "--seed", "-1"), "Invalid value for '--seed': Input should be greater than or equal to 0"),
        (("demo", "--cases", "1"), "Invalid value for '--cases': Input should be greater than or equal to 12"),
        (("evaluate", TINY, "--cases", "0"), "Invalid value for '--cases': Input should be greater than"),
        (("evaluate", TINY, "--metric", "dyno"), "metric 'dyno': name: no reward is named 'dyno'"),
        (("check-rewards", TINY, "--metric", ""), "metric '': name: no reward is named ''"),
        (("probe", TINY, "--prompts", "1"), "Invalid value for '--prompts': Input should be greater than"),
        (("probe", TINY, "data.train_samples=3", "--prompts", "4"), "3 training samples cannot give 4 prompts"),
        (("compare", "none.yaml"), "no comparison in none.yaml; name a YAML file"),
        (("report", "none"), "there is no folder none"),
        (("train", "critter"), "no recipe 'critter'; did you mean 'critters'"),
        (("train", "x" * 300), "cannot be read: File name too long"),
        (("trian", "critters"), "No such command 'trian'"),
        (("train", "critters", "--lr", "1"), "No such option: --lr"),
        (("train",), "Missing argument 'recipe'"),
    ],
)
def test_an_option(arguments: Sequence[str], message: str, refused: Refusal):
    assert message in refused(*arguments)


def test_an_output_that_is_a_file_or_inside_one(refused: Refusal):
    (refused.folder / "file").write_text("")
    for command in ("evaluate", "probe", "check-rewards"):
        for output in ("file", "file/folder"):
            said = refused(command, TINY, "device=cpu", "--output", output)
            assert said == f"--output {output}: {refused.folder / 'file'} is a file; name another folder"
    for output in ("file", "file/run"):
        problem = f"{refused.folder / 'file'} is a file; choose another folder with output=..."
        assert refused("train", TINY, f"output={output}") == f"cannot write into {output}: {problem}"
    assert refused("demo", "--output", "file", "--device", "cpu").startswith("file exists; name another folder")


def test_an_output_where_other_things_lie(refused: Refusal):
    (refused.folder / "mine" / "notes.txt").parent.mkdir()
    (refused.folder / "mine" / "notes.txt").write_text("")
    assert refused("train", TINY, "output=mine") == (
        "mine exists; continue that run with --resume, or choose another folder with output=..."
    )
    assert refused("train", TINY, "output=mine", "--resume").startswith("nothing to resume: mine holds no run")
    said = refused("evaluate", TINY, "--output", "mine", "--device", "cpu")
    assert said == "mine is not empty and is not an evaluation; choose another --output"


# --- recipes and comparisons -----------------------------------------------------------------------------------------

BROKEN = [
    (b"a: [1,\nb: {", "is not YAML: line 2, column 5: expected the node content, but found '<stream end>'"),
    (b"a: b: c", "is not YAML: line 1, column 5: mapping values are not allowed here"),
    (b"\ta: 1", "is not YAML: line 1, column 1: found character '\\t' that cannot start any token"),
    (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is not text in UTF-8 (byte 1); name a YAML file"),
    ("prompt: Straße".encode("latin-1"), "is not text in UTF-8 (byte 13); name a YAML file"),
    (b"a: \x00\n", "is not YAML: unacceptable character #x0000: special characters are not allowed"),
    (b"seed: 1\nupdates: 3\nseed: 2\n", "is not YAML: line 3, column 1: 'seed' is written twice; keep one"),
    (b"seed: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor for the tag"),
    (b"x: 2026-13-45\n", "is not YAML: month must be in 1..12"),
    (b"[" * 20_000, "is not YAML: brackets are nested too deeply"),
    (
        b"a: &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in b"abcdefgh"),
        "is not YAML: more than 20 aliases; write the values out",
    ),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message[:30] for _, message in BROKEN])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_file_that_is_no_yaml(command: str, content: bytes, message: str, refused: Refusal):
    (refused.folder / "file.yaml").write_bytes(content)
    said = refused(command, "file.yaml")
    assert said.startswith("file.yaml ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n", "file.yaml holds a list; a {} is a mapping of keys to values"),
        (b"hello", "file.yaml holds a str; a {} is a mapping of keys to values"),
        (b"17", "file.yaml holds a int; a {} is a mapping of keys to values"),
    ],
)
def test_yaml_that_is_no_mapping(content: bytes, message: str, refused: Refusal):
    (refused.folder / "file.yaml").write_bytes(content)
    assert refused("train", "file.yaml") == message.format("recipe")
    assert refused("compare", "file.yaml") == message.format("comparison")


def test_an_empty_recipe_says_what_it_needs(refused: Refusal):
    (refused.folder / "file.yaml").write_bytes(b"")
    assert refused("train", "file.yaml").startswith(
        "data.train_samples: critters are drawn without limit; set a number"
    )


def test_a_key_that_is_a_number(refused: Refusal):
    (refused.folder / "file.yaml").write_text("1: 2\ndata: {train_samples: 4}\n")
    assert refused("train", "file.yaml") == "1: keys should be strings, not 1"


def test_a_huge_value_is_not_repeated(refused: Refusal):
    (refused.folder / "file.yaml").write_text(f"data: {{train_samples: 4}}\nseed: [{'1, ' * 100_000}1]\n")
    assert refused("train", "file.yaml") == ("seed: input should be a valid integer, not [1, 1, 1, 1, 1, 1, ...]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "file.yaml: arms: "),
        ({"arms": {"a": {"optimizer.lrr": 1}}}, "file.yaml: arms.a: optimizer.lrr: unknown key; did you mean 'lr'?"),
        ({"arms": {"../a": None}}, "file.yaml: arms.../a: this name is taken or no name for a folder"),
        ({"seeds": [-1]}, "file.yaml: seeds.0: input should be greater than or equal to 0"),
        ({"seeds": []}, "file.yaml: seeds: "),
        ({"primary": {"arm": "b", "against": ["a"]}}, "file.yaml: primary: no arm is named 'b'; arms: a"),
        ({"recipe": "none"}, "no recipe 'none'"),
        ({"typo": 1}, "file.yaml: typo: extra inputs are not permitted"),
        ({"overrides": {"data.source": "none.json"}}, "none.json cannot be used, 1 problem:\n  no such file"),
        ({"overrides": {"model.path": "/no/such"}}, "no model in /no/such"),
        ({"overrides": {"device": "gpu"}}, "no device is named 'gpu'"),
    ],
)
def test_a_comparison(changes: dict[str, object], message: str, refused: Refusal):
    right = {
        "output": "out",
        "recipe": TINY,
        "seeds": [0],
        "primary": {"arm": "a", "against": ["a"]},
        "arms": {"a": None},
    }
    (refused.folder / "file.yaml").write_text(yaml.safe_dump({**right, **changes}))
    assert message in refused("compare", "file.yaml", "--jobs", 1)


# --- anything at all -------------------------------------------------------------------------------------------------

ODD: list[object] = [
    *(None, True, -1, 0, 1, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "\0", "\ud800"),
    *("1", "nan", "../..", "a" * 10_000, [], [[]], [None], {}, {"": {}}, {1: 2}, {"name": "dino"}, {"name": ["dino"]}),
    *(
        {"name": "os:system"},
        {"name": "http", "url": "ftp://x"},
        {"name": "http", "url": "http://[::1"},
        "dino x",
        "a=b",
    ),
]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_stands_in_a_recipe_it_loads_or_is_refused(seed: int, tmp_path: Path):
    """Settings of a good recipe get odd values, one to three at a time: `ConfigError` or a configuration, no crash."""
    draw = random.Random(seed)
    good = yaml.safe_load(Path(TINY).read_text()) | {"seed": 0, "rewards": {"identity": {"name": "dino"}}}
    refusals = 0
    for _ in range(100):
        values = yaml.safe_load(yaml.safe_dump(good))
        for _ in range(draw.randint(1, 3)):
            section = draw.choice([values, *(each for each in values.values() if isinstance(each, dict))])
            section[draw.choice([*section, "odd"])] = draw.choice(ODD)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            load_config(str(file))
        except ConfigError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize("seed", range(4))
def test_whatever_bytes_a_recipe_holds_it_loads_or_is_refused(seed: int, tmp_path: Path):
    """Random bytes, and a good recipe with some of them in it."""
    draw = random.Random(seed)
    good = Path(TINY).read_bytes()
    for number in range(100):
        content = draw.randbytes(draw.randint(0, 200))
        if number % 2:
            at = draw.randrange(len(good))
            content = good[:at] + content[:3] + good[at + draw.randint(0, 5) :]
        file = tmp_path / "recipe.yaml"
        file.write_bytes(content)
        with suppress(ConfigError):
            load_config(str(file))
