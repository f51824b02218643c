"""The rooms of decorlib and the imports between them: ``python tests/helpers/rooms.py [FOLDER that holds decorlib]``.

Prints the rooms by floor, with what each imports, and ends with 1 where an import is not allowed. For an older commit:
``git archive COMMIT decorlib | tar -x -C FOLDER`` first.
"""

import sys
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

CORE = ("rules", "layers", "optim", "conversion", "training", "data", "metrics", "_io")
# What a room may import. A room that is not listed here may import nothing and is reported.
MAY_IMPORT = {
    "_io": (),
    "rules": (),
    "metrics": ("rules",),
    "data": ("_io",),
    "layers": ("rules",),
    "optim": ("rules", "layers"),
    "conversion": ("rules", "layers"),
    "training": ("rules", "layers", "optim", "metrics", "_io"),
    "integrations": ("rules", "layers", "optim", "training"),
    "study.sweeps": ("_io",),
    "study.evidence": ("_io",),
    "study.experiments": (*CORE, "study.sweeps", "study.evidence"),
    "study.questions": (*CORE, "study.sweeps", "study.evidence", "study.experiments"),
    "study.report": ("study.evidence", "study.sweeps", "_io"),
}
# Of a room that may be imported, only these modules.
ONLY = {("study.report", "study.sweeps"): {"decorlib.study.sweeps.source"}}
# They hand on names to users and import nearly everything: nothing inside decorlib may import them.
FACADES = {"decorlib", "decorlib.study"}


def build(folder: Path | str | None = None) -> grimp.ImportGraph:
    """The graph of imports of decorlib; with `folder`, of the package that lies there."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    return grimp.build_graph("decorlib", cache_dir=None)


def room_of(module: str) -> str:
    """``decorlib.study.sweeps.runs`` is in ``study.sweeps``; every folder of ``study.questions`` is a room."""
    _, *parts = module.split(".")
    if parts[:1] != ["study"]:
        return ".".join(parts[:1])
    return ".".join(parts[:3] if parts[:2] == ["study", "questions"] else parts[:2])


def arrows(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Every import as (who imports, what)."""
    return sorted((m, other) for m in graph.modules for other in graph.find_modules_directly_imported_by(m))


def between_rooms(graph: grimp.ImportGraph) -> Counter[tuple[str, str]]:
    """How many imports go from one room to another; facades left out."""
    pairs = ((room_of(m), room_of(other)) for m, other in arrows(graph) if not {m, other} & FACADES)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def forbidden(graph: grimp.ImportGraph) -> list[str]:
    """Imports that the rules do not allow, one sentence each."""
    found = []
    for importer, imported in arrows(graph):
        home, other = room_of(importer), room_of(imported)
        if imported in FACADES:
            found.append(f"{importer} imports {imported}: import from the room that has the name")
        if {importer, imported} & FACADES or home == other:
            continue
        kind = "study.questions" if home.startswith("study.questions.") else home
        allowed = MAY_IMPORT.get(kind, ())
        only = ONLY.get((kind, other), {imported})
        if other not in allowed:
            found.append(f"{importer} imports {imported}: {home} may import {', '.join(allowed) or 'no other room'}")
        elif imported not in only:
            found.append(f"{importer} imports {imported}: of {other} only {', '.join(sorted(only))}")
    return found


def floors(arrows: list[tuple[str, str]], names: set[str]) -> dict[str, int]:
    """How high each name stands: 1 where it imports nothing, else one above the highest that it imports.

    Raises:
        graphlib.CycleError: names that import each other, in a circle.
    """
    below = defaultdict(set, {name: set() for name in names})
    for importer, imported in arrows:
        below[importer].add(imported)
    height: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():
        height[name] = 1 + max((height[other] for other in below[name]), default=0)
    return height


def picture(graph: grimp.ImportGraph) -> str:
    """Rooms by floor from the top, what each imports and how often, and the counts."""
    pairs, rooms = between_rooms(graph), {room_of(m) for m in graph.modules} - {"", "study", "study.questions"}
    height, lines = floors(list(pairs), rooms), []
    for floor in sorted(set(height.values()), reverse=True):
        lines.append(f"floor {floor}")
        for room in sorted(name for name in rooms if height[name] == floor):
            size = sum(room_of(m) == room for m in graph.modules)
            below = ", ".join(f"{other} {n}" for (name, other), n in sorted(pairs.items()) if name == room)
            lines.append(f"  {room:28} {size:3} modules  <- {below or 'nothing'}")
    inside = floors(arrows(graph), set(graph.modules))
    one = {room if not room.startswith("study.questions.") else "study.questions" for room in rooms}
    as_one = {tuple(".".join(name.split(".")[:2]) for name in pair) for pair in pairs}
    lines.append(f"{len(graph.modules)} modules on {max(inside.values())} floors, {len(arrows(graph))} imports")
    lines.append(f"{len(rooms)} rooms on {max(height.values())} floors, {len(pairs)} pairs that import")
    lines.append(f"with the questions as one room: {len(one)} rooms, {len(as_one)} pairs that import")
    return "\n".join(lines)


def main(folder: str | None = None) -> int:
    """The picture, and what is not allowed in it."""
    graph = build(folder)
    wrong = forbidden(graph)
    try:
        print(picture(graph))
    except CycleError as error:
        circle = error.args[1][:-1]  # its first stands at the end again; begin it with the first by name
        start = circle.index(min(circle))
        print(f"no floors: {' <- '.join([*circle[start:], *circle[:start], circle[start]])}")
        wrong.append("there is a circle")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
