import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from customized_grpo import cli
from customized_grpo.config import RunConfig, load_config, recipes
from customized_grpo.data import Sample
from customized_grpo.data.images import PictureError
from customized_grpo.training.trainer import Trainer
from program import Answer, start

COMMANDS = (
    *("demo", "train", "generate", "evaluate", "compare", "probe", "check-rewards", "report"),
    *("export", "push", "plan", "build-critters", "env", "studio"),
)
PROMPT = "a critter in the snow, in the centre, without a hat"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Starts the program in this process. If it fails, `error` is only the message, without bars and notes."""

    def run_program(*arguments: object) -> Answer:
        answer = start(arguments, monkeypatch, capsys)
        if not answer.code:
            return answer
        message = answer.error[max(answer.error.find("error: "), 0) :]  # after progress bars and notes
        return answer._replace(error=message.rstrip("\n"))

    return run_program


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Recipe and overrides for a run of one update into tmp_path / "run"."""
    recipe = Path(__file__).with_name("tiny.yaml")
    return [
        *(str(recipe), f"output={tmp_path / 'run'}", "groups.size=2", "sampling.num_steps=3", "window.last=1"),
        *("data.train_samples=4", "data.held_out_samples=2", "evaluation.every=1"),
    ]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_answers_without_heavy_libraries():
    """The help of the program and of every command, in a fresh interpreter."""
    script = f"""
import sys
from typer.testing import CliRunner
from customized_grpo.cli import app
for arguments in [[], *([command] for command in {COMMANDS})]:
    answer = CliRunner().invoke(app, [*arguments, "--help"])
    assert answer.exit_code == 0, answer.output
    assert "Usage" in answer.output and "--help" in answer.output
for command in {COMMANDS}:
    assert command in CliRunner().invoke(app, ["--help"]).output
heavy = {{"torch", "diffusers", "transformers", "peft", "numpy", "PIL", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_help_fits_into_80_columns():
    """No command's summary is cut off."""
    for command in ([], *([name] for name in COMMANDS)):
        text = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "80"}).output
        assert max(map(len, text.splitlines())) <= 80
        _, _, commands = text.partition("Commands:")
        assert "..." not in commands


def test_the_installed_program_reports_mistakes_without_a_traceback(tmp_path: Path):
    """The only test that starts the installed program: exit code and stderr."""
    program = Path(sys.executable).with_name("customized-grpo")
    result = subprocess.run(
        [program, "train", "critters", "optimizer.lrr=1", "updates=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: updates: input should be a valid integer, unable to parse string as an integer, not 'x'",
        "optimizer.lrr: unknown key; did you mean 'lr'?",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_the_installed_one(run: Callable[..., Answer]):
    answer = run("--version")
    assert (answer.code, answer.out) == (0, f"customized-grpo {version('customized-grpo')}\n")


def test_without_a_command_the_program_shows_its_help(run: Callable[..., Answer]):
    answer = run()
    assert all(command in answer.out + answer.error for command in COMMANDS)


# --- train -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", recipes())
def test_a_dry_run_prints_the_resolved_config_and_does_nothing(
    recipe: str, run: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a GPU and without the models; what a recipe leaves to the user, its data, is missed."""
    monkeypatch.chdir(tmp_path)
    answer = run("train", recipe, "optimizer.lr=1e-5", "--dry-run", "--device", "cuda:1")
    missing = {"list.json": "list.json", "photos": "photos", "dreambench": "dreambooth"}
    source = load_config(recipe).data.source
    assert answer.code == (2 if source in missing else 0)
    assert [
        line for line in answer.error.splitlines() if "error" in line and missing.get(source, "") not in line
    ] == []
    assert RunConfig.model_validate(yaml.safe_load(answer.out)) == load_config(
        recipe, ["optimizer.lr=1e-5", "device=cuda:1"]
    )
    assert list(tmp_path.iterdir()) == []


def test_train_takes_output_seed_and_device_as_options(run: Callable[..., Answer], tmp_path: Path):
    answer = run("train", "critters", "--dry-run", "--output", tmp_path / "x", "--seed", "7", "--device", "cpu")
    config = yaml.safe_load(answer.out)
    assert (config["output"], config["seed"], config["device"]) == (str(tmp_path / "x"), 7, "cpu")
    assert "--seed" in run("train", "critters", "--seed", "-1").error


def test_train_resume_and_the_two_ways_out(run: Callable[..., Answer], tiny: list[str], tmp_path: Path):
    first = run("train", *tiny, "--device", "cpu")
    assert (first.code, first.out) == (0, f"adapter: {tmp_path / 'run' / 'adapter'}\n")
    assert "note: with 3 steps no trained step reaches the final phase" in first.error
    assert "held-out cases, update 0 -> 1: identity_reward " in first.error
    assert f"as a page: customized-grpo report {tmp_path / 'run'}" in first.error
    again = run("train", *tiny)
    assert again.code == 2
    assert again.error.startswith("error: ")
    assert "--resume" in again.error
    assert "output=" in again.error
    assert run("train", *tiny, "updates=2", "--resume").code == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["update"] for row in rows] == [1, 2]


def test_a_moved_run_continues_in_its_new_folder(run: Callable[..., Answer], tiny: list[str], tmp_path: Path):
    assert run("train", *tiny, "--device", "cpu").code == 0
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert run("train", moved, "--resume", "updates=2").out == f"adapter: {moved / 'adapter'}\n"
    assert len((moved / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "run").exists()
    assert "holds no run" in run("train", moved, "--resume", f"output={tmp_path / 'run'}").error


@pytest.fixture
def odd_photographs(tmp_path: Path) -> Path:
    """A list of pictures as users have them: any size, rotated by EXIF, alpha, grey, CMYK, sixteen bits, a palette."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    pictures = {
        "cat/turned.jpg": (Image.fromarray(noise(90, 160, 3)), {"exif": exif}),
        "cat/alpha.png": (Image.fromarray(noise(70, 50, 4)), {}),
        "dog/grey.png": (Image.fromarray(noise(33, 47)), {}),
        "dog/print.jpg": (Image.fromarray(noise(64, 64, 4), "CMYK"), {}),
        "cup/deep.png": (Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16)), {}),
        "cup/palette.gif": (Image.fromarray(noise(20, 300, 3)).quantize(16), {}),
    }
    for name, (picture, options) in pictures.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name, **options)
    entries = [{"prompt": f"a {name.split('/')[0]} in the snow", "image_paths": [name]} for name in pictures]
    file = tmp_path / "list.json"
    file.write_text(json.dumps(entries))
    return file


def test_train_on_photographs(run: Callable[..., Answer], tiny: list[str], odd_photographs: Path, tmp_path: Path):
    overrides = [f"data.source={odd_photographs}", "data.train_samples=null", "groups.prompts=4"]
    answer = run("train", *tiny, *overrides)
    assert answer.code == 0, answer.error
    folder = tmp_path / "run"
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "evaluations.jsonl", "images", "adapter"}
    assert expected <= {path.name for path in folder.iterdir()}
    (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert row["unscored"] == 0
    assert row["gradient_norm"] > 0
    evaluations = list(map(json.loads, (folder / "evaluations.jsonl").read_text().splitlines()))
    assert -1 <= evaluations[1]["identity_reward"] <= 1
    assert evaluations[1]["joint_success"] is None  # the oracle can only read critters
    assert Image.open(folder / "images" / "eval-00001.png").width > 500
    assert (folder / "adapter" / "pytorch_lora_weights.safetensors").stat().st_size > 10_000


def test_train_on_dreambench(run: Callable[..., Answer], tiny: list[str], tmp_path: Path):
    """Reads and checks all 750 real cases, then trains one update."""
    default = Path(__file__).parents[2] / "shared" / "dreambench"
    photographs = Path(os.environ.get("CUSTOMIZED_GRPO_DREAMBENCH", default))
    if not photographs.is_dir():
        pytest.skip("the DreamBench photographs are not on this machine")
    source = photographs / "reference_list_750.json"
    answer = run("train", *tiny, f"data.source={source}", "data.train_samples=null")
    assert answer.code == 0, answer.error
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert (row["update"], row["unscored"]) == (1, 0)
    assert (tmp_path / "run" / "images" / "eval-00001.png").is_file()
    assert (tmp_path / "run" / "adapter" / "sampling.json").is_file()


def test_bad_input_is_an_error_message(run: Callable[..., Answer], tiny: list[str], tmp_path: Path):
    answer = run("train", *tiny, "evaluation.every=0", "model.height=30")
    assert answer.code == 2
    assert answer.error.startswith("error: pictures of 32x30 pixels; this model needs multiples of 4")
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_a_failure_during_the_run_has_its_own_exit_code(run: Callable[..., Answer], tiny: list[str]):
    overrides = ["evaluation.every=0", "optimizer.warmup=0", "optimizer.lr=1e12", "objective.updates_per_rollout=2"]
    answer = run("train", *tiny, *overrides)
    assert answer.code == 1
    assert answer.error.startswith("error: the loss is not finite at update 1")


def test_bad_input_in_the_middle_of_a_run_is_a_failure_of_the_run(
    run: Callable[..., Answer], tiny: list[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(_trainer: Trainer) -> None:
        raise PictureError("the photographs are gone")

    monkeypatch.setattr(Trainer, "step", fail)
    answer = run("train", *tiny)
    assert (answer.code, answer.error) == (1, "error: the photographs are gone")


def test_a_full_disk_is_a_failure_of_the_run(
    run: Callable[..., Answer], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: Path, __: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    where = ("--output", tmp_path / "out", "--steps", 1, "--device", "cpu")
    answer = run("generate", "--reference", reference, "--prompt", PROMPT, *where)
    assert answer.code == 1
    assert re.fullmatch(r"error: could not write \S+\.png: No space left on device", answer.error.splitlines()[-1])


@pytest.mark.parametrize(
    "error",
    [RuntimeError("not for users"), ValueError("not for users"), OSError("not for users"), KeyError("not for users")],
)
def test_other_exceptions_keep_their_traceback(error: Exception, tiny: list[str], monkeypatch: pytest.MonkeyPatch):
    """Only `InputError` and `RunError` are one line; standard exceptions are bugs."""

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("customized_grpo.commands.start.assemble", broken)
    monkeypatch.setattr(sys, "argv", ["customized-grpo", "train", *tiny])
    with pytest.raises(type(error), match="not for users"):
        cli.main()


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("train", "critters"), "customized_grpo.commands.start.assemble"),
        (
            ("generate", "--reference", "dog.png", "--prompt", "a dog"),
            "customized_grpo.commands.generate.write_pictures",
        ),
    ],
)
def test_out_of_memory_is_one_line(
    command: tuple[str, ...], place: str, run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
):
    """Out of memory before the first update. The error is simulated."""

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(place, exhausted)
    answer = run(*command)
    assert answer.code == 1
    assert answer.error.startswith("error: out of memory (CUDA out of memory. Tried to allocate 24.00 GiB.); make ")
    assert "model.offload_text_encoders=true" in answer.error


@pytest.mark.parametrize(("chosen", "count"), [(None, "3000"), ("17", "17")])
def test_threads_sleep_soon_unless_the_user_sets_another_time(
    chosen: str | None, count: str, run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GOMP_SPINCOUNT", chosen or "")  # pytest restores the variable afterwards
    if chosen is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    assert run("--version").code == 0
    assert os.environ["GOMP_SPINCOUNT"] == count


# --- generate and env ------------------------------------------------------------------------------------------------


@pytest.fixture
def reference(tmp_path: Path, samples: list[Sample]) -> Path:
    file = tmp_path / "reference.png"
    samples[0].reference_images()[0].save(file)
    return file


def test_generate_writes_a_picture_for_each_prompt_and_seed(
    run: Callable[..., Answer], reference: Path, tmp_path: Path
):
    listed = tmp_path / "prompts.txt"
    listed.write_text("a critter at night\n\n  a critter in the city  \n", encoding="utf-8")
    out = tmp_path / "out"
    answer = run(
        *("generate", "--reference", reference, "--prompt", PROMPT, "--prompts", listed, "--output", out),
        *("--seed", 1, "--seed", 2, "--steps", 2, "--device", "cpu"),
    )
    assert answer.code == 0, answer.error
    written = [Path(line) for line in answer.out.splitlines()]
    assert sorted(written) == sorted(out.iterdir())
    assert [path.name for path in written] == [
        f"00{number}-reference-{prompt}-{seed}.png"
        for number, prompt in enumerate(
            ["a-critter-in-the-snow-in-the-centre-with", "a-critter-at-night", "a-critter-in-the-city"]
        )
        for seed in (1, 2)
    ]
    assert all(Image.open(path).size == (32, 32) for path in written)


def test_generate_compares_base_and_tuned(
    run: Callable[..., Answer], tiny: list[str], reference: Path, tmp_path: Path
):
    assert run("train", *tiny).code == 0
    out, adapter = tmp_path / "out", tmp_path / "run" / "adapter"
    answer = run(
        *("generate", "--reference", reference, "--prompt", PROMPT, "--output", out),
        *("--adapter", adapter, "--compare", "--device", "cpu"),
    )
    assert answer.code == 0, answer.error
    tuned, row = sorted(out.iterdir(), key=lambda path: len(path.name))
    assert row.name == f"{tuned.stem}-compare.png"
    assert Image.open(row).width == 3 * 256 + 2 * 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--reference", "/no/such.png", "--prompt", PROMPT], "/no/such.png: no such file or directory; check the"),
        (["--prompt", PROMPT], "no reference; name a picture of the subject with --reference"),
        (["--reference", "{reference}"], "no prompt; say what to show with --prompt"),
        (["--reference", "{reference}", "--prompts", "/no/such.txt"], "/no/such.txt"),
        (["--reference", "{reference}", "--prompt", PROMPT, "--compare"], "name the adapter with --adapter"),
        (["--reference", "{reference}", "--prompt", PROMPT, "--adapter", "/no/such"], "no adapter in /no/such"),
    ],
)
def test_generate_reports_what_is_missing(
    arguments: list[str], complaint: str, run: Callable[..., Answer], reference: Path, tmp_path: Path
):
    given = [argument.format(reference=reference) for argument in arguments]
    answer = run("generate", *given, "--output", tmp_path / "out", "--device", "cpu", "--steps", 1)
    assert answer.code == 2
    assert answer.error.startswith("error: ")
    assert complaint in answer.error
    assert "\n" not in answer.error


def test_env_prints_versions_as_json(run: Callable[..., Answer]):
    answer = run("env")
    assert answer.code == 0
    assert json.loads(answer.out)["packages"]["torch"] == torch.__version__
