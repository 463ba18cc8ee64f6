"""Settings, recipes and options that a user gets wrong: one line per mistake, exit code 2, nothing written."""

import copy
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import yaml

from customized_grpo import fields
from customized_grpo.config import ConfigError, load_config
from program import TINY, Refusal

COMMANDS = ("train", "evaluate", "probe", "check-rewards")  # all that take a recipe and overrides
REFERENCE = ("--reference", "none.png", "--prompt", "a critter")


# --- settings --------------------------------------------------------------------------------------------------------

# A value outside the range of each type of number, and pydantic's sentence about it.
NUMBERS = {
    "Positive": ("optimizer.lr=0", "greater than 0, not 0"),
    "NonNegative": ("objective.kl=-1", "greater than or equal to 0, not -1"),
    "Share": ("max_unscored=1.5", "less than or equal to 1, not 1.5"),
    "Count": ("groups.prompts=0", "greater than or equal to 1, not 0"),
    "Index": ("updates=1000001", "less than or equal to 1000000, not 1000001"),
    "Seed": ("seed=9223372036854775808", "less than or equal to 9223372036854775807, not 9223372036854775808"),
    "Pixels": ("model.width=8193", "less than or equal to 8192, not 8193"),
    "Tokens": ("model.max_sequence_length=513", "less than or equal to 512, not 513"),
    "Rank": ("adapter.rank=4097", "less than or equal to 4096, not 4097"),
    "GroupSize": ("groups.size=1", "greater than or equal to 2, not 1"),
    "NoiseLevel": ("noise.level=0", "greater than or equal to 0.001, not 0"),
    "Shift": ("sampling.shift=101", "less than or equal to 100; or 'checkpoint', not 101"),
    "Decay": ("adapter.ema.decay=1", "less than 1, not 1"),
    "Steps": ("sampling.num_steps=1", "greater than or equal to 2, not 1"),
}

# One value of the wrong kind for each kind of field.
KINDS = {
    "number": (
        "optimizer.lr=fast",
        "optimizer.lr: input should be a valid number, unable to parse string as a number, not 'fast'",
    ),
    "finite": ("noise.level=.nan", "noise.level: input should be a finite number, not nan"),
    "integer": ("seed=1.5", "seed: input should be a valid integer, got a number with a fractional part, not 1.5"),
    "boolean": (
        "model.shard=maybe",
        "model.shard: input should be a valid boolean, unable to interpret input, not 'maybe'",
    ),
    "text": ("output=null", "output: input should be a valid string, not None"),
    "literal": ("model.dtype=float16", "model.dtype: input should be 'float32' or 'bfloat16', not 'float16'"),
    "list": ("tracking=wandb", "tracking: write a list such as [wandb], not 'wandb'"),
    "set or list": (
        "adapter.targets=to_q",
        "adapter.targets: input should be 'attention', 'attention_and_output' or 'all'; or a list such as [to_q], "
        "not 'to_q'",
    ),
    "member": (
        "tracking=[mlflow]",
        "tracking.0: input should be 'tensorboard', 'wandb' or 'trackio', not 'mlflow'",
    ),
    "mapping": ("rewards=1", "rewards: write keys with values, such as {key: value}, not 1"),
    "section": ("optimizer=[1]", "optimizer: write keys with values, such as {key: value}, not [1]"),
}


@pytest.mark.parametrize(("override", "bound"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_out_of_range(override: str, bound: str, refused: Refusal):
    assert refused.train(override) == f"{override.partition('=')[0]}: input should be {bound}"


@pytest.mark.parametrize(("override", "message"), KINDS.values(), ids=KINDS)
def test_a_value_of_the_wrong_kind(override: str, message: str, refused: Refusal):
    assert refused.train(override) == message


def test_every_type_of_number_has_a_case():
    annotated = {name: kind for name, kind in vars(fields).items() if get_origin(kind) is Annotated}
    assert set(NUMBERS) == {name for name, kind in annotated.items() if get_args(kind)[0] in (int, float)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=true", "seed: write a number, not true"),
        # names
        ("optimzer.lr=1", "optimzer: unknown key; did you mean 'optimizer'.*"),
        ("optimizer.rl=1", "optimizer.rl: unknown key; known here: lr, .*"),
        # syntax
        ("updates", "updates: an override is written key=value, for instance optimizer.lr=1e-4"),
        ("=1", "=1: an override is written key=value, .*"),
        ("clip_t,", "clip_t,: an override is written key=value, .*; put quotes around a value with spaces"),
        ("optimizer..lr=1", r"optimizer..lr=1: an override is written key=value, .*"),
        ("updates.x=1", "updates.x=1: updates is a value, not a section of keys"),
        ("seed=[1", r"seed: '\[1' is not YAML: line 1, column 3: .*"),
        ("data={source: a, source: b}", "data: .* is not YAML: line 1, column 13: 'source' is written twice; .*"),
        ("seed=!!python/object/apply:os.getcwd []", "seed: .* is not YAML: .*could not determine a constructor .*"),
        # contradictions
        ("window.size=9", "window.size: must be at most 3 within steps 0 to 2, not 9"),
        ("window.start=1", 'window: start is only for the strategy "fixed", not "random"; set window.start=null'),
        ("weighting.start=.9", "weighting: start 0.9, centre 0.4 and end 0.88 must be in this order"),
        ("data.train_samples=null", "data.train_samples: critters are drawn without limit; set a number, .*"),
        # rewards
        ("rewards.identity=dyno", "rewards.identity.name: no reward is named 'dyno'; did you mean 'dino'.*"),
        ("rewards.x={name: dino}", "rewards.x.role: is missing; set it to identity, prompt or quality"),
        ("rewards.x={name: dino, role: quality}", "rewards.x.weight: is missing; a quality reward needs a weight, .*"),
        ("rewards.a-b={name: dino, role: quality, weight: 1}", "rewards.a-b: the key becomes part of file names; .*"),
        ("evaluation.metrics=[5]", "evaluation.metrics.0.name: no reward is named '5'; known here: dino, .*"),
        ("evaluation.metrics=['']", "evaluation.metrics.0.name: no reward is named ''.*"),
    ],
)
def test_a_setting(override: str, message: str, refused: Refusal):
    answer = refused.train(override)
    assert re.fullmatch(message, answer), answer


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_all_mistakes_at_once(command: str, refused: Refusal):
    message = refused(command, TINY, "updates=x", "optimizer.lrr=1", "noise.level=.nan", "oops", "seed=-1")
    assert [line.split(":")[0] for line in message.split("\n")] == [
        *("oops", "seed", "updates", "noise.level", "optimizer.lrr")
    ]


UNKNOWN_DEVICE = "no device is named 'gpu'; use cpu, cuda or cuda:1"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", re.escape(UNKNOWN_DEVICE)),
        ("meta", "device meta is not supported; use cpu, cuda or cuda:1"),
        ("cuda:99", "device cuda:99: .*; use device=c.*"),
    ],
)
def test_a_device(device: str, message: str, refused: Refusal):
    answer = refused.train(f"device={device}")
    assert re.fullmatch(message, answer), answer


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", TINY, "rewards.identity.device=gpu"),
        ("evaluate", TINY, "--device", "gpu"),
        ("probe", TINY, "device=gpu", "--prompts", 2, "--draws", 2),
        ("check-rewards", TINY, "device=gpu"),
        ("demo", "--device", "gpu"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_refuses_an_unknown_device(arguments: Sequence[object], refused: Refusal):
    assert refused(*arguments) == UNKNOWN_DEVICE


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # typer's own sentences: one for each kind of option, and for each bound that protects a computation
        (("generate", *REFERENCE, "--seed", "one"), "Invalid value for '--seed': Input should be a valid integer"),
        (("generate", *REFERENCE, "--seed", -1), "Invalid value for '--seed': Input should be greater than or equal"),
        (
            ("generate", *REFERENCE, "--size", 8193),
            "Invalid value for '--size': Input should be less than or equal to",
        ),
        (("demo", "--cases", 11), "Invalid value for '--cases': Input should be greater than or equal to 12"),
        (("probe", TINY, "--prompts", 1), "Invalid value for '--prompts': Input should be greater than or equal to 2"),
        (("train", "critters", "--lr", 1), "No such option: --lr"),
        (("trian", "critters"), "No such command 'trian'"),
        (("train",), "Missing argument 'recipe'"),
        # this program's
        (("evaluate", TINY, "--metric", "dyno"), "metric 'dyno': name: no reward is named 'dyno'"),
        (("check-rewards", TINY, "--metric", ""), "metric '': name: no reward is named ''"),
        (("probe", TINY, "data.train_samples=3", "--prompts", 4), "3 training samples cannot give 4 prompts"),
        (("compare", "none.yaml"), "none.yaml cannot be read: No such file or directory"),
        (("report", "none"), "none is not a folder; name the folder of a run"),
        (("train", "critter"), "no recipe 'critter'; did you mean 'critters'"),
        (("train", "x" * 300), "cannot be read: File name too long"),
    ],
)
def test_an_option(arguments: Sequence[object], message: str, refused: Refusal):
    assert message in refused(*arguments)


def test_an_output_that_is_a_file_or_inside_one(refused: Refusal):
    (refused.folder / "file").write_text("")
    for command in ("evaluate", "probe", "check-rewards"):
        for output in ("file", "file/folder"):
            message = refused(command, TINY, "device=cpu", "--output", output)
            assert message == f"--output {output}: {refused.folder / 'file'} is a file; name another folder"
    for output in ("file", "file/run"):
        problem = f"{refused.folder / 'file'} is a file; choose another folder with output=..."
        assert refused("train", TINY, f"output={output}") == f"cannot write into {output}: {problem}"
    assert refused("demo", "--output", "file", "--device", "cpu").startswith("file exists; name another folder")


def test_an_output_that_holds_other_files(refused: Refusal):
    (refused.folder / "mine").mkdir()
    (refused.folder / "mine" / "notes.txt").write_text("")
    assert refused("train", TINY, "output=mine") == (
        "mine exists; continue that run with --resume, or choose another folder with output=..."
    )
    assert refused("train", TINY, "output=mine", "--resume").startswith("nothing to resume: mine holds no run")
    message = refused("evaluate", TINY, "--output", "mine", "--device", "cpu")
    assert message == "mine is not empty and is not an evaluation; choose another --output"


# --- recipes and comparisons -----------------------------------------------------------------------------------------

# Nine lists of nine aliases of the one before: nine to the ninth power, if they were written out.
ALIASES = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter + 1, letter + 1, b", ".join([b"*%c" % letter] * 9)) for letter in b"abcdefgh"
)

NOT_YAML = [
    (b"a: [1,\nb: {", "is not YAML: line 2, column 5: expected the node content, but found '<stream end>'"),
    (b"a: b: c", "is not YAML: line 1, column 5: mapping values are not allowed here"),
    (b"\ta: 1", "is not YAML: line 1, column 1: found character '\\t' that cannot start any token"),
    (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is not text in UTF-8 (byte 1); name a YAML file"),
    ("prompt: Straße".encode("latin-1"), "is not text in UTF-8 (byte 13); name a YAML file"),
    (b"a: \x00\n", "is not YAML: unacceptable character #x0000: special characters are not allowed"),
    (b"seed: 1\nupdates: 3\nseed: 2\n", "is not YAML: line 3, column 1: 'seed' is written twice; keep one"),
    (b"seed: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor for the tag"),
    (b"x: 2026-13-45\n", "is not YAML: month must be in 1..12"),
    (b"[" * 500, "is not YAML: brackets are nested too deeply"),
    (ALIASES, "is not YAML: more than 20 aliases; write the values out"),
]


@pytest.mark.parametrize(("content", "message"), NOT_YAML, ids=[message[:30] for _, message in NOT_YAML])
def test_a_recipe_that_is_not_yaml(content: bytes, message: str, refused: Refusal):
    (refused.folder / "file.yaml").write_bytes(content)
    answer = refused.line("train", "file.yaml")
    assert answer.startswith("file.yaml ")
    assert message in answer


def test_a_comparison_that_is_not_yaml(refused: Refusal):
    content, message = NOT_YAML[0]
    (refused.folder / "file.yaml").write_bytes(content)
    assert refused.line("compare", "file.yaml") == f"file.yaml {message}"


@pytest.mark.parametrize(("content", "kind"), [("- a\n", "list"), ("hello", "str")])
def test_yaml_that_is_not_a_mapping(content: str, kind: str, refused: Refusal):
    (refused.folder / "file.yaml").write_text(content)
    for command, what in (("train", "recipe"), ("compare", "comparison")):
        assert refused(command, "file.yaml") == f"file.yaml holds a {kind}; a {what} is a mapping of keys to values"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "data.train_samples: critters are drawn without limit; set a number, for instance 2000"),
        # a long value is not repeated
        (
            f"data: {{train_samples: 4}}\nseed: [{'1, ' * 1000}1]\n",
            "seed: input should be a valid integer, not [1, 1, 1, 1, 1, 1, ...]",
        ),
    ],
    ids=["empty", "long value"],
)
def test_a_recipe(content: str, message: str, refused: Refusal):
    (refused.folder / "file.yaml").write_text(content)
    assert refused("train", "file.yaml") == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "file.yaml: arms: "),
        ({"arms": {"a": {"optimizer.lrr": 1}}}, "file.yaml: arms.a: optimizer.lrr: unknown key; did you mean 'lr'?"),
        ({"arms": {"../a": None}}, "file.yaml: arms.../a: this is not a name for a folder"),
        ({"seeds": [-1]}, "file.yaml: seeds.0: input should be greater than or equal to 0"),
        ({"seeds": []}, "file.yaml: seeds: "),
        ({"primary": {"arm": "b", "against": ["a"]}}, "file.yaml: primary: no arm is named 'b'; arms: a"),
        ({"recipe": "none"}, "no recipe 'none'"),
        ({"typo": 1}, "file.yaml: typo: extra inputs are not permitted"),
        ({"overrides": {"data.source": "none.json"}}, "none.json cannot be used, 1 problem:\n  no such file"),
        ({"overrides": {"model.path": "/no/such"}}, "no model in /no/such"),
        ({"overrides": {"device": "gpu"}}, UNKNOWN_DEVICE),
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
    *({"name": "os:system"}, {"name": "http", "url": "ftp://x"}, {"name": "http", "url": "http://[::1"}),
    *("dino x", "a=b"),
]


@pytest.mark.parametrize("seed", range(2))
def test_a_recipe_with_any_values_loads_or_is_refused(seed: int, tmp_path: Path):
    """One to three settings of a good recipe get odd values: a configuration or `ConfigError`, never a crash."""
    draw = random.Random(seed)
    good = yaml.safe_load(Path(TINY).read_text()) | {"seed": 0, "rewards": {"identity": {"name": "dino"}}}
    refusals = 0
    for _ in range(100):
        values = copy.deepcopy(good)
        for _ in range(draw.randint(1, 3)):
            section = draw.choice([values, *(value for value in values.values() if isinstance(value, dict))])
            section[draw.choice([*section, "odd"])] = draw.choice(ODD)
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            load_config(str(file))
        except ConfigError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize("seed", range(2))
def test_a_recipe_with_any_bytes_loads_or_is_refused(seed: int, tmp_path: Path):
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
