"""A training step of an older commit beside today's, as parts of the same plain step: ``make before COMMIT=46d481b``.

Two versions of a package cannot share a process. So each is measured in processes of its own, which take turns: in
each, the plain step and the steps with R take turns, and what counts is their ratio. Nothing else should run beside
it. Needs the repository's history. Writes results/benchmarks/before_COMMIT.json: medians over rounds, and each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (784, 256, 256, 10)


def mlp(rule=None, first=False, normalised=False, **options):
    """784-256-256-10; with a rule, R in all layers but the first, or in that one, too."""
    from torch import nn

    from decorlib import DecorLinear

    layers = []
    for depth, (D, M) in enumerate(pairwise(WIDTHS)):
        plain = rule is None or (depth == 0 and not first)
        layers.append(nn.Linear(D, M) if plain else DecorLinear(D, M, rule=rule, **options))
        if depth < len(WIDTHS) - 2:
            layers += ([nn.BatchNorm1d(M)] if normalised else []) + [nn.LeakyReLU()]
    return nn.Sequential(*layers)


def convnet(rule=None, **options):
    """Three convolutions of stride 2 and a read-out, for 28 x 28 images."""
    from torch import nn

    from decorlib import decorrelate

    layers = []
    for C, M in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(C, M, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    return decorrelate(model, rule, **options) if rule else model


def resnet18(rule=None, **options):
    """torchvision's, with 10 classes."""
    from torchvision import models

    from decorlib import decorrelate

    model = models.resnet18(num_classes=10)
    return decorrelate(model, rule, **options) if rule else model


def training_step(model, shape):
    """Forward, cross-entropy, backward, Adam, R's step; by whatever this version steps R with."""
    import torch

    import decorlib

    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)
    optimizer = torch.optim.Adam(decorlib.bp_parameters(model), lr=1e-4, fused=True)
    learns = any(hasattr(module, "holds_R") or type(module).__name__ == "Decorrelation" for module in model.modules())
    owner = decorlib.DecorSGD(model, lr=1e-5) if learns and hasattr(decorlib, "DecorSGD") else None
    model.train()

    def step():
        loss = torch.nn.functional.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if owner is not None:
            owner.step()
        elif learns:
            decorlib.decor_step(model, lr=1e-5)

    return step


def settings():
    """Steps by workload: (calls in a row, turns, {name: step}), the plain one first."""
    from decorlib.rules import KappaRule

    kappa, every, sampled = KappaRule(kappa=0.5), {"update_every": 25}, {"fraction": 0.1, "update_every": 10}
    flat, images, large = (128, 784), (64, 1, 28, 28), (128, 3, 32, 32)
    return {
        "MLP 784-256-256-10, batch 128": lambda: (25, 15, {
            "plain": training_step(mlp(), flat),
            "BatchNorm": training_step(mlp(normalised=True), flat),
            "R in all layers but the first, every 25th step": training_step(mlp(kappa, center="batch", **every), flat),
            "R everywhere, every step": training_step(mlp(kappa, first=True, center="batch"), flat),
        }),
        "ConvNet, 28 x 28, batch 64": lambda: (25, 10, {
            "plain": training_step(convnet(), images),
            "R on patches, every 25th step": training_step(convnet(kappa, **every), images),
        }),
        "resnet18, 32 x 32, batch 128": lambda: (10, 2, {
            "plain": training_step(resnet18(), large),
            "R on channels, 10%, every 10th step": training_step(resnet18(kappa, span="channel", **sampled), large),
            "R on patches, 10%, every 10th step": training_step(resnet18(kappa, span="patch", **sampled), large),
        }),
    }  # fmt: skip


def measure(threads):
    """[workload, step, milliseconds, times the plain step] of the decorlib that is imported."""
    import warnings

    import torch

    warnings.simplefilter("ignore")  # both versions say how large R on patches of a resnet18 is
    torch.set_num_threads(threads)
    rows = []
    for workload, build in settings().items():
        if "resnet18" in workload and threads == 1:
            continue  # minutes, for products that one thread computes as two do
        torch.manual_seed(0)
        calls, turns, steps = build()
        seconds = {name: [] for name in steps}
        for turn in range(-1, turns):
            for name, step in steps.items():
                start = time.perf_counter()
                for _ in range(calls):
                    step()
                if turn >= 0:
                    seconds[name].append((time.perf_counter() - start) / calls)
        for name, taken in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(taken, seconds["plain"], strict=True))
            rows.append([workload, name, 1e3 * statistics.median(taken), ratio])
    return rows


def counted():
    """Operations of a step over those of the plain one, as today's version counts them: what no step goes below."""
    from decorlib.study.experiments import flops
    from decorlib.study.experiments.experiment import Experiment
    from decorlib.study.questions.cost import instead

    work = instead.work()
    plain = Experiment(model="convnet", rule=None, rule_options=(), batch_size=64)
    patches = plain.but(rule="kappa", rule_options=(("kappa", 0.5),), layer_options=(("update_every", 25),))
    return {
        "R in all layers but the first, every 25th step": work["R, every 25th"] / work["plain"],
        "R everywhere, every step": work["R everywhere, every step"] / work["plain"],
        "R on patches, every 25th step": flops.experiment(patches).total / flops.experiment(plain).total,
    }


def main():
    """Rounds of processes, before and now in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default="46d481b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child)))
        return
    from decorlib.study.evidence import provenance

    rounds = {}
    with tempfile.TemporaryDirectory() as folder:
        old = subprocess.run(["git", "archive", given.commit, "decorlib"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=old.stdout, check=True)
        for _ in range(given.rounds):
            for threads in (1, 2):
                for version, path in (("before", folder), ("now", ROOT)):
                    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": str(threads)}
                    # -P: not this script's folder, and not the current one, before the version that is asked for
                    call = [sys.executable, "-P", __file__, "--child", str(threads)]
                    done = subprocess.run(call, env=environment, cwd=folder, stdout=subprocess.PIPE, check=True)
                    for workload, step, ms, ratio in json.loads(done.stdout):
                        key = (workload, step, threads)
                        rounds.setdefault(key, {}).setdefault(version, []).append({"ms": ms, "of plain": ratio})
    rows = []
    for (workload, step, threads), found in rounds.items():
        row = {"workload": workload, "step": step, "threads": threads}
        for version in ("before", "now"):
            row[f"of plain, {version}"] = statistics.median(one["of plain"] for one in found[version])
            row[f"ms, {version}"] = statistics.median(one["ms"] for one in found[version])
        row["counted"] = counted().get(step)
        row["milliseconds, now over before"] = row["ms, now"] / row["ms, before"]
        rows.append(row | {"rounds": found})
        print(f"{workload}, {threads} thread(s), {step}: {row['of plain, before']:.2f} -> {row['of plain, now']:.2f}")
    target = ROOT / "results" / "benchmarks" / f"before_{given.commit}.json"
    target.parent.mkdir(exist_ok=True)
    made = provenance.provenance().as_dict()
    made["machine"].pop("threads", None)  # each row has its own
    target.write_text(json.dumps({"before": given.commit, "made_by": made, "rows": rows}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
