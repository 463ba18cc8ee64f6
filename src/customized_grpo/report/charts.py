"""Charts as inline SVG. Colours are classes of the style sheet (s0, s1, ...), so both themes share the markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

from markupsafe import Markup

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.report.labels import number
from customized_grpo.report.learning import Series

WIDTH, HEIGHT = 400, 250
LEFT, TOP, BOTTOM = 40, 14, 34
LETTER = 6.4  # pixels per letter of a label
LINE = 14  # pixels between labels
LONGEST = 16  # letters of a label next to its line


@dataclass(frozen=True)
class Owner:
    """The arm that something belongs to: its place among the arms, and whether it is shown when the page opens."""

    place: int
    shown: bool


@dataclass(frozen=True)
class Line:
    """A named series with its colour class; `raw`, if given, is drawn faintly behind it."""

    name: str
    colour: str
    series: Series
    raw: Series | None = None
    owner: Owner | None = None


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def clamped(self, value: float) -> float:
        """The pixel of the value, or of the nearest end of the scale."""
        return self(min(max(value, self.low), self.high))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], at most `count` steps of them and at least two fifths of that."""
    size = (high - low) / count
    unit = 10 ** math.floor(math.log10(size))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= size * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    bounds: tuple[float, float] | None = None,
    rule: tuple[float, str] | None = None,
    x_name: str = "update",
) -> Markup:
    """Lines over updates with 95 % bands, each named at its end; `rule` is the height and name of a dotted line.

    bounds  of the values; default: what the lines, their bands and the rule need
    x_name  what the x axis counts, if not updates
    """
    names = [line.name for line in lines] + ([rule[1]] if rule else [])
    right = 14 + LETTER * min(max(map(len, names)), LONGEST)
    low, high = bounds or _with_margin(_values(lines) + ([rule[0]] if rule else []))
    first, last = min(line.series.updates[0] for line in lines), max(line.series.updates[-1] for line in lines)
    if any(line.raw for line in lines):
        first = min(line.raw.updates[0] for line in lines if line.raw)
    x = Scale(first, max(last, first + 1), LEFT, WIDTH - right)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    x_marks = [mark for mark in ticks(x.low, x.high) if mark <= last and mark % 1 == 0]
    parts = [*_frame(x, y, ticks(low, high), x_marks, x_name)]
    if rule:
        parts.append(_line(LEFT, y(rule[0]), WIDTH - right, y(rule[0]), "rule"))
    wanted = [y(line.series.values[-1].mean) for line in lines]
    places = _apart([*wanted, *([y(rule[0])] if rule else ())], TOP, HEIGHT - BOTTOM, [_shown(line) for line in lines])
    for line, at, place in _hidden_first(lines, wanted, places):
        label = _label(WIDTH - right + 9, place, at, line.name, line.colour)
        parts += _owned(line.owner, [*_drawn(line, x, y, x_name), label])
    if rule:
        name, data = _shortened(rule[1]), f' data-at="{y(rule[0])}"'
        parts.append(_text(WIDTH - right + 9, places[-1] + 4, name, "faint", data))
    ends = f'data-first="{first}" data-last="{last}" data-left="{x(first)}" data-right="{x(last)}"'
    parts.append(f'<line class="now" {ends} x1="{x(last)}" x2="{x(last)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    description = "; ".join(
        f"{line.name} from {number(line.series.values[0].mean)} to {number(line.series.values[-1].mean)}"
        for line in lines
    )
    return _svg(f"{title}, {x_name}s {first} to {last}: {description}", parts)


def _values(lines: Sequence[Line]) -> list[float]:
    """All means, and the ends of the bands, clipped so that the lines keep at least a fifth of the height."""
    known = [value for line in lines for series in (line.series, line.raw) if series for value in series.values]
    means = [value.mean for value in known]
    room = 2 * (max(means) - min(means)) + 1e-3
    lowest, highest = min(means) - room, max(means) + room
    ends = [min(max(end, lowest), highest) for v in known for end in (v.low, v.high) if not math.isnan(end)]
    return means + ends


def _with_margin(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin; never empty."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) if high - low > 1e-6 else 0.05
    return low - room, high + room


def _drawn(line: Line, x: Scale, y: Scale, x_name: str) -> Iterator[str]:
    points = list(zip(line.series.updates, line.series.values, strict=True))
    known = [(update, value) for update, value in points if not math.isnan(value.low)]
    if len(known) > 1:
        lower = [f"{x(update)},{y.clamped(value.low)}" for update, value in known]
        upper = [f"{x(update)},{y.clamped(value.high)}" for update, value in reversed(known)]
        yield f'<polygon class="band {line.colour}" points="{" ".join(lower + upper)}"/>'
    if line.raw:
        yield _path([(x(u), y(v.mean)) for u, v in zip(line.raw.updates, line.raw.values, strict=True)], line, " raw")
    yield _path([(x(update), y(value.mean)) for update, value in points], line)
    if len(points) <= 30 and not line.raw:
        for update, value in points:
            tooltip = f"{line.name}, {x_name} {update}: {number(value.mean)}"
            yield (
                f'<circle class="dot {line.colour}" cx="{x(update)}" cy="{y(value.mean)}" r="2.6">'
                f"<title>{escape(tooltip)}</title></circle>"
            )


def _path(points: Sequence[tuple[float, float]], line: Line, extra: str = "") -> str:
    return f'<polyline class="line{extra} {line.colour}" points="{" ".join(f"{a},{b}" for a, b in points)}"/>'


@dataclass(frozen=True)
class Track:
    """A named path through the plane: (update, x, y), or a single point with its intervals."""

    name: str
    colour: str
    points: Sequence[tuple[int | None, Estimate, Estimate]]
    owner: Owner | None = None


Drawn = TypeVar("Drawn", Line, Track)


def plane(
    title: str,
    tracks: Sequence[Track],
    x_name: str,
    y_name: str,
    front: Sequence[tuple[float, float]] = (),
    close: bool = False,
) -> Markup:
    """Paths from hollow (first) to filled (last), named at their ends; single points have crosses.

    front  corners of a dotted line, cut off at the frame
    close  fit the frame to the points alone and cut their crosses off at it
    """
    right = 14 + LETTER * min(max(len(track.name) for track in tracks), LONGEST)
    x_values = [value for t in tracks for value in _extent([x for _, x, _ in t.points], close)]
    y_values = [value for t in tracks for value in _extent([y for _, _, y in t.points], close)]
    x, y = Scale(*_with_margin(x_values), LEFT, WIDTH - right), Scale(*_with_margin(y_values), HEIGHT - BOTTOM, TOP)
    marks = ticks(y.low, y.high), ticks(x.low, x.high, 4)
    parts = [*_frame(x, y, *marks, x_name), _text(LEFT, TOP - 3, y_name, "faint"), *_front(front, x, y)]
    wanted = [y(track.points[-1][2].mean) for track in tracks]
    places = _apart(wanted, TOP, HEIGHT - BOTTOM, [_shown(track) for track in tracks])
    alone = len(tracks) == 1
    for track, at, place in _hidden_first(tracks, wanted, places):
        drawn = list(_path_through(track, x, y))
        end = x(track.points[-1][1].mean)
        if alone:
            drawn.append(_text(end + 9, at + 4, _shortened(track.name), f"name {track.colour}"))
        else:
            drawn.append(_label(WIDTH - right + 9, place, at, track.name, track.colour))
            drawn.append(_line(end + 6, at, WIDTH - right + 6, place, f"leader {track.colour}"))
        if alone and len(track.points) > 1:
            update, a, b = track.points[0]
            drawn.append(_text(x(a.mean) - 4, y(b.mean) - 11, f"update {update}", "faint"))
        parts += _owned(track.owner, drawn)
    description = "; ".join(
        f"{track.name} ends at {x_name} {number(identity.mean)}, {y_name} {number(prompt.mean)}"
        for track in tracks
        for _, identity, prompt in track.points[-1:]
    )
    return _svg(f"{title}: {description}", parts)


def _front(corners: Sequence[tuple[float, float]], x: Scale, y: Scale) -> Iterator[str]:
    """The front in an svg element of its own, which cuts it off at the frame."""
    if corners:
        box = f"{x.start} {y.end} {x.end - x.start} {y.start - y.end}"
        place = 'x="{}" y="{}" width="{}" height="{}"'.format(*box.split())
        points = " ".join(f"{x(a)},{y(b)}" for a, b in corners)
        yield f'<svg {place} viewBox="{box}"><polyline class="front" points="{points}"/></svg>'


def _path_through(track: Track, x: Scale, y: Scale) -> Iterator[str]:
    spots = [(x(a.mean), y(b.mean)) for _, a, b in track.points]
    if len(spots) == 1:
        _, a, b = track.points[0]
        if not math.isnan(a.low):
            yield _line(x.clamped(a.low), spots[0][1], x.clamped(a.high), spots[0][1], f"cross {track.colour}")
        if not math.isnan(b.low):
            yield _line(spots[0][0], y.clamped(b.low), spots[0][0], y.clamped(b.high), f"cross {track.colour}")
    else:
        yield f'<polyline class="line {track.colour}" points="{" ".join(f"{a},{b}" for a, b in spots)}"/>'
    for place, (a, b) in enumerate(spots):
        kind = "full" if place == len(spots) - 1 else "hollow" if place == 0 else ""
        yield _spot(track, place, a, b, kind)


def _spot(track: Track, place: int, a: float, b: float, kind: str) -> str:
    update, identity, prompt = track.points[place]
    at = "" if update is None else f", update {update}"
    tooltip = f"{track.name}{at}: {number(identity.mean)}, {number(prompt.mean)}"
    size = 5 if kind else 2.6
    data = "" if update is None else f' data-update="{update}"'
    return (
        f'<circle class="dot {kind} {track.colour}"{data} cx="{a}" cy="{b}" r="{size}">'
        f"<title>{escape(tooltip)}</title></circle>"
    )


def _extent(estimates: Sequence[Estimate], close: bool) -> list[float]:
    """The values that one axis must show of a track: the means of a path, or a single point with its interval."""
    crossed = len(estimates) == 1 and not close
    wanted = [n for e in estimates for n in ((e.mean, e.low, e.high) if crossed else (e.mean,))]
    return [value for value in wanted if not math.isnan(value)]


def step_chart(title: str, pulls: Sequence[tuple[int, float, float]], names: tuple[str, str]) -> Markup:
    """Stacked bars: the pull of each denoising step toward the prompt (below) and toward identity (above)."""
    right = 14 + LETTER * max(map(len, names))
    y = Scale(0, 1, HEIGHT - BOTTOM, TOP)
    steps = [step for step, _, _ in pulls]
    x = Scale(steps[0] - 0.6, steps[-1] + 0.6, LEFT, WIDTH - right)
    half = min(0.4 * (x(1) - x(0)), 18)
    x_marks = steps[:: max(len(steps) // 12, 1)]
    parts = [*_frame(x, y, [0, 0.25, 0.5, 0.75, 1], x_marks, "denoising step")]
    for step, prompt, identity in pulls:
        tooltip = f"step {step}: {names[0]} {number(prompt, digits=2)}, {names[1]} {number(identity, digits=2)}"
        for low, high, colour in ((0, prompt, "s2"), (prompt, prompt + identity, "s1")):
            parts.append(
                f'<rect class="bar {colour}" x="{x(step) - half:.2f}" y="{y(high)}" width="{2 * half:.2f}" '
                f'height="{max(y(low) - y(high), 0):.2f}"><title>{escape(tooltip)}</title></rect>'
            )
    _, prompt, identity = pulls[-1]
    ends = _apart([y(prompt / 2), y(prompt + identity / 2)], TOP, HEIGHT - BOTTOM)
    for name, colour, end in zip(names, ("s2", "s1"), ends, strict=True):
        parts.append(_text(WIDTH - right + 9, end + 4, name, f"name {colour}"))
    shares = [f"step {step} {prompt / (prompt + identity):.0%}" for step, prompt, identity in pulls]
    return _svg(f"{title}. Share of the {names[0]}: {', '.join(shares)}", parts)


def extent(figures: Sequence[Estimate | None]) -> tuple[float, float] | None:
    """From the lowest to the highest end of all intervals; None if no figure is known."""
    known = [n for f in figures if f for n in (f.mean, f.low, f.high) if not math.isnan(n)]
    return (min(known), max(known)) if known else None


def interval_plot(
    figures: Sequence[Estimate | None], colours: Sequence[str], within: tuple[float, float] | None = None
) -> Markup:
    """The figures of a table row, one below the other: a dot for each mean, a bar for its interval.

    Hidden from screen readers: the row has the same in numbers.

    within  the range of the width, if rows share it; default: 0 to 1, or more if the figures need it
    """
    needed = extent(figures)
    if needed is None:
        return Markup()
    low, high = within or (min(0.0, needed[0]), max(1.0, needed[1]))
    high = max(high, low + 1e-6)
    width, gap = 150, 9
    height = gap * len(figures) + 5
    x = Scale(low, high, 5, width - 5)
    marks = {low, high} if within else {low, 0.0, high}
    parts = [_line(x(value), 1, x(value), height - 1, "grid") for value in marks]
    for place, (figure, colour) in enumerate(zip(figures, colours, strict=True)):
        y = 7 + gap * place
        if figure is None:
            continue
        if not math.isnan(figure.low):
            parts.append(_line(x(figure.low), y, x(figure.high), y, f"cross {colour}"))
        parts.append(f'<circle class="dot full {colour}" cx="{x(figure.mean)}" cy="{y}" r="3.4"/>')
    return Markup(
        f'<svg class="interval" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


# --- parts of all charts ---------------------------------------------------------------------------------------------


def _svg(description: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )


def _frame(x: Scale, y: Scale, y_marks: Sequence[float], x_marks: Sequence[float], x_name: str) -> Iterator[str]:
    yield _line(x.start, y.start, x.end, y.start, "grid")
    for mark in y_marks:
        yield _line(x.start, y(mark), x.end, y(mark), "grid")
        yield _text(x.start - 6, y(mark) + 4, _tick_label(mark), "tick end")
    for mark in x_marks:
        yield _text(x(mark), HEIGHT - BOTTOM + 15, _tick_label(mark), "tick middle")
    yield _text(x.end, HEIGHT - 4, x_name, "faint end")


def _tick_label(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, kind: str, data: str = "") -> str:
    return f'<text class="{kind}" x="{round(x, 2)}" y="{round(y, 2)}"{data}>{escape(text)}</text>'


def _label(x: float, place: float, wanted: float, name: str, colour: str) -> str:
    """A name at `place`; when arms are shown or hidden, the script moves it as close to `wanted` as it can."""
    return _text(x, place + 4, _shortened(name), f"name {colour}", data=f' data-at="{wanted}"')


def _shown(drawn: Line | Track) -> bool:
    return drawn.owner is None or drawn.owner.shown


def _hidden_first(
    drawn: Sequence[Drawn], wanted: Sequence[float], places: Sequence[float]
) -> list[tuple[Drawn, float, float]]:
    """In drawing order: shown items over hidden ones. A rule's place, the last, belongs to no line."""
    return sorted(zip(drawn, wanted, places, strict=False), key=lambda item: _shown(item[0]))


def _owned(owner: Owner | None, parts: Sequence[str]) -> list[str]:
    kind = "" if owner is None else f' class="arm{"" if owner.shown else " off"}" data-arm="{owner.place}"'
    return [f"<g{kind}>", *parts, "</g>"]


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _apart(places: Sequence[float], low: float, high: float, shown: Sequence[bool] = ()) -> list[float]:
    """The places, moved as little as possible so that they are a line apart (less if they are many) and inside.

    Places that are not shown stay. If there are fewer flags than places, the rest are shown.
    """
    flags = [*shown, *[True] * (len(places) - len(shown))]
    space = min(LINE, (high - low) / max(sum(flags) - 1, 1))
    order = sorted((index for index, flag in enumerate(flags) if flag), key=lambda index: places[index])
    moved = list(places)
    previous = -math.inf
    for index in order:
        moved[index] = previous = max(places[index], previous + space, low)
    limit = high + space
    for index in reversed(order):
        moved[index] = limit = min(moved[index], limit - space)
    return moved
