"""Draw docs/images/house.svg: the rooms of src/trueode on their floors, and their imports.

    python tools/house_map.py

A room is a folder or a single file of the package. Imports are read from the source, floors from
``tests/test_layers.py``. Arrows show imports, except those that follow from others: if A imports B
and B imports C, no arrow from A to C is drawn. The single files of the ground floor are one room
without arrows, because all others import them.
"""

from __future__ import annotations

import ast
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "trueode"
PICTURE = ROOT / "docs" / "images" / "house.svg"
ENTRIES = ("__init__", "__main__")  # they only import names
WIDTH, HEIGHT, AISLE = 1.5, 0.5, 0.4  # of a room, and between two


def floors() -> dict[str, float]:
    """The floor of each room."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            found: dict[str, float] = ast.literal_eval(node.value)
            return found
    raise SystemExit("tests/test_layers.py has no FLOORS")


def imports(rooms: set[str]) -> dict[str, set[str]]:
    """The rooms that the files of each room import, except for type checking."""
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
        ]
        left_out = {id(node) for branch in typing for node in ast.walk(branch)}
        modules: list[str] = []
        for node in ast.walk(tree):
            if id(node) in left_out:
                continue
            if isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules += [f"{node.module}.{alias.name}" for alias in node.names]
        parts = [module.split(".") for module in modules]
        found[own] |= {
            names[1] for names in parts if names[0] == "trueode" and len(names) > 1
        } & rooms - {own}
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph without the arrows that follow from others."""

    def below(name: str) -> set[str]:
        return graph[name].union(*(below(other) for other in graph[name])) if graph[name] else set()

    return {
        name: found - set().union(*(below(other) for other in found))
        for name, found in graph.items()
    }


def chains(graph: dict[str, set[str]], row: dict[str, int]) -> list[list[str]]:
    """Each arrow as a chain of points, one on each row that it crosses.

    The points between the ends are added to ``row`` under new names.
    """
    found = []
    for name, others in sorted(graph.items()):
        for other in sorted(others):
            passed = [f"{name} {other} {level}" for level in range(row[name] - 1, row[other], -1)]
            row.update({point: row[name] - 1 - k for k, point in enumerate(passed)})
            found.append([name, *passed, other])
    return found


def places(links: list[list[str]], row: dict[str, int]) -> dict[str, float]:
    """The horizontal positions of points.

    Each is as close to the mean of its linked points as its neighbours on the row allow.
    """
    linked: dict[str, list[str]] = {name: [] for name in row}
    for chain in links:
        for one, other in pairwise(chain):
            linked[one].append(other)
            linked[other].append(one)
    rows = [
        sorted(name for name in row if row[name] == level) for level in range(max(row.values()) + 1)
    ]
    x = {name: float(k - len(names) / 2) for names in rows for k, name in enumerate(names)}
    for turn in range(200):
        for names in rows if turn % 2 else rows[::-1]:
            wanted = {
                name: fmean([x[other] for other in linked[name]] or [x[name]]) for name in names
            }
            names.sort(key=lambda name: wanted[name])
            gaps = [
                (WIDTH + AISLE) / (2 if " " in one or " " in other else 1)
                for one, other in pairwise(names)
            ]
            at = [0.0, *accumulate(gaps)]
            shift = (
                fmean(wanted[name] - place for name, place in zip(names, at, strict=True))
                if names
                else 0.0
            )
            x.update({name: place + shift for name, place in zip(names, at, strict=True)})
    return x


def draw(graph: dict[str, set[str]], floor: dict[str, float], ground: list[str]) -> Any:
    """The picture."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "house"  # the same file for the same source
    from matplotlib import pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path as Curve

    levels = sorted({floor[name] for name in graph})
    row = {name: levels.index(floor[name]) for name in graph}
    links = chains(graph, row)
    x = places(links, row)
    left, right = min(x.values()) - WIDTH / 2, max(x.values()) + WIDTH / 2
    figure, axes = plt.subplots(figsize=(9, 9))
    rows = {-1: 0, **{k: int(level) for k, level in enumerate(levels)}}  # with their floors
    for number in sorted(set(rows.values())):
        own = [k for k in rows if rows[k] == number]
        axes.axhspan(
            min(own) - 0.5, max(own) + 0.5, color="#f2f4f7" if number % 2 else "#ffffff", zorder=0
        )
        axes.text(
            left - 0.6,
            fmean(own),
            f"floor {number}",
            fontsize=10,
            color="#5b6675",
            ha="right",
            va="center",
        )
    for chain in links:
        points = [(x[chain[0]], row[chain[0]] - HEIGHT / 2)]
        points += [
            (x[name], row[name] + side)
            for name in chain[1:-1]
            for side in (HEIGHT / 2, -HEIGHT / 2)
        ]
        points += [(x[chain[-1]], row[chain[-1]] + HEIGHT / 2)]
        curve, codes = points[:1], [Curve.MOVETO]
        for k, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
            if k % 2:  # past a row
                curve, codes = [*curve, (x1, y1)], [*codes, Curve.LINETO]
            else:
                middle = (y0 + y1) / 2
                curve, codes = (
                    [*curve, (x0, middle), (x1, middle), (x1, y1)],
                    [*codes, *[Curve.CURVE4] * 3],
                )
        style: dict[str, Any] = {
            "arrowstyle": "-|>",
            "mutation_scale": 11,
            "color": "#8a94a3",
            "zorder": 1,
        }
        axes.add_patch(FancyArrowPatch(path=Curve(curve, codes), **style))
    rooms = {
        name: (x[name], row[name], WIDTH, f"{name}/" if (SOURCE / name).is_dir() else f"{name}.py")
        for name in graph
    }
    rooms["ground"] = (
        (left + right) / 2,
        -1,
        right - left,
        "  ".join(f"{name}.py" for name in ground),
    )
    for centre, y, width, text in rooms.values():
        corner, shape = (centre - width / 2, y - HEIGHT / 2), "round,pad=0,rounding_size=0.08"
        look: dict[str, Any] = {"facecolor": "#dbe9f6", "edgecolor": "#0b5fa5", "zorder": 2}
        axes.add_patch(FancyBboxPatch(corner, width, HEIGHT, boxstyle=shape, **look))
        axes.text(centre, y, text, ha="center", va="center", fontsize=10, zorder=3)
    axes.set(xlim=(left - 1.6, right + 0.3), ylim=(-1.5, len(levels) - 0.5))
    axes.axis("off")
    figure.tight_layout(pad=0.2)
    return figure


def main() -> None:
    floor = {name: level for name, level in floors().items() if name not in ENTRIES}
    ground = [name for name, level in floor.items() if level < 1 and not (SOURCE / name).is_dir()]
    rooms = set(floor) - set(ground)
    graph = imports(set(floor) | set(ENTRIES))
    up = [f"{a} -> {b}" for a in rooms for b in graph[a] if floor[b] >= floor[a]]
    if up:
        raise SystemExit(f"imports that do not go down: {', '.join(sorted(up))}")
    figure = draw(reduced({name: graph[name] & rooms for name in sorted(rooms)}), floor, ground)
    figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")
    print(f"wrote {PICTURE.relative_to(ROOT)}: {len(rooms)} rooms")


if __name__ == "__main__":
    main()
