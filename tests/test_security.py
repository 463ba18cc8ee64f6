"""What SECURITY.md promises. Paths of lists: also test_bad_data.py; weights: also test_bad_models.py; keys of servers:
tests/rewards/test_remote.py, test_http.py; the page: tests/report/test_report_security.py."""

import ast
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.config import RunConfig, load_config
from customized_grpo.critters.weights import FOLDER
from customized_grpo.data import DataError, load_list
from customized_grpo.data.syncd import load_syncd
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.paths import inside
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.report import write_report
from customized_grpo.run.directory import environment
from customized_grpo.training.trainer import Trainer
from program import TINY, Refusal, start
from structure import parsed

KEY = "sk-Very5ecretKey"


PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "torch.load", "torch.save", "np.load", "numpy.load", "yaml.unsafe_load", "yaml.full_load"),
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# --- nothing is unpickled, no foreign code runs ----------------------------------------------------------------------


def pickling_imports(tree: ast.AST) -> Iterator[int]:
    """Line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if names & PICKLING:
                yield node.lineno


def unsafe_calls(tree: ast.AST) -> Iterator[int]:
    """Line numbers of calls that could run what they read."""
    for name, call in calls(tree):
        keywords = {keyword.arg for keyword in call.keywords}
        if (
            name in UNSAFE_CALLS
            or name.endswith(("read_pickle", "load_checkpoint_and_dispatch"))
            or keywords & {"trust_remote_code", "allow_pickle"}
            # _Loader is a SafeLoader: see the test of tags below
            or (name in ("yaml.load", "yaml.load_all") and ast.unparse(call.args[1]) != "_Loader")
        ):
            yield call.lineno


def test_no_source_file_unpickles_or_runs_what_it_reads():
    assert {
        f"{file}:{line}" for file, tree in parsed().items() for line in (*pickling_imports(tree), *unsafe_calls(tree))
    } == set()


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from joblib import load", "torch.load(f)", "eval('1')", "yaml.load(f, yaml.Loader)"),
        *("np.load(f, allow_pickle=True)", "M.from_pretrained(f, trust_remote_code=True)", "pd.read_pickle(f)"),
    ],
)
def test_such_a_line_would_be_found(line: str):
    assert [*pickling_imports(tree := ast.parse(line)), *unsafe_calls(tree)] == [1]


def test_every_model_is_loaded_from_safetensors_alone():
    """Every call that loads weights says so; tokenizers, processors and configurations have none."""
    weightless = re.compile(r"(Tokenizer|Processor\w*|Config)\.from_pretrained$")
    for file, tree in parsed().items():
        for name, call in calls(tree):
            if name.endswith(("from_pretrained", "load_lora_weights")) and not weightless.search(name):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert keywords.get("use_safetensors") == "True", f"{file}:{call.lineno}"


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


PICKLED = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "model.ckpt", "model.pth")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_pickled_generator_is_refused_and_never_unpickled(part: str, refused: Refusal):
    shutil.copytree(FOLDER / "generator", refused.folder / "model")
    next((refused.folder / "model" / part).glob("*.safetensors")).unlink()
    for name in PICKLED:
        (refused.folder / "model" / part / name).write_bytes(pickle.dumps(Bomb(refused.folder / "unpickled")))
    assert "a pickle, which could run any program" in refused.train("model.path=model")


@pytest.mark.parametrize(("reward", "part"), [("identity", "dino"), ("prompt", "clip")])
def test_a_pickled_encoder_is_refused_and_never_unpickled(reward: str, part: str, refused: Refusal):
    shutil.copytree(FOLDER / part, refused.folder / "model")
    (refused.folder / "model" / "model.safetensors").unlink()
    for name in PICKLED:
        (refused.folder / "model" / name).write_bytes(pickle.dumps(Bomb(refused.folder / "unpickled")))
    assert "a pickle, which could run any program" in refused.train(
        f"rewards.{reward}.model={refused.folder / 'model'}"
    )


def test_pickles_beside_safetensors_are_passed_over(make_policy: Callable[..., FluxKontextPolicy], tmp_path: Path):
    shutil.copytree(FOLDER / "generator", tmp_path / "model")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        for name in PICKLED:
            (tmp_path / "model" / part / name).write_bytes(pickle.dumps(Bomb(tmp_path / "unpickled")))
    policy = make_policy(tmp_path / "model", rank=4)
    policy.save_adapter(tmp_path / "adapter")
    for name in ("pytorch_lora_weights.bin", "optimizer.pt"):
        (tmp_path / "adapter" / name).write_bytes(pickle.dumps(Bomb(tmp_path / "unpickled")))
    make_policy(tmp_path / "model").load_adapter(tmp_path / "adapter")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_lora_weights.bin", "pytorch_lora_weights.bin is a pickle, which is never read"),
        ("pytorch_lora_weights.pt", "pytorch_lora_weights.pt is a pickle, which is never read"),
        (ADAPTER_FILE, "cannot be read"),  # a pickle under the name of safetensors
    ],
)
def test_a_pickled_adapter_is_refused_and_never_unpickled(name: str, message: str, refused: Refusal):
    Image.new("RGB", (8, 8)).save(refused.folder / "dog.png")
    (refused.folder / "adapter").mkdir()
    (refused.folder / "adapter" / name).write_bytes(pickle.dumps(Bomb(refused.folder / "unpickled")))
    assert message in refused(
        *("generate", "--reference", "dog.png", "--prompt", "a dog", "--adapter", "adapter"),
        *("--model", "critters", "--output", "out", "--device", "cpu"),
    )


def test_a_checkpoint_of_a_run_holds_no_pickle(make_trainer: Callable[..., Trainer]):
    trainer = make_trainer()
    trainer.train()
    files = [path for path in trainer.directory.path.rglob("*") if path.is_file()]
    kinds = {".yaml", ".json", ".jsonl", ".png", ".safetensors", ".lock", ".md", ""}
    assert {path.suffix for path in files} <= kinds
    assert not [path for path in files if path.read_bytes().startswith((b"\x80", b"PK"))]  # pickle's, and torch.save's


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch x']", "!!python/name:os.system", "!!python/object:x.y {}"]
)
def test_yaml_makes_no_objects(tag: str, refused: Refusal):
    (refused.folder / "recipe.yaml").write_text(f"seed: {tag}\n")
    assert "could not determine a constructor" in refused("train", "recipe.yaml")
    assert "could not determine a constructor" in refused.train(f"seed={tag}")


def test_rewards_code_runs_only_where_a_setting_names_it(refused: Refusal):
    (refused.folder / "dino.py").write_text("raise SystemExit('ran')")
    (refused.folder / "scores.py").write_text("raise SystemExit('ran')")
    config = load_config(TINY, ["rewards.x={name: 'scores.py:f', role: quality, weight: 1}"])  # only named, not made
    assert config.rewards["x"].name == "scores.py:f"


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "root", "file"),
    [
        ("a.png", "/data", "/data/a.png"),
        ("b/../a.png", "/data", "/data/a.png"),
        ("./a.png", "/data/", "/data/a.png"),
        ("/data/b/a.png", "/data", "/data/b/a.png"),
        ("/data/../data/a.png", "/data", "/data/a.png"),
        ("/etc/passwd", "/", "/etc/passwd"),
        ("../a.png", "/", "/a.png"),  # as the system takes it
        ("a.png", "../pictures", "../pictures/a.png"),
        ("..", "/data", None),
        ("../a.png", "/data", None),
        ("../data2/a.png", "/data", None),
        ("b/../../a.png", "/data", None),
        ("/etc/passwd", "/data", None),
        ("/data/../etc/passwd", "/data", None),
        ("/data2/a.png", "/data", None),
        ("../a.png", ".", None),
        ("../../a.png", "..", None),
        ("/etc/passwd", ".", None),
    ],
)
def test_a_path_stays_inside_its_folder(name: str, root: str, file: str | None):
    assert inside(Path(name), Path(root)) == (None if file is None else Path(file))


def test_lists_read_outside_their_folder_only_where_the_user_says_so(tmp_path: Path):
    secret, lists = tmp_path / "secret.png", tmp_path / "lists"
    lists.mkdir()
    Image.new("RGB", (8, 8)).save(secret)
    for fields in ({"image_path": str(secret)}, {"image_path": "../secret.png"}):
        (lists / "list.json").write_text(json.dumps([{"prompt": "a", **fields}]))
        with pytest.raises(DataError, match="leads out of"):
            load_list(lists / "list.json")
    ok = {"prompt": "a", "image_path": "ok.png"}
    Image.new("RGB", (8, 8)).save(lists / "ok.png")
    for field, value in (
        ("mask", "../secret.png"),
        ("other_views", [str(secret)]),
        ("other_views", ["../secret.png"]),
    ):
        (lists / "list.json").write_text(json.dumps([{**ok, field: value}]))
        with pytest.raises(DataError, match="leads out of"):
            load_list(lists / "list.json")
    (lists / "list.json").write_text(json.dumps([{"prompt": "a", "image_path": str(secret)}]))
    assert load_list(lists / "list.json", "/")[0].references == (secret,)
    assert load_list(lists / "list.json", tmp_path)[0].references == (secret,)


def test_links_are_their_owners_word(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "dog.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    names = [{"prompt": "a", "image_path": name} for name in ("link/dog.png", "link/../link/dog.png")]
    (tmp_path / "data" / "list.json").write_text(json.dumps(names))
    samples = load_list(tmp_path / "data" / "list.json")
    assert [sample.references[0] for sample in samples] == [tmp_path / "data" / "link" / "dog.png"] * 2


def test_syncd_metadata_reads_nothing_outside(tmp_path: Path):
    (tmp_path / "syncd").mkdir()
    for name in ("a.png", "syncd/b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "syncd" / "metadata.json").write_text(
        json.dumps([{"filenames": ["b.png", "../a.png"], "prompts": ["a", "b"]}])
    )
    with pytest.raises(DataError, match=r'"\.\./a\.png" leads out of'):
        load_syncd(tmp_path / "syncd")


# --- keys ------------------------------------------------------------------------------------------------------------

HTTP = "rewards.identity.name=http"
SERVER = "rewards.identity.url=http://localhost:1/score"


@pytest.mark.parametrize(
    "overrides",
    [
        (SERVER, f"rewards.identity.api_key_env={KEY}"),
        (SERVER, f"rewards.identity.api_key_env=hf_{KEY[3:]}"),
        (SERVER, f"rewards.identity.api_key={KEY}"),
        (SERVER, f"rewards.identity.headers={{Authorization: {KEY}}}"),
        (f"rewards.identity.url=http://user:{KEY}@localhost/score",),
        (f"rewards.identity.url=http://localhost/score?api_key={KEY}",),
        (f"rewards.identity.url=http://localhost/score?a=1&access_token={KEY}",),
        (f"rewards.identity.url=http://localhost/score?sig={KEY}",),
        (f"rewards.identity.url=http://localhost/score#{KEY}",),
        (f"rewards.own={{name: 'a.py:b', role: quality, weight: 1, options: {{api_key: {KEY}}}}}", SERVER),
        (f"rewards.own={{name: 'a.py:b', role: quality, weight: 1, options: {{hub-token: {KEY}}}}}", SERVER),
        (f"rewards.own={{name: 'a.py:b', role: quality, weight: 1, options: {{a: [{{api_key: {KEY}}}]}}}}", SERVER),
    ],
)
def test_a_key_in_the_settings_is_refused_and_not_repeated(overrides: tuple[str, ...], refused: Refusal):
    assert KEY[3:] not in refused.train(HTTP, *overrides)


def test_what_only_looks_like_a_key_is_taken():
    config = load_config(
        TINY,
        [
            *(HTTP, "rewards.identity.url=https://localhost/score?model=monkey&max_tokens=5&version=1"),
            "rewards.identity.api_key_env=REWARD_KEY",
            "rewards.own={name: 'a.py:b', role: quality, weight: 1, options: {max_tokens: 5, api_key_env: MY_KEY}}",
        ],
    )
    assert isinstance(config, RunConfig)


def test_environment_json_holds_the_command_line_and_no_variables(monkeypatch: pytest.MonkeyPatch):
    """Whatever could hold a key there was refused before it was written."""
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "REWARD_KEY"):
        monkeypatch.setenv(name, KEY)
    assert KEY not in json.dumps(environment())


def test_keys_of_the_environment_reach_no_file_of_a_run(
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("REWARD_KEY", KEY)
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", KEY)
        server = "url: 'http://127.0.0.1:1/s', api_key_env: REWARD_KEY, retries: 0, timeout: 1"
        judge = f"rewards.judge={{name: http, role: quality, weight: .1, {server}}}"
        trainer = make_trainer(judge, "max_unscored=1", "evaluation.every=1")
        trainer.train()
    write_report([trainer.directory.path], tmp_path / "page.html")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err


def test_env_tells_no_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HF_TOKEN", KEY)
    answer = start(("env",), monkeypatch, capsys)
    assert answer.code == 0
    assert KEY not in answer.out


# --- the file itself -------------------------------------------------------------------------------------------------


def test_security_md_names_tests_that_are_there():
    root = Path(__file__).parents[1]
    text = (root / "SECURITY.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (root / name).is_file()
