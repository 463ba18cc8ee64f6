"""calibration.yaml: written and read, by this package and by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.algorithm import Calibration
from customized_grpo.calibration.file import (
    CalibrationError,
    Level,
    MeasuredReward,
    as_text,
    check_calibration,
    read_calibration,
)
from customized_grpo.config import RunConfig

MakeConfig = Callable[..., RunConfig]
MEASURED = MeasuredReward(
    reward="dino model=critters",
    capped=True,
    bad=Level(mean=0.0489839, interval=(0.000923034, 0.0954247), pictures=64, what="other subjects"),
    good=Level(mean=0.765947, interval=(0.743984, 0.788001), pictures=64, what="other views"),
)
UNFIT = MeasuredReward(
    reward="clip_t model=critters",
    bad=Level(mean=0.2, interval=(0.1, 0.3), pictures=9, what="wrong prompts"),
    good=Level(mean=0.4, interval=(0.25, 0.5), pictures=9, what="right prompts"),
)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "calibration.yaml").write_text(text)
        return tmp_path / "calibration.yaml"

    return write


def complaint(file: Path) -> str:
    with pytest.raises(CalibrationError) as caught:
        read_calibration(file)
    return str(caught.value).replace(f"{file}: ", "")


def test_what_was_measured_is_read_again(written: Callable[[str], Path]):
    (known,) = read_calibration(written(as_text({"identity": MEASURED}))).items()
    assert known[0] == "identity"
    assert known[1].model_dump() == MEASURED.model_dump()
    assert known[1].scale() == Calibration(0.0489839, 0.765947, capped=True)


def test_a_short_file_by_hand(written: Callable[[str], Path], make_config: MakeConfig):
    """No settings, intervals or numbers of pictures; identity is capped, the prompt is not."""
    file = written("identity: {bad: 0.1, good: 0.8}\nprompt: {bad: -1, good: 1e1}\nfine: {bad: 0, good: 1}\n")
    config = make_config("rewards.fine={name: clip_i, role: identity}")
    known = check_calibration(read_calibration(file), config, file)
    assert {key: each.scale() for key, each in known.items()} == {
        "identity": Calibration(0.1, 0.8, capped=True),
        "prompt": Calibration(-1, 10, capped=False),
        "fine": Calibration(0, 1, capped=True),
    }
    written("identity: {bad: 0.1, good: 0.8, capped: false}\n")
    assert not check_calibration(read_calibration(file), config, file)["identity"].scale().capped


def test_the_file_holds_rewards_that_training_refuses(written: Callable[[str], Path]):
    """.25, where the interval of good begins, is below .3, where that of bad ends."""
    assert not UNFIT.told_apart
    assert MEASURED.told_apart
    assert complaint(written(as_text({"identity": MEASURED, "prompt": UNFIT}))) == (
        "rewards.prompt: it cannot tell good pictures (right prompts: 0.4 [0.25, 0.5]) from bad ones (wrong prompts: "
        "0.2 [0.1, 0.3]); choose another reward or encoder, or measure on more pictures: check-rewards with a larger "
        "--cases"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: {bad: 0.8, good: 0.1}", "rewards.prompt: it cannot tell good pictures (mean: 0.1) from bad ones"),
        ("prompt: {bad: 0.1, good: 0.1}", "rewards.prompt: it cannot tell"),
        ("prompt: {bad: 0.1}", "rewards.prompt: good: is missing and has no default; set it"),
        ("prompt: {bad: 0.1, good: high}", "rewards.prompt: good.mean: input should be a valid number"),
        ("prompt: {bad: 0.1, good: .inf}", "rewards.prompt: good.mean: input should be"),
        ("prompt: {bad: .nan, good: 1}", "rewards.prompt: bad.mean: input should be"),
        ("prompt: {bad: false, good: 1}", "rewards.prompt: bad.mean: write a number, not false"),
        ("prompt: {bad: null, good: 1}", "rewards.prompt: bad.mean: input should be a valid number"),
        ("prompt: {bad: 0, good: 1, caped: true}", "rewards.prompt: caped: unknown key; did you mean 'capped'?"),
        ("prompt: {bad: {mean: 0, n: 3}, good: 1}", "rewards.prompt: bad.n: unknown key; known here: mean, interval"),
        ("prompt: {bad: {mean: 0, interval: [1, -1]}, good: 2}", "interval: [1.0, -1.0] begins above its end"),
        ("prompt: {bad: {mean: 0, interval: [1]}, good: 2}", "rewards.prompt: bad.interval"),
        ("prompt: 0.3", "rewards.prompt: write keys with values"),
        ("", "write a key for each reward, such as identity: {bad: 0.1, good: 0.8}, not None"),
        ("[1, 2]", "write a key for each reward, such as identity: {bad: 0.1, good: 0.8}, not [1, 2]"),
        ("prompt: {bad: 0, good: 1", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(text: str, message: str, written: Callable[[str], Path]):
    told = complaint(written(text))
    assert message in told
    assert "\n" not in told


def test_every_mistake_is_told(written: Callable[[str], Path]):
    told = complaint(written("identity: {bad: 1, good: 0}\nprompt: {bad: 1}\n"))
    assert [line.partition(":")[0] for line in told.splitlines()] == ["rewards.identity", "rewards.prompt"]


def test_a_missing_file_says_so(tmp_path: Path):
    assert "cannot be read: No such file" in complaint(tmp_path / "none.yaml")


def test_a_calibration_fits_a_reward_that_runs_elsewhere(make_config: MakeConfig, written: Callable[[str], Path]):
    """With other batches, or on a server that has moved; another path on it may be another scorer."""
    of_server = MEASURED.model_copy(update={"reward": "http url=http://old:1/score batch=4"})
    file = written(as_text({"identity": MEASURED, "prompt": of_server}))
    server = "rewards.prompt={name: http, url: http://new:2/PATH, retries: 5}"
    config = make_config("rewards.identity.batch=32", server.replace("PATH", "score"))
    assert set(check_calibration(read_calibration(file), config, file)) == {"identity", "prompt"}
    with pytest.raises(CalibrationError, match=r"was 'http .*old:1/score .* and is 'http .*new:2/other'"):
        check_calibration(read_calibration(file), make_config(server.replace("PATH", "other")), file)


def test_a_calibration_of_an_own_reward_with_options_fits_it(make_config: MakeConfig, written: Callable[[str], Path]):
    own = "rewards.identity={name: 'scores.py:Own', options: {weights: [1, 2.5], mode: \"a 'b' c\"}, timeout: 1200}"
    config = make_config(own)
    measured = MEASURED.model_copy(update={"reward": str(config.rewards["identity"].as_metric())})
    file = written(as_text({"identity": measured}))
    assert set(check_calibration(read_calibration(file), config, file)) == {"identity"}
    other = make_config(own.replace("2.5", "3"))
    with pytest.raises(CalibrationError, match=r"was .*2\.5.* and is .*3.*; measure again"):
        check_calibration(read_calibration(file), other, file)


@pytest.mark.parametrize(
    ("key", "reward", "message"),
    [
        ("identty", None, "rewards.identty: the run has no identity or prompt reward under this key; did you mean"),
        ("taste", None, "rewards.taste: the run has no identity or prompt reward under this key; they are identity"),
        (
            "identity",
            "dino model=critters region=centre",
            "rewards.identity was 'dino model=critters region=centre' and is 'dino model=critters'; measure again",
        ),
    ],
)
def test_a_calibration_of_other_rewards_is_refused(
    key: str, reward: str | None, message: str, make_config: MakeConfig, written: Callable[[str], Path]
):
    """ "taste" is a quality reward, which has no calibration."""
    config = make_config("rewards.taste={name: clip_t, role: quality, weight: .2}")
    file = written(as_text({key: MEASURED.model_copy(update={"reward": reward})}))
    with pytest.raises(CalibrationError) as caught:
        check_calibration(read_calibration(file), config, file)
    assert str(caught.value).startswith(f"{file}: {message}")
