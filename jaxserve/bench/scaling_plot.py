"""A picture of how a figure grows with the number of devices, as an SVG file: no plotting library for one picture."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _TOP = 560, 360, 70, 40


def write_plot(path: Path, title: str, devices: Sequence[int], tokens_per_s: Sequence[float]) -> None:
    """Tokens a second over devices, and beside them what the first point would be if every device helped fully."""
    path.write_text(plot(title, devices, tokens_per_s), encoding="utf-8")


def plot(title: str, devices: Sequence[int], tokens_per_s: Sequence[float]) -> str:
    """The SVG's text. devices: ascending."""
    ideal = [tokens_per_s[0] / devices[0] * number for number in devices]
    top = max(*tokens_per_s, *ideal) * 1.05
    across = lambda number: _LEFT + (_WIDTH - _LEFT - 30) * number / devices[-1]  # noqa: E731
    down = lambda value: _HEIGHT - 50 - (_HEIGHT - 50 - _TOP) * value / top  # noqa: E731

    def line(values: Sequence[float], style: str) -> str:
        points = " ".join(f"{across(n):.1f},{down(v):.1f}" for n, v in zip(devices, values, strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    marks = [
        f'<circle cx="{across(n):.1f}" cy="{down(v):.1f}" r="4" fill="#1f5fbf"/>'
        f'<text x="{across(n):.1f}" y="{down(v) - 9:.1f}" text-anchor="middle">{v:,.0f}</text>'
        f'<text x="{across(n):.1f}" y="{_HEIGHT - 30}" text-anchor="middle">{n}</text>'
        for n, v in zip(devices, tokens_per_s, strict=True)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            f'font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
            line(ideal, 'stroke="#999" stroke-dasharray="5 4"'),
            line(tokens_per_s, 'stroke="#1f5fbf" stroke-width="2"'),
            *marks,
            f'<line x1="{_LEFT}" y1="{down(0):.1f}" x2="{_WIDTH - 20}" y2="{down(0):.1f}" stroke="black"/>',
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}" text-anchor="middle">devices</text>',
            f'<text x="14" y="{_HEIGHT / 2}" transform="rotate(-90 14 {_HEIGHT / 2})" text-anchor="middle">'
            "tokens/s (dashed: as the first point, in proportion)</text>",
            "</svg>\n",
        ]
    )
