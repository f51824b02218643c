"""Every learning rule by the name that specifications, notebooks and ``decorrelate(model, rule="kappa")`` use."""

from __future__ import annotations

from decorlib.rules import maps, rules, variants, whitening
from decorlib.rules.rules import Rule

RULES: dict[str, type[Rule]] = {
    "notebook": rules.NotebookRule,
    "plain": rules.PlainDecorrelation,
    "kappa": rules.KappaRule,
    "kappa_columns": variants.ColumnScaledKappaRule,
    "triangular": variants.TriangularRule,
    "whitening": rules.WhiteningRule,
    "adaptive_gain": maps.AdaptiveGainRule,
    "foldiak": maps.FoldiakRule,
    "exact": whitening.ExactWhitening,
}


#: Older names, which :func:`make_rule` goes on taking.
ALIASES = {"seed": "notebook"}


def make_rule(name: str, **hyperparameters) -> Rule:
    """The rule called ``name`` (a key of :data:`RULES`, or an older name) with its hyperparameters."""
    name = ALIASES.get(name, name)
    if name not in RULES:
        raise ValueError(f"no rule is called {name!r}; there are: {', '.join(RULES)}")
    return RULES[name](**hyperparameters)
