"""Labels kept on the digits by kind of kernel under a gauge.

    python docs/results/kernels.py OUT.jsonl [KIND:LEVELS:STEPS …]

Each kind takes the place of the Gaussian in all kernels of latents of the default stack. The other settings are
those of `halikit train --levels L`. Two seeds, scored on the 297 held-out digits. One line of JSON for each run.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import halikit as hk
from halikit.analysis.labels import label_scores
from halikit.analysis.recovery import recovery
from halikit.config import override
from halikit.networks.blocks import LinearSkip
from halikit.presets.families import dense

HIDDEN = 256


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers, as the dense stack has them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for size in (inputs, HIDDEN):
        layers += [nn.Linear(size, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(0.02)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, outputs))


class UserLaplace(hk.DensityKernel):
    """A user's own kernel: Laplace noise of scale 0.1, no gauge of its own."""

    def __init__(self, source: hk.Space, target: hk.Space, network: nn.Module) -> None:
        super().__init__(source, target)
        self.network = network

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution over ``target``."""
        return dist.Laplace(self.network(given), 0.1).to_event(1)


class Noisy(nn.Module):
    """A network of what is given and of a vector of noise."""

    def __init__(self, inputs: int, outputs: int, skip: Tensor | None) -> None:
        super().__init__()
        self.inner, self.noise = mlp(inputs + 16, outputs), [(16,)]
        self.skip = None if skip is None else nn.Parameter(skip.clone())

    def forward(self, given: Tensor, noise: list[Tensor]) -> Tensor:
        """``(n, outputs)``."""
        flat = given.flatten(1)
        out = self.inner(torch.cat([flat, noise[0]], 1))
        return out if self.skip is None else out + nn.functional.linear(flat, self.skip)


Make = Callable[[hk.Space, hk.Space, Tensor | None], hk.Kernel]


def of(kernel: Callable[..., hk.Kernel], outputs: int, **options: object) -> Make:
    """Kernels whose network gives ``outputs`` numbers for each element of the target, the means first."""

    def make(source: hk.Space, target: hk.Space, skip: Tensor | None) -> hk.Kernel:
        network: nn.Module = mlp(source.size, outputs * target.size)
        return kernel(source, target, network if skip is None else LinearSkip(network, skip), **options)

    return make


def mixture(source: hk.Space, target: hk.Space, skip: Tensor | None) -> hk.Kernel:
    """A mixture of three Gaussians."""
    return hk.MixtureKernel(source, target, mlp(source.size, 3 * (2 * target.size + 1)), components=3, max_scale=0.5)


def flow(source: hk.Space, target: hk.Space, skip: Tensor | None) -> hk.Kernel:
    """A conditional flow of four coupling layers."""
    return hk.FlowKernel(source, target, mlp(source.size, 64), layers=4)


def implicit(source: hk.Space, target: hk.Space, skip: Tensor | None) -> hk.Kernel:
    """A network with noise."""
    return hk.ImplicitKernel(source, target, Noisy(source.size, target.size, skip))


KINDS: dict[str, tuple[Make, str | None]] = {
    "gaussian": (of(hk.GaussianKernel, 2, max_scale=0.5), "variance_preserving"),
    "laplace": (of(partial(hk.LocationScaleKernel, family="laplace"), 2, max_scale=0.5), "variance_preserving"),
    "student_t": (of(partial(hk.LocationScaleKernel, family="student_t"), 2, max_scale=0.5), "variance_preserving"),
    "logistic": (of(partial(hk.LocationScaleKernel, family="logistic"), 2, max_scale=0.5), "variance_preserving"),
    "user_laplace": (of(UserLaplace, 1), None),
    "user_laplace_standardised": (of(UserLaplace, 1), "standardised"),
    "user_laplace_vp": (of(UserLaplace, 1), "variance_preserving"),
    "gaussian_standardised": (of(hk.GaussianKernel, 2, max_scale=0.5), "standardised"),
    "mixture": (mixture, "standardised"),
    "flow": (flow, "standardised"),
    "implicit": (implicit, "standardised"),
}


def build(kind: str, levels: int) -> hk.Model:
    """The default dense stack with kernels of one kind between all latents."""
    make, gauge = KINDS[kind]
    links, spaces = [], hk.ladder(levels, (1, 8, 8)).spaces
    for level, (lower, upper) in enumerate(zip(spaces, spaces[1:], strict=False)):
        skip = nn.init.orthogonal_(torch.empty(upper.size, lower.size)) if level else None
        kernels = [make(lower, upper, skip)]
        if level:
            kernels.append(make(upper, lower, None if skip is None else skip.T))
        if gauge:
            kernels = [hk.gauged(kernel, gauge) for kernel in kernels]
        if not level:
            image = nn.Sequential(mlp(upper.size, lower.size), nn.Unflatten(1, lower.shape), nn.Tanh())
            kernels.append(hk.DeterministicKernel(upper, lower, image))
        links.append(hk.Link(*kernels))
    hierarchy = hk.Hierarchy(links)
    return hk.Model(hierarchy, hk.build_discriminator(hierarchy, family="dense"))


def main(out: str, *chosen: str) -> None:
    """Train and score the chosen kinds, ``kind:levels:steps``; all of them at two and three levels by default."""
    data = hk.data.load("digits")
    for run in chosen or [f"{kind}:{levels}:3600" for levels in (2, 3) for kind in KINDS]:
        kind, levels, steps = run.split(":")
        for seed in (0, 1):
            begun = time.perf_counter()
            torch.manual_seed(seed)
            settings = override(dense(int(levels)), {"seed": seed, "steps": int(steps)})
            trainer = hk.Trainer(build(kind, int(levels)), data, settings=settings, on_notice=lambda notice: None)
            trainer.fit()
            seconds = time.perf_counter() - begun
            scores = label_scores(trainer.averaged, data)
            record = {
                "kind": kind,
                "gauge": KINDS[kind][1],
                "levels": int(levels),
                "seed": seed,
                "kept": scores.kept,
                "recovery": recovery(trainer.averaged).in_one_step,
                "rarest_class": min(scores.class_shares),
                "steps": trainer.steps,
                "seconds": round(seconds, 1),
            }
            with open(out, "a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
