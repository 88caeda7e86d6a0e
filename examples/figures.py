"""The figures of the documentation: one function each, written to docs/figures/."""

import runpy
import tempfile
import threading
from pathlib import Path

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor, nn

import halikit as hk
from halikit import plotting
from halikit.analysis import health, propositions
from halikit.config import Config, override
from halikit.explore import Explorer, Server
from halikit.objectives import jensen_shannon

HERE = Path(__file__).parent


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.1), nn.Linear(64, outputs))


def composition() -> Figure:
    """Eq. 1: the bound on the density of a composition rises to its exact value as more states between are drawn."""
    torch.manual_seed(0)
    z2, z1, x = (hk.Space(name, (4,)) for name in ("z2", "z1", "x"))
    w1, w2 = torch.randn(2, 4, 4)
    exact = hk.LinearGaussianKernel(z1, x, w1) @ hk.LinearGaussianKernel(z2, z1, w2)
    bound = hk.Composite(*exact.factors)
    z = torch.randn(500, 4)
    with torch.no_grad():
        value = exact.sample(z)
        truth = exact.log_prob(value, z).mean().item()
        counts = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        bounds = [bound.estimate_log_prob(value, z, num_samples=n).value.mean().item() for n in counts]
    series = {"bound": (counts, bounds), "exact": (counts, [truth] * len(counts))}
    figure = plotting.curves(
        series, title="$\\log\\ T_{x|z_1} \\circ T_{z_1|z_2}$", x_label="draws of $z_1$", y_label="nats"
    )
    figure.axes[0].set_xscale("log", base=2)
    return figure


def joints(steps: int) -> Figure:
    """Eqs. 3 and 4: samples of both joints, before the game and after it."""
    torch.manual_seed(0)
    x, z = hk.Space("x", (1,)), hk.Space("z1", (1,))
    up = hk.GaussianKernel(x, z, mlp(1, 2), gauge="variance_preserving", max_scale=0.5)
    hierarchy = hk.Hierarchy([hk.Link(up, hk.GaussianKernel(z, x, mlp(1, 2), max_scale=0.5))])
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=64, input_noise=0.1))
    data = torch.randn(4000, 1) * 0.3 + torch.tensor([-1.2, 0.4, 1.3])[torch.arange(4000) % 3].unsqueeze(1)
    data = data[torch.randperm(4000)]
    settings = override(Config(), {"steps": steps, "learning_rate": 1e-3, "threads": 1})
    trainer = hk.Trainer(model, data, settings=settings)
    before = _both(hierarchy, data)
    trainer.fit()
    figure = Figure((8, 3.4), layout="constrained")
    for axes, title, both in zip(
        figure.subplots(1, 2, sharex=True, sharey=True),
        ("before", f"after {steps:,} steps"),
        (before, _both(trainer.averaged, data)),
        strict=True,
    ):
        for name, states in both.items():
            axes.scatter(states["x"], states["z1"], s=4, alpha=0.4, label=name)
        axes.set(title=title, xlabel="$x$", ylabel="$z_1$", xlim=(-3, 3), ylim=(-3.5, 3.5))
    axes.legend(loc="lower right", fontsize=8)
    return figure


@torch.no_grad()
def _both(hierarchy: hk.Hierarchy, data: Tensor) -> dict[str, dict[str, Tensor]]:
    was_training = hierarchy.training
    hierarchy.eval()
    found = {"$q(x, z_1)$": hierarchy.encode(data[:800], sample=True), "$p(x, z_1)$": hierarchy.sample_states(800)}
    hierarchy.train(was_training)
    return found


def game() -> Figure:
    """Algorithm 1: both losses of an encoder sample, against the discriminator's prediction."""
    s = torch.linspace(-4, 4, 101)
    losses = [jensen_shannon(logit.view(1), torch.zeros(1)) for logit in s]
    rho = s.sigmoid().tolist()
    # At s = 0 a decoder sample adds log 2 to either loss.
    series = {
        "$-\\log \\rho_q$, the discriminator's": (rho, [loss.discriminator.item() - 0.6931 for loss in losses]),
        "$-\\log (1 - \\rho_q)$, the generators'": (rho, [loss.generator.item() - 0.6931 for loss in losses]),
    }
    return plotting.curves(series, title="Losses of one encoder sample", x_label="$\\rho_q$", y_label="nats")


def trained(steps: int) -> hk.Hierarchy:
    """Three levels on digits."""
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(override(hk.presets.digits(), {"training.steps": steps})), "digits")
    trainer.fit()
    return trainer.averaged


def explore(hierarchy: hk.Hierarchy, out: Path) -> None:
    """The page of ``halikit explore`` with a latent moved and a mask painted; nothing where there is no browser."""
    window = runpy.run_path(str(HERE.parent / "tests" / "browser.py"))
    if window["chromium"]() is None:
        print("no Chromium with its driver is installed: explore.png stays as it is")
        return
    digits = hk.data.load("digits")
    mean = digits.train.batch(torch.arange(len(digits.train))).mean(0)
    with (
        Server(Explorer(hierarchy, "digits", data=digits, fill=mean)) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with window["started"](Path(profile)) as browser:
            browser.open(server.url, width=980)
            browser.wait("return document.querySelector('[data-entry]')")
            browser.drag("[data-entry]", [(0.5, 0.5), (0.9, 0.5)])
            browser.wait("return document.body.innerText.includes('moved by')")
            browser.drag("#canvas", [(0.3, 0.8), (0.5, 0.5), (0.7, 0.5)])
            browser.wait("return document.querySelector('#steps img')")
            browser.screenshot(out / "explore.png")
        server.shutdown()


def main(run: Path | None = None, steps: int = 3600, out: Path = HERE.parent / "docs" / "figures") -> list[Path]:
    """Draw all figures, with the digits model of ``run`` or a new one; returns their files."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "composition": composition(),
        "joints": joints(min(steps, 1500)),
        "game": game(),
        "propositions": plotting.propositions(propositions.examine(20, 3)),
    }
    hierarchy = hk.load(run).hierarchy if run else trained(steps)
    digits = hk.data.load("digits")
    x = digits.held_out.batch(torch.arange(len(digits.held_out)))
    figures["health"] = plotting.health(health.examine(hierarchy, x))
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=110)
    rows = {"x": x[:16]} | {f"z{level}": hierarchy.reconstruct(x[:16], level) for level in (1, 2, 3)}
    plotting.save_png(out / "reconstructions.png", plotting.labelled_rows(rows))
    torch.manual_seed(0)
    plotting.save_png(out / "samples.png", plotting.grid(hierarchy.sample(48), 16))
    editing = runpy.run_path(str(HERE / "editing.py"))
    editing["edit"](hierarchy, out)
    explore(hierarchy, out)
    return sorted(out.glob("*.png"))


if __name__ == "__main__":
    typer.run(main)
