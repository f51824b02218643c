"""Rates chosen for every arm: what tries run and what is chosen, as rules say that are written down here once more."""

import math
from itertools import product

import pytest

from decorlib.study.experiments import side_by_side, tuning
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.grids import edge, moved_grid, moved_parts, neighbour
from decorlib.study.experiments.tuning import Moves, choose

BASE = Experiment(train_size=1000, epochs=8, hidden=(8,))
RATES = {"lr": [1e-3, 2e-3, 4e-3], "decor_lr": [3e-5, 1e-4, 3e-4]}
SEEDS = [100, 101]
AGAIN = Moves(3, forget=True, digits=3)  # of decorlib.study.experiments.scales
ALONE = Moves(3, alone=True)  # of decorlib.study.questions.instead.tries

SCORES = {
    "inside": lambda spec: off(spec, 2e-3, 1e-4),
    "larger, smaller": lambda spec: off(spec, 3e-2, 1e-6),
    "smaller, larger": lambda spec: off(spec, 2e-4, 1e-3),
    "far away": lambda spec: off(spec, 1e3, 1e-12),
    "back again": lambda spec: off(spec, 1e-4 if spec.decor_lr < 2e-5 else 8e-3, 1e-6),
    "large ones diverge": lambda spec: None if spec.lr > 5e-3 else off(spec, 3e-2, 1e-6),
    "a seed diverges": lambda spec: None if spec.seed == 101 and spec.lr < 3e-3 else off(spec, 1e-4, 1e-4),
    "all diverge": lambda spec: None,
    "all equal": lambda spec: 1.0,
    "coarse": lambda spec: round(off(spec, 1e-2, 1e-5)),
}


def off(spec, lr, decor_lr):
    return abs(math.log2(spec.lr / lr)) + abs(math.log2(spec.decor_lr / decor_lr)) + 0.01 * math.sin(spec.seed)


@pytest.fixture
def fake(monkeypatch):
    """A sweep whose losses are a function of the specification: no training. Returned: what it was asked for."""
    asked = []

    def install(score):
        def sweep(specs, **options):
            asked.extend(specs)
            values = [score(spec) for spec in specs]
            return [
                {"status": "diverged", "final": {}} if v is None else {"status": "finished", "final": {"test_loss": v}}
                for v in values
            ]

        monkeypatch.setattr(side_by_side, "sweep", sweep)
        return asked

    return install


def points_of(grid):
    return list(product(*grid.values()))


def best_of(score, points):
    """Fewest diverged seeds, lowest mean, smallest rates."""

    def order(point):
        found = [score(BASE.but(**dict(zip(RATES, point, strict=True)), seed=seed)) for seed in SEEDS]
        lost = found.count(None)
        return lost, math.inf if lost else sum(found) / len(found), point

    return dict(zip(RATES, min(points, key=order), strict=True))


def one_further(values, chosen):
    """A grid that goes on in its ratio by one rate of three digits where its first or last was chosen."""
    if chosen == values[0]:
        return [float(f"{values[0] ** 2 / values[1]:.3g}"), *values[:-1]]
    if chosen == values[-1]:
        return [*values[1:], float(f"{values[-1] ** 2 / values[-2]:.3g}")]
    return values


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_a_grid_that_moves_and_forgets_is_tuned_again_and_again(fake, score):
    asked = fake(score)
    best, tries = choose({"a": BASE}, RATES, SEEDS, "test_loss", moves=AGAIN, quiet=True)
    grid, ran, moved = RATES, set(), 0
    while True:
        points = points_of(grid)
        expected, ran = best_of(score, points), ran | set(points)
        there = {field: one_further(values, expected[field]) for field, values in grid.items()}
        if there == grid or moved == 3:
            break
        grid, moved = there, moved + 1
    assert best == {"a": BASE.but(**expected)}
    assert {(spec.lr, spec.decor_lr) for spec in asked} == ran
    assert len(asked) == len(set(asked)) == 2 * len(ran)  # none is run twice
    assert list(zip(tries["lr"], tries["decor_lr"], strict=True)) == points  # of the last grid alone
    assert set(tries["moved"]) == {moved}
    assert (tries.loc[tries["chosen"], "edge"].item() != "") == (there != grid)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_alone_every_neighbour_of_the_best_try_is_tried(fake, score):
    """One rate changed by one step, the other held; the slow way, point after point."""
    asked = fake(score)
    best, tries = choose({"a": BASE}, RATES, SEEDS, "test_loss", moves=ALONE, quiet=True)
    points, moved = points_of(RATES), [0] * 9
    for turn in range(1, 5):
        expected, new = best_of(score, points), []
        for i, field in enumerate(RATES):
            known = sorted({point[i] for point in points})
            place = known.index(expected[field])
            below = known[place - 1] if place else known[0] * (known[0] / known[1])
            above = known[place + 1] if place + 1 < len(known) else known[-1] * (known[-1] / known[-2])
            for value in (below, above):
                there = tuple((expected | {field: value}).values())
                held = [p[i] for p in points if p[1 - i] == there[1 - i]]
                # on the way out, or where nothing was tried on that side
                if there not in points and not any(
                    (v < expected[field]) == (value < expected[field]) for v in held if v != expected[field]
                ):
                    new.append(there)
        if turn == 4 or not new:
            break
        points, moved = [*points, *new], moved + [turn] * len(new)
    assert best == {"a": BASE.but(**expected)}
    assert list(zip(tries["lr"], tries["decor_lr"], strict=True)) == points
    assert len(asked) == len(set(asked)) == 2 * len(points)
    assert tries["moved"].tolist() == moved
    assert (tries.loc[tries["chosen"], "edge"].item() != "") == bool(new)


def test_a_corner_is_left_in_one_rate_at_a_time(fake):
    """The best beyond the corner in one rate only: a step in both at once would miss it, and show no edge."""
    asked = fake(lambda spec: abs(math.log(spec.lr / 8e-3)) + 9 * abs(math.log(spec.decor_lr / 1e-3)))
    rates = {"lr": [1e-3, 2e-3, 4e-3], "decor_lr": [1e-5, 1e-4, 1e-3]}
    best, tries = choose({"a": BASE}, rates, SEEDS, "test_loss", moves=Moves(8, alone=True), quiet=True)
    assert (best["a"].lr, best["a"].decor_lr) == (8e-3, 1e-3)
    tried = {(f"{spec.lr:g}", f"{spec.decor_lr:g}") for spec in asked}
    assert tried >= {("0.008", "0.0001"), ("0.008", "0.01"), ("0.016", "0.001")}
    assert tries.loc[tries["chosen"], "edge"].item() == ""


def test_a_value_counts_as_tried_beside_the_others_only(fake):
    fake(lambda spec: abs(math.log(spec.lr / 8e-3)) + 9 * abs(math.log(spec.decor_lr / 1e-3)))
    rates = {"lr": [1e-3, 2e-3, 4e-3], "decor_lr": [1e-5, 1e-4, 1e-3]}
    _, tries = choose({"a": BASE}, rates, SEEDS, "test_loss", moves=Moves(1, alone=True), quiet=True)
    said = tries.loc[tries["chosen"], "edge"].item()
    assert said == "lr = 0.008 is the largest of 4; decor_lr = 0.001 is the only one of 1"


def test_neighbours():
    assert neighbour("lr", 2.0, True, [1.0, 2.0, 4.0]) == 4
    assert neighbour("lr", 4.0, True, [1.0, 2.0, 4.0]) == 8
    assert neighbour("lr", 1.0, False, [1.0, 2.0, 4.0]) == 0.5
    assert neighbour("shrinkage", 0.9, True, [0.5, 0.9]) == pytest.approx(81 / 82)
    assert neighbour("shrinkage", 1.0, True, [0.5, 1.0]) is None
    assert neighbour("lr", 1.0, True, [1.0]) is None
    assert neighbour("width", 64, True, [32, 64]) is None


@pytest.mark.parametrize("moves", [tuning.STAY, Moves(3), AGAIN, ALONE], ids=["stay", "half", "again", "alone"])
def test_an_arm_is_chosen_for_as_if_it_were_the_only_one(fake, moves):
    """Arms wait for each other in rounds, and share runs that are the same; neither shows."""
    arms = {"a": BASE, "b": BASE.but(rule="kappa"), "as a": BASE}
    fake(lambda spec: off(spec, *((3e-2, 1e-6) if spec.rule == "kappa" else (2e-4, 1e-4))))
    options = {"rounds": (0.5, 1), "moves": moves, "trial": by_half, "quiet": True}
    best, tries = choose(arms, RATES, SEEDS, "test_loss", **options)
    for name, arm in arms.items():
        alone, own = choose({name: arm}, RATES, SEEDS, "test_loss", **options)
        assert best[name] == alone[name]
        assert tries[tries["arm"] == name].reset_index(drop=True).equals(own)


def by_half(spec, part):
    return spec.but(split="validation", epochs=int(part * spec.epochs))


def test_a_moved_try_alone_runs_in_full_length_only(fake):
    asked = fake(lambda spec: off(spec, 3e-2, 1e-4))
    _, tries = choose({"a": BASE}, RATES, SEEDS, "test_loss", rounds=(0.5, 1), moves=ALONE, trial=by_half, quiet=True)
    assert tries.groupby("moved")["part"].apply(list).to_dict() == {
        0: [0.5] * 9 + [1] * 4,
        1: [1],
        2: [1] * 3,
        3: [1] * 3,
    }
    assert [spec.epochs for spec in asked] == [4] * 18 + [8] * (8 + 14)
    half = tries[(tries["part"] == 1) & (tries["moved"] == 0)]
    assert half["lr"].tolist() == [2e-3, 4e-3, 4e-3, 4e-3]  # as the grid has them, not best first


def test_one_try_has_nothing_to_be_halved_for(fake):
    asked = fake(lambda spec: 1.0)
    one = {"lr": [1e-3], "decor_lr": [1e-4]}
    best, tries = choose({"a": BASE}, one, SEEDS, "test_loss", rounds=(0.5, 1), moves=Moves(3), trial=by_half)
    assert [spec.epochs for spec in asked] == [8, 8]
    assert tries["part"].tolist() == [1]
    assert best["a"] == BASE.but(lr=1e-3, decor_lr=1e-4)


def test_what_is_said_and_what_is_not(fake, capsys):
    fake(lambda spec: off(spec, 1e-2, 1e-4))
    choose({"a": BASE}, RATES, SEEDS, "test_loss", moves=Moves(1), quiet=True)
    assert capsys.readouterr().out == ""
    choose({"a": BASE}, RATES, SEEDS, "test_loss", moves=Moves(1))
    edge = "the best try is on the edge of the grid: lr = 0.008 is the largest of 4"
    assert capsys.readouterr().out == f"a: its grid moved 1 times; {edge}\n"
    choose({"a": BASE}, RATES, SEEDS, "test_loss", moves=Moves(3))
    assert capsys.readouterr().out == "a: its grid moved 2 times\n"


def test_a_rate_of_zero_has_no_ratio_to_move_by(fake):
    fake(lambda spec: spec.decor_lr)
    best, tries = choose({"a": BASE}, {"decor_lr": [0.0, 1e-4, 1e-3]}, SEEDS, "test_loss", moves=Moves(3), quiet=True)
    assert best["a"].decor_lr == 0
    assert tries["moved"].max() == 0
    assert tries.loc[tries["chosen"], "edge"].item() == "decor_lr = 0 is the smallest of 3"
    fake(lambda spec: -spec.decor_lr)
    _, tries = choose({"a": BASE}, {"decor_lr": [0.0, 1e-4]}, SEEDS, "test_loss", moves=Moves(3), quiet=True)
    assert tries.loc[tries["chosen"], "edge"].item() == "decor_lr = 0.0001 is the largest of 2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {}}, "0 arms and 2 seeds"),
        ({"seeds": []}, "1 arms and 0 seeds"),
        ({"rounds": (1, 0.5)}, "parts that rise to 1"),
        ({"rounds": (0, 1)}, "parts that rise to 1"),
        ({"keep": 0}, "keep is 0"),
        ({"rounds": (0.5, 1)}, "rounds have a part of 0.5"),
        ({"rates": {"lr": []}}, "no value is given for lr"),
        ({"rates": {"rate": [1, 2]}}, "rate: no such field of Experiment"),
        ({"rates": {"b": {"lr": [1, 2]}}}, "rates are given for b, but the arms are a"),
    ],
)
def test_what_is_no_fair_choice_is_refused_before_a_run(fake, change, message):
    asked = fake(lambda spec: 1.0)
    given = {"arms": {"a": BASE}, "rates": RATES, "seeds": SEEDS, "metric": "test_loss"} | change
    with pytest.raises(ValueError, match=message):
        choose(**given)
    assert asked == []


def test_moves_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="moves = -1 must be at least 0"):
        Moves(-1)
    with pytest.raises(ValueError, match="alone and forget exclude each other"):
        Moves(3, alone=True, forget=True)


def test_moved_parts_stay_between_0_and_1_and_keep_what_was_tried_to_the_bit():
    odds = [0.5 / 0.5, 0.8 / 0.2, 0.95 / 0.05]
    beyond = odds[2] ** 2 / odds[1]
    up = moved_parts([0.5, 0.8, 0.95], up=True)
    assert up[:2] == [0.8, 0.95]
    assert up[2] == pytest.approx(beyond / (1 + beyond))
    assert moved_parts([0.95], up=True, seen=[0.5, 0.8, 0.95]) == [pytest.approx(up[2])]
    assert moved_parts([0.5, 0.8], up=False) == [pytest.approx(0.2), 0.5]
    grown = [0.5, 0.8]
    for _ in range(8):
        grown = moved_parts(grown, up=True)
        assert 0 < grown[0] < grown[1] < 1


def test_moved_grids_go_on_in_the_ratio_at_their_end():
    assert moved_grid([1.0, 2.0, 4.0, 8.0], up=True) == [4, 8, 16, 32]
    assert moved_grid([1.0, 2.0, 4.0, 8.0], up=False) == [0.25, 0.5, 1, 2]
    assert moved_grid([1.0, 3.0, 9.0], up=True) == [3, 9, 27]
    assert moved_grid([4.0, 8.0, 16.0, 32.0], up=False, seen=[1.0, 2.0]) == [0.25, 0.5, 1, 2]
    assert moved_grid([4.0], up=True, seen=[1.0, 2.0, 4.0]) == [8]


def test_new_rates_have_as_many_digits_as_asked_for():
    assert moved_grid([1e-4, 3e-4, 9e-4], up=False, digits=3) == [3.33e-5, 1e-4, 3e-4]
    assert moved_grid([1e-4, 3e-4, 9e-4], up=True, digits=3) == [3e-4, 9e-4, 2.7e-3]


def test_an_edge_is_one_of_several_numbers():
    assert [edge(value, [3, 1, 2]) for value in (1, 2, 3)] == ["smallest", "", "largest"]
    assert edge(1, [1]) == edge(1, [1, 1]) == edge("auto", ["auto", 1, 2]) == ""
    assert edge(1, ["auto", 1, 2]) == "smallest"
    assert edge(True, [False, True]) == ""
