"""The files that a report reads: the keys that it needs of each, checked when the file is read.

Folders may come from other machines and other versions. A problem is reported in one line, with the file and the place
in it. Keys that a report does not need are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from customized_grpo.compare.comparison import is_folder_name
from customized_grpo.compare.results import RunWarningRow
from customized_grpo.errors import InputError
from customized_grpo.files.json_text import Shape, check_shape
from customized_grpo.files.json_text import read_json as read_json_file
from customized_grpo.files.yaml_text import YamlError
from customized_grpo.files.yaml_text import read_yaml as read_yaml_file
from customized_grpo.run.logs import LogRow, read_log

WAY_OUT = "copy the folder again, or make it again with this version"


class ReportError(InputError, ValueError):
    """A folder that cannot be shown; the message names the files that were expected."""


def read_json(file: Path, shape: Shape) -> Any:
    """Raises JsonError if the file is missing, damaged, or does not have this shape."""
    return read_json_file(file, shape, WAY_OUT)


def read_yaml(file: Path, shape: Shape) -> Any:
    """Raises ReportError if the file is missing or not YAML, JsonError if it does not have this shape."""
    try:
        content = read_yaml_file(file)
    except YamlError as error:
        raise ReportError(f"{error}; {WAY_OUT}") from None
    check_shape(content, shape, str(file), WAY_OUT)
    return content


def read_rows(file: Path, shape: Shape) -> list[LogRow]:
    """The rows of a run's log; none if there is no file. Raises an InputError if they do not have this shape."""
    rows = read_log(file)
    check_shape(rows, shape, str(file), WAY_OUT)
    return rows


class FigureShape(BaseModel):
    """A mean and its interval; null or missing: unknown."""

    mean: float | None
    low: float | None = None
    high: float | None = None


# --- runs ------------------------------------------------------------------------------------------------------------


class _Rule(BaseModel):
    rule: str


class _Kind(BaseModel):
    kind: str


class _Groups(BaseModel):
    prompts: int
    size: int


class _Rank(BaseModel):
    rank: int


class _Path(BaseModel):
    path: str


class _Source(BaseModel):
    source: str


class ConfigShape(BaseModel):
    """config.yaml"""

    model: _Path
    data: _Source
    adapter: _Rank
    shaping: _Rule
    weighting: _Kind
    groups: _Groups
    updates: int
    seed: int


class _StepRow(BaseModel):
    step: int
    prompt_pull: float | None = None
    identity_pull: float | None = None


class _UpdateRow(BaseModel):
    update: int
    steps: list[_StepRow] = []
    warnings: list[RunWarningRow] = []


class _EvaluationLogRow(BaseModel):
    update: int
    spread: dict[str, float | None] = {}
    scored: dict[str, int] = {}


class _CaseRow(BaseModel):
    sample: str
    subject: str
    prompt: str
    reference: str
    picture: str
    scores: dict[str, FiniteFloat | None]


ENVIRONMENT = TypeAdapter(dict[str, Any])  # environment.json
UPDATES = TypeAdapter(list[_UpdateRow])  # metrics.jsonl
HELD_OUT = TypeAdapter(list[_EvaluationLogRow])  # evaluations.jsonl
CASES = TypeAdapter(list[_CaseRow])  # cases.json


# --- demos and evaluations -------------------------------------------------------------------------------------------


class _Seconds(BaseModel):
    install_excluded_total: float


class DemoShape(BaseModel):
    """summary.json of a demo"""

    cases: int
    cases_unseen_combinations: int
    base: dict[str, FigureShape]
    tuned: dict[str, FigureShape]
    base_unseen_combinations: dict[str, FigureShape]
    tuned_unseen_combinations: dict[str, FigureShape]
    seconds: _Seconds


class SettingsShape(BaseModel):
    """settings.json of an evaluation"""

    model: str
    data: str
    adapter: str | None
    sampling: dict[str, Any]
    metrics: dict[str, str] | str | None = None  # what measured each; older files have one text


class _Evaluated(FigureShape):
    unscored: int
    trained_on: bool


class _Share(BaseModel):
    mean: float


class _Dominance(BaseModel):
    rewards: list[str]
    better: _Share
    worse: _Share
    compared: int


class EvaluationShape(BaseModel):
    """summary.json of an evaluation"""

    images: int
    subjects: int
    metrics: dict[str, _Evaluated]
    dominance: _Dominance | None = None


# --- comparisons -----------------------------------------------------------------------------------------------------


def _folder_name(name: str) -> str:
    if not is_folder_name(name):  # it could lead out of the comparison
        raise ValueError("this is not a name for a folder")
    return name


class _Arm(BaseModel):
    seeds: Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,20}$")], Any], Field(min_length=1)]
    figures: dict[str, FigureShape]
    trained_on: list[str] = []


class _Primary(BaseModel):
    arm: str
    against: list[str]
    metric: str


class _Settings(BaseModel):
    recipe: str
    primary: _Primary
    compare_on: list[str]
    selections: dict[str, list[str]] = {}
    front: list[str] = []


class _Difference(FigureShape):
    arm: str
    against: str
    metric: str
    primary: bool
    p: float | None
    p_holm: float | None
    seeds: int


class _Beyond(FigureShape):
    arm: str
    plane: Annotated[list[str], Field(min_length=2, max_length=2)]
    beyond: int
    seeds: int


class _Counts(BaseModel):
    judged: int
    at_end: int
    on_the_way: int
    first_update: int | None
    last_update: int | None
    updates: dict[str, list[int]]
    warned: int


class _Degradation(BaseModel):
    """One arm: counts by the name of the kind."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Counts] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    arm: str
    seeds: int
    other_warnings: int = 0


class ComparisonShape(BaseModel):
    """comparison.json"""

    arms: Annotated[dict[Annotated[str, AfterValidator(_folder_name)], _Arm], Field(min_length=1)]
    settings: _Settings
    differences: list[_Difference]
    beyond_front: list[_Beyond] = []
    degradation: list[_Degradation] = []
    finished: int
    runs: int


# --- probes ----------------------------------------------------------------------------------------------------------


class _Noise(BaseModel):
    dynamics: str
    level: float


class _ProbedConfig(BaseModel):
    noise: _Noise
    model: _Path


class _Fit(BaseModel):
    verdict: str


class _ProbedStep(BaseModel):
    step: int
    sigma: float
    spread: dict[str, FigureShape]
    gradient_factor: float
    gradient_norm: FigureShape
    prompt_share: FigureShape | None
    oracle_prompt_share: FigureShape | None
    fitted_weight: float | None
    present_weight: float | None


class ProbeShape(BaseModel):
    """probe.json"""

    config: _ProbedConfig
    steps: Annotated[list[_ProbedStep], Field(min_length=1)]
    adapter: str | None
    prompts: int
    draws: int
    fit: _Fit | None
    obstacle: str | None
