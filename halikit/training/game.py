"""Training by the game of Algorithm 1, in rounds or both players at once, with penalties and extra losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from halikit.algorithm import (
    Step,
    add_discriminator_gradients,
    add_generator_gradients,
    add_gradients,
    gradient_penalty,
    interpolated_penalty,
    play,
    refuse_discrete,
    supports_single_pass,
)
from halikit.config import Config, GameSettings
from halikit.data import Split
from halikit.discriminator import CONTEXT, Discriminator, InputNoise
from halikit.errors import InputError
from halikit.hardware.compiled import CompiledStep, NotCompilableError
from halikit.hierarchy import Hierarchy
from halikit.kernels import DensityKernel
from halikit.model import Model
from halikit.objectives import CUSTOM, OBJECTIVES, Objective, losses_of, name_of, setting_of
from halikit.training.extra_losses import ExtraLoss, Player, StepContext, check_names, modules_of, parameters_of
from halikit.training.extra_losses import add_gradients as add_extra_gradients
from halikit.training.kernels import gauge_notices, gradient_notices
from halikit.training.method import Method
from halikit.utils.modes import evaluating
from halikit.utils.random import seeded

__all__ = ["GameMethod", "Players", "noise_scale", "penalty_weight", "players_of", "resolve_game"]

Players = Literal["both", "discriminator", "generators"]

_LOSSES = ("d_loss", "g_loss", "rho_q", "rho_p")


def resolve_game(config: Config, objective: Objective | None = None) -> Config:
    """The settings with the penalty that the objective takes by default, and with the name of an objective.

    Args:
        config: The settings.
        objective: Objective to play in place of the one that the settings name.

    Raises:
        InputError: If an objective is given, and training is not the game.
    """
    if not config.plays:
        if objective is not None:
            raise InputError(
                f"an objective goes with the game of Algorithm 1, not with training.method = {config.training.method!r}"
            )
        return config
    game = config.game
    if objective is not None:
        game = game.model_copy(update={"objective": setting_of(objective)})
    return config.model_copy(update={"game": game.resolved})


def players_of(settings: GameSettings, step: int) -> Players:
    """Who moves in a step: both at once, or in rounds the discriminator first and then the generators."""
    d, g = settings.discriminator_steps, settings.generator_steps
    if d == g == 1:
        return "both"
    return "discriminator" if step % (d + g) < d else "generators"


def penalty_weight(settings: GameSettings, step: int) -> float:
    """Weight of the gradient penalty in a step: lazily, ``k γ`` at every k-th step of the discriminator."""
    if players_of(settings, step) == "generators":
        return 0.0
    every = settings.penalty_every
    d, g = settings.discriminator_steps, settings.generator_steps
    played = step if d == g == 1 else step // (d + g) * d + min(step % (d + g), d)
    weight = settings.resolved.gradient_penalty
    assert not isinstance(weight, str)
    return 0.0 if played % every else every * weight


def noise_scale(first: float, last: float | None, step: int, total: float) -> float:
    """Standard deviation of a noise in a step: it changes linearly to ``last`` in ``total`` steps, or is constant."""
    # None at first is none at all: a schedule must not add what a model was built without.
    if not first or last is None or total <= 0:
        return first
    return first + (last - first) * min(1.0, step / total)


class GameMethod(Method):
    """Algorithm 1.

    Args:
        model: A model with a discriminator, on the device where it trains.
        config: The settings.
        extra_losses: Losses beside those of the game.
        objective: Objective in place of the one that the settings name.
        context: Some rows of a context, to try the discriminator with; if the model takes one and there are none, the
            first step has to give it.
        measure: Numbers on held-out data, see :meth:`Method.measure`.
        on_notice: Called with a message where a step cannot be compiled, or nothing bounds a Wasserstein critic.

    Raises:
        InputError: If there is no discriminator, it reads spaces that the hierarchy does not have, the objective is
            missing or does not return two losses, a penalty between samples meets discrete states, or an extra loss has
            the name of another or parameters of the model.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        extra_losses: Sequence[ExtraLoss] = (),
        *,
        objective: Objective | None = None,
        context: Tensor | None = None,
        measure: Callable[[Hierarchy, Split], dict[str, float]] | None = None,
        on_notice: Callable[[str], None] = print,
    ) -> None:
        if model.discriminator is None:
            raise InputError("the game needs a discriminator: pass one to hk.Model, or set training.method to 'elbo'")
        check_names(extra_losses, _LOSSES)
        _check_modules(model, extra_losses)
        self.settings, self.encoder_noise = config.game.resolved, config.training.encoder_noise
        self.objective = _objective(self.settings.objective, objective)
        self.columns = (*_LOSSES, *(loss.name for loss in extra_losses))
        self._hierarchy, self._discriminator = model.hierarchy, model.discriminator
        self._extra_losses = extra_losses
        self._measure, self._notify = measure, on_notice
        self._noises = _noises(self.settings, self._hierarchy, self._discriminator)
        self._model, self._config = model, config
        self.single_pass, self.description = False, "the first step shows how many backward passes are needed"
        self._is_examined = False
        if context is not None or not model.takes_context:
            self._examine(context)
        self._keep_gradients = config.hardware.accumulate > 1
        self._compiled: dict[tuple[Players, float], CompiledStep] = {}

    @property
    def extra_modules(self) -> dict[str, tuple[nn.Module, str]]:
        """The extra losses that are modules."""
        found = {f"extra.{loss.name}": (loss.module, loss.player) for loss in self._extra_losses}
        return {name: (module, player) for name, (module, player) in found.items() if module is not None}

    def kind(self, step: int) -> tuple[Players, float]:
        """The players that move in a step, and the weight of its penalty."""
        return players_of(self.settings, step), penalty_weight(self.settings, step)

    def add_gradients(
        self, x: Tensor, labels: Tensor | None, step: int, total: int, *, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One step of Algorithm 1, at the noise and the penalty of its place in the training."""
        if not self._is_examined:
            self._examine(context)
        for noise, first, last, share in self._noises:
            noise.scale = noise_scale(first, last, step, share * total)
        players, penalty = self.kind(step)
        losses = [loss for loss in self._extra_losses if _moves(loss.player, players)]
        inside = [loss for loss in losses if loss.samples != "unused"]
        outcome = self._compiled_play(players, penalty, inside, x, labels, context) if self.compile_mode else None
        if outcome is None:
            outcome = self._play(players, penalty, inside, step, x, labels, context)
        of_step = StepContext({}, {}, self._hierarchy, self._discriminator, labels, step, context)
        return outcome | {loss.name: add_extra_gradients(loss, of_step) for loss in losses if loss.samples == "unused"}

    def _play(
        self,
        players: Players,
        penalty: float,
        losses: Sequence[ExtraLoss],
        step: int | None,
        x: Tensor,
        labels: Tensor | None = None,
        context: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The gradients of the game and of the losses that read its samples."""
        with torch.set_grad_enabled(players != "discriminator"):
            drawn = play(
                self._hierarchy,
                self._discriminator,
                x,
                self.objective,
                encoder_noise=self.encoder_noise,
                context=context,
                single_pass=players == "both" and self.single_pass,
            )
        if players == "both":
            retains = any(loss.samples == "differentiated" for loss in losses)
            add_gradients(drawn, self._hierarchy, self._discriminator, retain_graph=retains)
        elif players == "discriminator":
            add_discriminator_gradients(drawn, self._discriminator)
        else:
            add_generator_gradients(drawn, self._hierarchy)
        if penalty:
            cost = penalty * self._penalty(drawn)
            torch.autograd.backward(cost, inputs=parameters_of("discriminator", self._hierarchy, self._discriminator))
        of_step = StepContext(
            drawn.encoder_states, drawn.decoder_states, self._hierarchy, self._discriminator, labels, step, context
        )
        values = (drawn.discriminator_loss, drawn.generator_loss, *drawn.rho)
        extra = {loss.name: add_extra_gradients(loss, of_step) for loss in losses}
        return dict(zip(_LOSSES, values, strict=True)) | extra

    def _penalty(self, drawn: Step) -> Tensor:
        """The penalty of the settings, before its weight."""
        place = self.settings.penalised_joint
        if place == "between":
            return interpolated_penalty(self._discriminator, drawn.encoder_states, drawn.decoder_states)
        joints = {"encoder": drawn.encoder_states, "decoder": drawn.decoder_states}
        chosen = [states for name, states in joints.items() if place in (name, "both")]
        return gradient_penalty(self._discriminator, *chosen) / 2

    def _compiled_play(
        self,
        players: Players,
        penalty: float,
        losses: Sequence[ExtraLoss],
        x: Tensor,
        labels: Tensor | None,
        context: Tensor | None,
    ) -> dict[str, Tensor] | None:
        """:meth:`_play` as one graph for each kind of step, or ``None`` if it cannot be compiled."""
        assert self.compile_mode
        beside = {name: t for name, t in (("labels", labels), ("context", context)) if t is not None}
        if (players, penalty) not in self._compiled:
            self._compiled[players, penalty] = CompiledStep(
                partial(_with_names, partial(self._play, players, penalty, losses, None), tuple(beside)),
                [self._hierarchy, self._discriminator, *modules_of(losses)],
                mode=self.compile_mode,
                keep_gradients=self._keep_gradients,
            )
        try:
            return self._compiled[players, penalty](x, *beside.values())
        except NotCompilableError as error:
            self.compile_mode = None
            self._notify(f"steps are not compiled from here on: {error}")
            return None

    def measure(self, averaged: Hierarchy, part: Split) -> dict[str, float]:
        """Numbers of the extra losses on held-out data."""
        return self._measure(averaged, part) if self._measure else {}

    def finish(self) -> None:
        """Give each noise its first scale back."""
        for noise, first, *_ in self._noises:
            noise.scale = first

    def _examine(self, context: Tensor | None) -> None:
        """Find out whether one backward pass serves both players, and tell what a user should know before the game."""
        self._is_examined = True
        settings, context = self.settings, None if context is None else context[:4]
        model = replace(self._model, hierarchy=self._hierarchy.conditioned(context))
        with evaluating(model.hierarchy), seeded(0, model.hierarchy.prior.device), torch.no_grad():
            probe = model.hierarchy.sample_states(4 if context is None else len(context))
        if settings.gradient_penalty and settings.penalised_joint == "between":
            _refuse_discrete(model.hierarchy, self._discriminator, probe)
        for notice in _notices(model, self._config, probe):
            self._notify(notice)
        d, g = settings.discriminator_steps, settings.generator_steps
        if d != 1 or g != 1:
            self.single_pass, self.description = False, f"rounds of {d} discriminator and {g} generator steps"
            return
        states = probe if context is None else probe | {CONTEXT: context}
        self.single_pass, self.description = supports_single_pass(self._discriminator, self.objective, states)


def _noises(
    settings: GameSettings, hierarchy: Hierarchy, discriminator: Discriminator
) -> list[tuple[InputNoise, float, float | None, float]]:
    """The noises on what players read: each with its first scale, its last, and the share of steps until the last."""
    until, on_latents = settings.latent_noise_until, [m for m in hierarchy.modules() if isinstance(m, InputNoise)]
    return [
        *(
            (game.noise, game.noise.scale, settings.final_input_noise, 1.0)
            for game in discriminator.games
            if game.noise
        ),
        *((noise, noise.scale, None if until is None else 0.0, until or 1.0) for noise in on_latents),
    ]


def _objective(name: str, given: Objective | None) -> Objective:
    """The objective of a name, or the given one, once it has been tried."""
    if given is not None:
        losses = losses_of(given, *torch.zeros(2, 2, requires_grad=True))
        if not (losses.discriminator.requires_grad and losses.generator.requires_grad):
            raise InputError(f"the losses of an objective depend on the logits; one of {name_of(given)} is constant")
        return given
    if name.startswith(CUSTOM):
        raise InputError(
            f"the objective {name.removeprefix(CUSTOM)} is not one of halikit's: pass it as hk.Trainer(objective=…)"
        )
    return OBJECTIVES[name]


def _notices(model: Model, config: Config, states: Mapping[str, Tensor]) -> Iterator[str]:
    """What a user should know before the game begins."""
    hierarchy, game = model.hierarchy, config.game
    yield from gradient_notices(hierarchy, states)
    if model.config is None:  # the presets have chosen their gauge
        yield from gauge_notices(hierarchy, states)
    if not hierarchy.prior.passes_gradient:
        yield (
            f"the prior {type(hierarchy.prior).__name__} stays as it is in the game, because its samples pass no "
            "gradient to its parameters: training.method = 'elbo' trains it"
        )
    if game.objective == "wasserstein" and not (game.gradient_penalty or config.discriminator.spectral_norm):
        yield (
            "the Wasserstein objective needs a Lipschitz constant, and nothing here bounds it: "
            "game.gradient_penalty is 0 (10 is usual), and discriminator.spectral_norm is off"
        )


def _refuse_discrete(hierarchy: Hierarchy, discriminator: Discriminator, states: dict[str, Tensor]) -> None:
    """Refuse a penalty between samples where a state that the discriminator reads is discrete."""
    known = set()
    with evaluating(hierarchy), torch.no_grad():
        for kernel in (kernel for link in hierarchy for kernel in (link.up, link.down)):
            if isinstance(kernel, DensityKernel):
                support = getattr(kernel(states[kernel.source.name]), "support", None)
                if getattr(support, "is_discrete", False):
                    known.add(kernel.target)
    refuse_discrete(discriminator.spaces, states, known)


def _check_modules(model: Model, extra_losses: Sequence[ExtraLoss]) -> None:
    """Refuse a discriminator over other spaces, and extra losses whose parameters would be trained twice."""
    assert model.discriminator is not None
    unknown = [str(space) for space in model.discriminator.spaces if space not in model.hierarchy.spaces]
    if unknown:
        there = ", ".join(map(str, model.hierarchy.spaces))
        raise InputError(f"the discriminator reads {', '.join(unknown)}, and the hierarchy has {there}")
    own = {id(parameter) for part in model.parts.values() for parameter in part.parameters()}
    for loss in extra_losses:
        if loss.module is not None and any(id(parameter) in own for parameter in loss.module.parameters()):
            raise InputError(
                f"the extra loss {loss.name} has parameters of the model, which two optimisers would train: use "
                "step.hierarchy and step.discriminator instead"
            )


def _with_names(
    function: Callable[..., dict[str, Tensor]], names: Sequence[str], x: Tensor, *beside: Tensor
) -> dict[str, Tensor]:
    """A function of a batch and of tensors by name, called with tensors alone, as a compiled step takes them."""
    return function(x, **dict(zip(names, beside, strict=True)))


def _moves(player: Player, players: Players) -> bool:
    return players == "both" or (player == "discriminator") == (players == "discriminator")
