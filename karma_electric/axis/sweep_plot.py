"""A sweep as one small SVG: drift and KL against the firing rate, a line for each alpha."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from karma_electric.axis.sweep import SweepRow

WIDTH, HEIGHT, MARGIN = 420, 300, 50  # of a panel, in pixels
COLOURS: Final = ("#1b6ca8", "#c8553d", "#588b3c", "#7b4fa3", "#8a6d3b")


def sweep_plot(rows: Sequence[SweepRow]) -> str:
    """SVG text; equal rows give equal text."""
    alphas = sorted({row.alpha for row in rows})
    panels = [
        _panel(rows, alphas, 0, "drift that is left", lambda row: row.generic_drift),
        _panel(rows, alphas, WIDTH, "KL on neutral text, nats", lambda row: row.neutral_kl_nats),
    ]
    legend = [
        f'<text x="{MARGIN + 90 * index}" y="{HEIGHT + 16}" fill="{_colour(index)}">alpha {alpha:g}</text>'
        for index, alpha in enumerate(alphas)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT + 28}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, *panels, *legend, "</svg>"]) + "\n"


def _panel(
    rows: Sequence[SweepRow], alphas: Sequence[float], left: int, title: str, value: Callable[[SweepRow], float]
) -> str:
    values = [value(row) for row in rows]
    low, high = min(0.0, *values), max(1e-9, *values)

    def place(row: SweepRow) -> str:
        across = left + MARGIN + row.firing_rate * (WIDTH - 1.5 * MARGIN)
        down = HEIGHT - MARGIN - (value(row) - low) / (high - low) * (HEIGHT - 1.5 * MARGIN)
        return f"{across:.1f},{down:.1f}"

    parts = [
        f'<text x="{left + MARGIN}" y="16">{title}</text>',
        f'<text x="{left + WIDTH / 2 - 30:.0f}" y="{HEIGHT - 12}">firing rate, 0 to 1</text>',
        f'<text x="{left + 4}" y="{HEIGHT - MARGIN}">{low:.2g}</text>',
        f'<text x="{left + 4}" y="{MARGIN / 2 + 4:.0f}">{high:.2g}</text>',
        f'<path d="M{left + MARGIN},{MARGIN / 2:.0f} V{HEIGHT - MARGIN} H{left + WIDTH - MARGIN // 2}" '
        'fill="none" stroke="#444"/>',
    ]
    for index, alpha in enumerate(alphas):
        chosen = sorted((row for row in rows if row.alpha == alpha), key=lambda row: row.firing_rate)
        points = [place(row) for row in chosen]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{_colour(index)}"/>')
        for point in points:
            across, down = point.split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{_colour(index)}"/>')
    return "\n".join(parts)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
