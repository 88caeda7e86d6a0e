"""A textbook training loop made of torch's own layers, for comparison in ``halikit benchmark``.

It is written like public implementations: a discriminator step, then a generator step. Encoder and decoder run again
for the generator step, which also computes gradients of the discriminator that are not used. The loop shares no code
with :mod:`halikit.algorithm`, and replaces halikit's optimised layers by torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from halikit.config import GameSettings
from halikit.discriminator import JointDiscriminator
from halikit.hierarchy import Hierarchy
from halikit.kernels import DeterministicKernel, GaussianKernel, Kernel
from halikit.model import Model
from halikit.networks.blocks import Dropout
from halikit.training.sleep import sleep_weights

__all__ = ["Yardstick", "in_stock_parts"]

States = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


class Yardstick:
    """The textbook loop on a copy of a model's networks, with torch's own layers and ``torch.optim.Adam``.

    The loop plays the game of the model's config: its objective, its penalty at samples, its sleep phase and its noise.
    It neither averages weights nor checks that numbers are finite.

    Args:
        model: A model with a discriminator, built from a config.
        is_plain: Whether to play the plain game of Algorithm 1 instead: cross-entropy, no penalty, no sleep phase.
        is_careful: Whether to avoid unused work: no graph of encoder and decoder in the discriminator step, and no
            gradients of the discriminator in the generator step.
    """

    def __init__(self, model: Model, *, is_plain: bool = False, is_careful: bool = False) -> None:
        assert model.discriminator is not None and model.config is not None
        config = model.config
        self.hierarchy: Hierarchy = in_stock_parts(model.hierarchy).train()
        joint = [game for game in model.discriminator.games if isinstance(game, JointDiscriminator)]
        self.games: list[JointDiscriminator] = [in_stock_parts(game).train() for game in joint]
        self.noise = config.training.encoder_noise
        self.sleep_weights, _ = sleep_weights(model.hierarchy, 0.0 if is_plain else config.game.sleep_weights)
        self.game = (GameSettings() if is_plain else config.game).resolved
        self.is_careful, self.steps = is_careful, 0
        self._discriminators = nn.ModuleList(self.games)
        settings = config.optimiser
        self._for_g = torch.optim.Adam(self.hierarchy.parameters(), settings.rate("hierarchy"), settings.betas)
        self._for_d = torch.optim.Adam(
            self._discriminators.parameters(), settings.rate("discriminator"), settings.betas
        )

    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A discriminator step, then a generator step, on a batch ``(n, *shape of x)``.

        Returns:
            Both losses, ``()`` each.
        """
        self._for_d.zero_grad()
        with torch.no_grad() if self.is_careful else nullcontext():
            q, p = self._encode(x), self._decode(len(x))
        q, p = ({name: state.detach() for name, state in states.items()} for states in (q, p))
        for state in (*q.values(), *p.values()):
            state.requires_grad_(self._takes_penalty)
        loss_d, _ = self._losses(q, p)
        (loss_d + self._penalty(q, p)).backward()
        self._for_d.step()

        self._for_g.zero_grad()
        if self.is_careful:
            self._discriminators.requires_grad_(False)
        q, p = self._encode(x), self._decode(len(x))
        _, loss_g = self._losses(q, p)
        (loss_g + self._sleep_loss(p)).backward()
        self._for_g.step()
        if self.is_careful:
            self._discriminators.requires_grad_(True)
        self.steps += 1
        return loss_d.detach(), loss_g.detach()

    def _encode(self, x: Tensor) -> States:
        z = x + self.noise * torch.randn_like(x) if self.noise else x
        states = {self.hierarchy.spaces[0].name: x}
        for link in self.hierarchy:
            z = _sampled(link.up, z)
            states[link.up.target.name] = z
        return states

    def _decode(self, n: int) -> States:
        z = self.hierarchy.prior.sample(n)
        states = {self.hierarchy.spaces[-1].name: z}
        for link in reversed(list(self.hierarchy)):
            z = _sampled(link.down, z)
            states[link.down.target.name] = z
        return states

    @property
    def _takes_penalty(self) -> bool:
        return bool(self.game.gradient_penalty) and self.steps % self.game.penalty_every == 0

    def _losses(self, q: States, p: States) -> tuple[Tensor, Tensor]:
        """The losses of both players, as a textbook writes them."""
        d, g = torch.zeros(2, device=next(iter(q.values())).device)
        for game in self.games:
            s_q, s_p = _logits_of(game, q), _logits_of(game, p)
            if self.game.objective == "relativistic":
                pairs = [(s_q - s_p, d), (s_p - s_q, g)]
                d, g = (loss + binary_cross_entropy_with_logits(s, torch.ones_like(s)) for s, loss in pairs)
                continue
            one, zero = torch.ones_like(s_q), torch.zeros_like(s_q)
            d = d + binary_cross_entropy_with_logits(s_q, one) + binary_cross_entropy_with_logits(s_p, zero)
            g = g + binary_cross_entropy_with_logits(s_q, zero) + binary_cross_entropy_with_logits(s_p, one)
        return d, g

    def _penalty(self, q: States, p: States) -> Tensor:
        """The squared norm of the gradient at samples of the joints that the settings name, every k-th step."""
        cost = torch.zeros((), device=next(iter(q.values())).device)
        if not self._takes_penalty:
            return cost
        joints = {"encoder": [q], "decoder": [p]}.get(self.game.penalised_joint, [q, p])
        for game in self.games:
            for states in joints:
                inputs = [states[space.name] for space in game.spaces]
                gradients = torch.autograd.grad(_logits_of(game, states).sum(), inputs, create_graph=True)
                cost = cost + sum(gradient.square().sum() for gradient in gradients) / len(inputs[0])
        weight = self.game.gradient_penalty
        assert not isinstance(weight, str)
        return 0.5 * weight * self.game.penalty_every * cost

    def _sleep_loss(self, p: States) -> Tensor:
        """The sleep loss on the decoder's samples. It changes running statistics, as a textbook loop would."""
        p = {name: state.detach() for name, state in p.items()}
        loss = torch.zeros((), device=next(iter(p.values())).device)
        for link, weight in zip(self.hierarchy, self.sleep_weights, strict=True):
            if weight:
                loss = loss + weight * link.up.sleep_loss(p[link.up.target.name], p[link.up.source.name]).mean()
        return loss


def in_stock_parts(module: M) -> M:
    """A copy of a module in which torch's own layers replace halikit's optimised layers."""
    copied = deepcopy(module)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Dropout):
                setattr(parent, name, nn.Dropout(child.probability))
            elif isinstance(child, nn.Conv2d):
                setattr(parent, name, _stock_convolution(child))
            elif isinstance(child, nn.LeakyReLU):
                setattr(parent, name, nn.LeakyReLU(child.negative_slope))
    return copied


def _stock_convolution(layer: nn.Conv2d) -> nn.Conv2d:
    sizes: Any = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
    stock = nn.Conv2d(layer.in_channels, layer.out_channels, **sizes, bias=layer.bias is not None)
    stock = stock.to(layer.weight.device)
    if is_parametrized(layer):
        stock = weight_norm(stock)
    stock.load_state_dict(layer.state_dict())
    return stock


def _sampled(kernel: Kernel, given: Tensor) -> Tensor:
    """A sample of a kernel, computed without the code of the kernel if possible."""
    if isinstance(kernel, DeterministicKernel):
        out: Tensor = kernel.network(given)
        return out.reshape(len(given), *kernel.target.shape)
    if not isinstance(kernel, GaussianKernel) or kernel.scale_form != "diagonal":
        return kernel.sample(given)
    mean, raw = (part.reshape(len(given), *kernel.target.shape) for part in kernel.network(given).chunk(2, 1))
    cap = kernel.max_scale
    scale = (3 * (raw / 3).tanh()).exp() if cap is None else 0.001 + (cap - 0.001) * raw.sigmoid()
    if kernel.norm is not None:
        mean = kernel.norm(mean.flatten(2) if mean.dim() > 2 else mean).reshape(mean.shape)
    if kernel.gauge == "variance_preserving":
        mean = (1 - scale**2).sqrt() * mean
    return mean + scale * torch.randn_like(mean)


def _logits_of(game: JointDiscriminator, states: Mapping[str, Tensor]) -> Tensor:
    """The logits of a discriminator, ``(n,)``."""
    first, *latents = (states[space.name] for space in game.spaces)
    if game.noise.scale:
        first = first + game.noise.scale * torch.randn_like(first)
    h = game.stages[0](first)
    for stage, z in zip(game.stages[1:], latents, strict=True):
        if h.shape[2:] != z.shape[2:]:
            h, z = h.flatten(1), z.flatten(1)
        h = stage(torch.cat([h, z], 1))
    logits: Tensor = game.head(h)
    return logits.squeeze(1)
