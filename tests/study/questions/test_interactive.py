import matplotlib.pyplot as plt
import pytest
import torch

from decorlib.study.questions.rules import interactive


def test_walk_whitens_and_reports_every_step():
    path = interactive.walk(400, 0.5, 0.2)
    assert path.diverged_at is None
    assert len(path.correlation) == 401
    assert path.correlation[0] == pytest.approx(0.9 / (2 * 0.6) ** 0.5)
    assert abs(path.correlation[-1]) < 1e-6
    X = path.R @ interactive.S @ path.R.T
    assert torch.allclose(X, torch.eye(2, dtype=X.dtype), atol=1e-5)
    assert path.variances[-1] == pytest.approx((float(X[0, 0]), float(X[1, 1])))


def test_zero_steps_leave_the_cloud_alone():
    assert torch.equal(interactive.walk(0, 0.5, 0.2).R, torch.eye(2, dtype=torch.float64))


def test_ellipse_lies_at_two_deviations():
    u = torch.as_tensor(interactive.ellipse(interactive.S))
    distance = (u * torch.linalg.solve(interactive.S, u)).sum(0).sqrt()
    assert torch.allclose(distance, torch.full_like(distance, 2.0))


@pytest.mark.parametrize(("rate", "says"), [(0.2, "correlation 0.0"), (10.0, "diverged at step")])
def test_draw_says_what_it_shows(rate, says):
    fig, alt = interactive.draw(100, 0.5, rate)
    plt.close(fig)
    assert says in alt
    assert f"rate {rate:g}" in alt


@pytest.mark.parametrize("settings", [{"DECORLIB_BATCH": "1"}, {"DECORLIB_PROGRESS": "off"}])
def test_unattended_it_is_one_static_figure(settings, monkeypatch):
    shown = []
    monkeypatch.setattr(interactive, "show", lambda fig, alt, name: shown.append(alt) or plt.close(fig))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    interactive.explore(10, 0.5, 0.2)
    assert len(shown) == 1
    assert "10 steps" in shown[0]


def test_attended_the_sliders_redraw(monkeypatch):
    import IPython.display

    displayed, drawn = [], []
    monkeypatch.setattr(interactive, "_attended", lambda: True)
    monkeypatch.setattr(interactive, "show", lambda fig, alt, name: drawn.append(alt) or plt.close(fig))
    monkeypatch.setattr(IPython.display, "display", displayed.append)
    interactive.explore(10, 0.5, 0.2)
    (box,) = displayed
    steps, kappa, rate = box.children[0].children
    before = len(drawn)
    kappa.value = 1.0
    assert len(drawn) == before + 1
    assert "kappa 1" in drawn[-1]
    assert (steps.value, rate.value) == (10, pytest.approx(0.2))
