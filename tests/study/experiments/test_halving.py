"""Successive halving: the same tries for every arm, grids that move, and a choice that a slow reference makes too."""

import math
from itertools import product

import pytest

from decorlib.study.experiments import halving, side_by_side
from decorlib.study.experiments.experiment import Experiment

BASE = Experiment(epochs=8, train_size=6400, hidden=(8,), seed=9, evaluate_every=0.5)
RATES = {"lr": [1e-3, 2e-3, 4e-3, 8e-3], "decor_lr": [1e-4, 3e-4, 9e-4, 27e-4]}


def record(accuracy):
    diverged = accuracy is None
    return {
        "status": "diverged" if diverged else "finished",
        "diverged_at": 1 if diverged else None,
        "final": {} if diverged else {"test_accuracy": accuracy},
        "epochs": [],
    }


@pytest.fixture
def fake(monkeypatch):
    """A sweep whose results are a function of the specification: no training. Returned: what it was asked for."""
    asked = []

    def install(accuracy):
        def sweep(specs, **options):
            asked.append(list(specs))
            return [record(accuracy(spec)) for spec in specs]

        monkeypatch.setattr(side_by_side, "sweep", sweep)
        return asked

    return install


def peak(lr, decor_lr=1e-3, diverges_above=math.inf):
    """Best at those rates at full length; short tries prefer larger rates, and seeds differ."""

    def accuracy(spec):
        if spec.lr > diverges_above:
            return None
        hurry = 0.3 * math.log2(8 / spec.epochs)
        off = (math.log2(spec.lr / lr) - hurry) ** 2
        off += 0 if spec.rule is None else math.log2(spec.decor_lr / decor_lr) ** 2
        return 0.9 - 0.01 * off + 0.0003 * ((7 * spec.seed + 13 * round(1e5 * spec.lr)) % 5)

    return accuracy


def slowly(accuracy, spec, rates, seeds, rounds, moves):
    """The rule written down once more: no memory, no shared code. Returns the best rates, all tries, and the moves."""

    def of(part, point):
        found = [
            accuracy(spec.but(split="validation", evaluate_every=0, epochs=part * spec.epochs, seed=s, **point))
            for s in seeds
        ]
        diverged = sum(value is None for value in found)
        return diverged, math.inf if diverged else -sum(found) / len(found), *point.values()

    grid, tried, full, done = {k: list(v) for k, v in rates.items()}, {k: set(v) for k, v in rates.items()}, {}, set()
    for moved in range(moves + 1):
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        for part in rounds:
            scored = sorted((of(part, point), i) for i, point in enumerate(points))
            done |= {(part, *point.values()) for point in points}
            if part == 1:
                full |= {score: point for (score, _), point in zip(scored, [points[i] for _, i in scored], strict=True)}
            points = [points[i] for _, i in scored[: max(1, len(scored) // 2)]]
        best = full[min(full)]
        at = {
            k: "low" if best[k] == min(tried[k]) else "high" for k in grid if best[k] in (min(tried[k]), max(tried[k]))
        }
        if not at or moved == moves:
            return best, done, moved
        for k, end in at.items():
            values = sorted(tried[k], reverse=end == "low")
            for _ in range(len(grid[k]) // 2):
                values.append(
                    values[-1]
                    * (sorted(tried[k], reverse=end == "low")[-1] / sorted(tried[k], reverse=end == "low")[-2])
                )
            grid[k] = sorted(values[-len(grid[k]) :])
        for k in grid:
            tried[k] |= set(grid[k])
    raise AssertionError


@pytest.mark.parametrize("lr", [3e-3, 9e-3, 4e-2, 1e-4])
@pytest.mark.parametrize("decor_lr", [5e-4, 1e-5])
@pytest.mark.parametrize("diverges_above", [math.inf, 4e-3])
def test_it_is_the_slow_reference(fake, lr, decor_lr, diverges_above):
    accuracy = peak(lr, decor_lr, diverges_above)
    asked = fake(accuracy)
    best, tries = halving.halve({"a": BASE}, RATES, [100, 101], quiet=True)
    expected, done, moved = slowly(accuracy, BASE, RATES, [100, 101], halving.ROUNDS, 3)
    assert best["a"].lr == pytest.approx(expected["lr"])
    assert best["a"].decor_lr == pytest.approx(expected["decor_lr"])
    assert best["a"] == BASE.but(
        lr=best["a"].lr, decor_lr=best["a"].decor_lr
    )  # length, seed and measurements are its own
    assert len(tries) == len(done)
    assert tries["moved"].max() == moved
    specs = [spec for these in asked for spec in these]
    assert len(specs) == len(set(specs)) == 2 * len(tries)  # no experiment twice
    assert {(s.split, s.evaluate_every) for s in specs} == {("validation", 0)}
    assert (tries["diverged"] > 0).any() == (diverges_above < math.inf)


def test_every_arm_gets_as_many_tries_of_each_length_with_every_seed(fake):
    fake(peak(3e-3, 4e-4))
    arms = {"plain": BASE.but(rule=None), "ours": BASE}
    many = [1e-3 * 2 ** (k / 3) for k in range(16)]
    best, tries = halving.halve(arms, {"plain": {"lr": many}, "ours": RATES}, range(100, 103), quiet=True)
    first = tries[tries["moved"] == 0]
    assert first.groupby("arm")["part"].value_counts().unstack().to_dict("index") == {
        name: {1 / 8: 16, 1 / 4: 8, 1 / 2: 4, 1: 2} for name in arms
    }
    assert dict(zip(tries["part"], tries["epochs"], strict=True)) == {1 / 8: 1, 1 / 4: 2, 1 / 2: 4, 1: 8}
    assert tries[tries["chosen"]]["arm"].tolist() == ["plain", "ours"]
    assert (tries[tries["chosen"]]["part"] == 1).all()
    assert best["plain"].rule is None


def test_alone_one_rate_leaves_its_edge_at_a_time_in_full_length_until_nothing_beside_the_best_is_untried(fake):
    fake(peak(3.2e-2, 6e-4))  # two steps beyond the largest rate of the weights; that of R lies inside
    _, tries = halving.halve({"a": BASE}, RATES, [100, 101], quiet=True, move=8, alone=True)
    later, best = tries[tries["moved"] > 0], tries[tries["chosen"]].iloc[0]
    assert (later["part"] == 1).all()
    assert best["edge"] == ""
    assert best["lr"] > max(RATES["lr"])
    for moved, tried in later.groupby("moved"):
        before = tries[(tries["part"] == 1) & (tries["moved"] < moved)]
        middle = before.loc[before["test_accuracy"].idxmax()]
        assert ((tried[["lr", "decor_lr"]] != middle[["lr", "decor_lr"]]).sum(axis=1) == 1).all()
    assert tries.duplicated(["part", "lr", "decor_lr"]).sum() == 0


def test_a_grid_moves_until_its_choice_lies_inside_and_says_how_often(fake, capsys):
    fake(peak(3e-2))
    best, tries = halving.halve({"a": BASE.but(rule=None)}, {"lr": RATES["lr"]}, [0, 1])
    assert tries[tries["chosen"]]["edge"].item() == ""
    assert tries["moved"].max() == 2
    assert "its grid moved 2 times" in capsys.readouterr().out
    assert best["a"].lr == pytest.approx(32e-3)


def test_moves_are_bounded_and_what_lies_on_an_edge_then_is_said(fake, capsys):
    fake(peak(1e3))
    rates = {"lr": RATES["lr"]}
    for move, times in ((True, 3), (1, 1), (False, 0)):
        best, tries = halving.halve({"a": BASE.but(rule=None)}, rates, [0, 1], move=move)
        largest = 8e-3 * 4**times
        assert best["a"].lr == pytest.approx(largest)
        assert tries["moved"].max() == times
        assert f"lr = {largest:g} is the largest of {4 + 2 * times}" in tries[tries["chosen"]]["edge"].item()
        said = capsys.readouterr().out
        assert (f"its grid moved {times} times" in said) == (times > 0)
        assert "the best try is on the edge of the grid" in said


def test_only_the_arm_on_its_edge_moves_and_only_in_that_rate(fake):
    asked = fake(lambda spec: 0.9 - abs(math.log2(spec.lr / (3e-3 if spec.rule else 3e-2))))
    rates = {"a": {"lr": [1e-3, 2e-3, 4e-3, 8e-3]}, "b": {"lr": [1e-3, 2e-3, 4e-3, 8e-3]}}
    _, tries = halving.halve({"a": BASE, "b": BASE.but(rule=None)}, rates, [0, 1], quiet=True)
    assert tries.groupby("arm")["moved"].max().to_dict() == {"a": 0, "b": 2}
    assert {spec.rule for these in asked[4:] for spec in these} == {None}


def test_shrinkages_move_between_0_and_1(fake):
    fake(lambda spec: spec.shrinkage)
    best, tries = halving.halve({"a": BASE}, {"shrinkage": [0.1, 0.5, 0.9]}, [0, 1], quiet=True)
    assert tries["moved"].max() == 3
    assert best["a"].shrinkage == tries["shrinkage"].max() == pytest.approx(9**4 / (1 + 9**4))
    assert "is the largest of 6" in tries[tries["chosen"]]["edge"].item()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_nothing_lies_beyond_a_limit_of_shrinkage(fake, limit):
    fake(lambda spec: -abs(spec.shrinkage - limit))
    best, tries = halving.halve({"a": BASE}, {"shrinkage": [limit, 0.5]}, [0, 1], quiet=True)
    assert (best["a"].shrinkage, tries["moved"].max()) == (limit, 0)


@pytest.mark.parametrize(("split", "after"), [("both", "both"), ("validation", "test"), ("test", "test")])
def test_the_chosen_arm_reads_the_test_set_as_it_was_told_to(fake, split, after):
    fake(peak(3e-3))
    best, _ = halving.halve({"a": BASE.but(split=split)}, {"lr": RATES["lr"]}, [0, 1], quiet=True)
    assert best["a"].split == after


def test_short_tries_are_cut_to_parts_of_an_epoch_that_there_are():
    spec = BASE.but(epochs=3)
    assert [halving.shortened(spec, part).epochs for part in halving.ROUNDS] == [0.375, 0.75, 1.5, 3]
    few = spec.but(train_size=3 * 64)  # 3 batches: halves at most
    assert [halving.shortened(few, part).epochs for part in halving.ROUNDS] == [0.5, 1, 1.5, 3]
    assert halving.shortened(BASE, 0.5).epochs == 4
    assert isinstance(halving.shortened(BASE, 0.5).epochs, int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0]}, "1 arms and 1 seeds"),
        ({"arms": {}}, "0 arms and 2 seeds"),
        ({"rounds": (0.5, 0.25, 1)}, "rounds are"),
        ({"rounds": (0.25, 0.5)}, "rounds are"),
        ({"rounds": ()}, "rounds are"),
        ({"keep": 1}, "keep is 1"),
        ({"move": -1}, "moves = -1 must be at least 0"),
        ({"rates": {"a": {"lr": [1, 2, 3]}, "b": {"lr": [1]}}, "arms": {"a": BASE, "b": BASE}}, "unequal numbers"),
        ({"rates": {"rate": [1, 2]}}, "rate: no such field"),
    ],
)
def test_what_is_no_fair_choice_is_refused_before_a_run(fake, change, message):
    asked = fake(peak(1))
    given = {"arms": {"a": BASE}, "rates": {"lr": [1, 2, 3]}, "seeds": [0, 1]} | change
    with pytest.raises(ValueError, match=message):
        halving.halve(given.pop("arms"), given.pop("rates"), given.pop("seeds"), **given)
    assert asked == []


def test_real_tries_are_deterministic_and_anneal_over_their_own_length(tmp_path):
    spec = Experiment(train_size=640, hidden=(8,), epochs=2, lr_schedule="cosine_steps", rule=None)
    options = {"rounds": (1 / 4, 1), "engine": "serial", "quiet": True, "move": False}
    again = [
        halving.halve({"a": spec}, {"lr": [1e-3, 1e-2, 1e-1]}, [0, 1], cache=tmp_path / d, **options) for d in "xy"
    ]
    assert again[0][0] == again[1][0]
    assert again[0][1].equals(again[1][1])
