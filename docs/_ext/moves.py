"""The `moves` directive: a state machine's own table of moves, as a picture and a table.

A page that says ``{moves} hpcdask.core.scheduler_state`` shows what the code says, so the two
cannot disagree. The module has to have ``MOVES``, a dict of state -> set of states.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

Moves = dict[str, set[str]]

WIDTH, HEIGHT = 680, 420
BOX_WIDTH, BOX_HEIGHT = 100, 30


class MovesDirective(Directive):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        try:
            moves = importlib.import_module(name).MOVES
        except (ImportError, AttributeError) as exc:
            raise self.error(f"no MOVES in {name}: {exc}") from exc
        unknown = set().union(*moves.values()) - set(moves)
        # A final state need not be a row of its own.
        states = [*moves, *sorted(unknown)]
        return [nodes.raw("", svg(states, moves), format="html"), table(states, moves)]


def table(states: list[str], moves: Moves) -> nodes.table:
    rows = [("a task that is", "may become")]
    rows += [(s, ", ".join(sorted(moves.get(s, ()), key=states.index)) or "-") for s in states]
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (1, 3)), cols=2)
    made = [
        nodes.row("", *(nodes.entry("", nodes.paragraph(text=text)) for text in row))
        for row in rows
    ]
    group += nodes.thead("", made[0])
    group += nodes.tbody("", *made[1:])
    return nodes.table("", group)


def svg(states: list[str], moves: Moves) -> str:
    """The states on an ellipse, each move an arrow that bends to its left.

    The two directions between a pair so bend to different sides, and stay apart.
    """
    at = {}
    for i, state in enumerate(states):
        angle = 2 * math.pi * i / len(states) - math.pi / 2
        at[state] = (
            WIDTH / 2 + (WIDTH - BOX_WIDTH - 20) / 2 * math.cos(angle),
            HEIGHT / 2 + (HEIGHT - BOX_HEIGHT - 20) / 2 * math.sin(angle),
        )
    arrows = [
        arrow(at[state], at[other])
        for state in states
        for other in sorted(moves.get(state, ()), key=states.index)
        if other != state
    ]
    boxes = [
        f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" rx="6"'
        f' width="{BOX_WIDTH}" height="{BOX_HEIGHT}" fill="#f4f6f8" stroke="#456"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{state}</text>'
        for state, (x, y) in at.items()
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img"'
        ' font-family="sans-serif" font-size="14" aria-label="states and moves">'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="#456"/></marker></defs>'
        f"{''.join(arrows)}{''.join(boxes)}</svg>"
    )


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x0, y0), (x1, y1) = start, end
    dx, dy = x1 - x0, y1 - y0
    # The bend grows with the length, up to what keeps it within the picture.
    bend = min(0.12, 40 / math.hypot(dx, dy))
    cx, cy = (x0 + x1) / 2 + dy * bend, (y0 + y1) / 2 - dx * bend
    ax, ay = box_edge(start, (cx, cy))
    bx, by = box_edge(end, (cx, cy))
    return (
        f'<path d="M{ax:.1f},{ay:.1f} Q{cx:.1f},{cy:.1f} {bx:.1f},{by:.1f}"'
        ' fill="none" stroke="#456" marker-end="url(#head)"/>'
    )


def box_edge(centre: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line from the centre of a state's box to a point leaves the box."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    scale = min(
        BOX_WIDTH / 2 / abs(dx) if dx else math.inf,
        BOX_HEIGHT / 2 / abs(dy) if dy else math.inf,
    )
    return centre[0] + dx * scale, centre[1] + dy * scale


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("moves", MovesDirective)
    return {"parallel_read_safe": True}
