"""Charts of a report: round marks, frames that fit, everything outside cut off."""

import re

import pytest

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.report.charts import Line, Track, line_chart, plane, ticks
from customized_grpo.report.learning import Series


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.04, 1.04, [0, 0.25, 0.5, 0.75, 1]),
        (-0.13, 0.31, [-0.1, 0, 0.1, 0.2, 0.3]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.8011, 0.8031, [0.8015, 0.802, 0.8025, 0.803]),
        (0.61, 3.13, [1, 2, 3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, marks: list[float]):
    assert ticks(low, high) == pytest.approx(marks)


def test_a_frame_fits_its_lines_and_cuts_bands_off():
    values = [Estimate(0.2, 0.1, 0.3), Estimate(0.4, -5.0, 9.0)]
    chart = str(line_chart("a chart", [Line("arm", "s1", Series([0, 10], values))]))
    ys = [float(y) for points in re.findall(r'points="([^"]+)"', chart) for y in re.findall(r",([\d.]+)", points)]
    assert min(ys) >= 14  # the top of the frame
    assert max(ys) <= 216  # its bottom
    line = re.findall(r'<polyline class="line s1" points="[\d.]+,([\d.]+) [\d.]+,([\d.]+)"', chart)
    first, last = map(float, line[0])
    assert first - last > 0.17 * (216 - 14)  # a fifth of the height, less the room


def test_a_close_plane_shows_the_points_large_and_cuts_off_the_rest():
    def at(x: float, y: float) -> Track:
        return Track(f"{x}", "s1", [(None, Estimate(x, x - 1, x + 1), Estimate(y, y - 1, y + 1))])

    tracks = [at(0.90, 0.80), at(0.91, 0.82)]
    corners = [(0.0, 0.0), (0.9, 0.8)]
    complete, close = (str(plane("a plane", tracks, "x", "y", corners, close=c)) for c in (False, True))

    def apart(chart: str) -> float:
        centres = [float(x) for x in re.findall(r'cx="([\d.]+)"', chart)]
        return abs(centres[0] - centres[1])

    assert apart(close) > 20 * apart(complete)
    ends = [float(x) for x in re.findall(r'<line class="cross s1" x1="[\d.]+" y1="[\d.]+" x2="([\d.]+)"', close)]
    assert max(ends) <= 400 - 14 - 6.4 * 4  # the right edge of the frame
    # The front reaches below the frame, in an image that cuts it off.
    assert re.search(r'<svg x="40" y="14" [^>]*><polyline class="front" points="-[\d.]+,[\d.]+ ', close)
