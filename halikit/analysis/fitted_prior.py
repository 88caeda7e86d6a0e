"""A prior that is fitted to a trained encoder's own ``z_L``: it improves the samples of a finished model.

The decoder was trained on ``z_L`` of the prior, but reconstructs from ``z_L`` of the encoder. Where both distributions
differ, samples are worse than reconstructions. With the aggregate ``q(z_L) = E_{q(x)}[q(z_L|x)]`` as the prior they
differ less (Tomczak & Welling 2018). A mixture is fitted after training as by Ghosh et al. (2020).
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from halikit import data as datasets
from halikit.analysis.batched import batches
from halikit.config import override
from halikit.data import DataSet, Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import BernoulliKernel, CategoricalKernel
from halikit.model import Model
from halikit.networks.ladder import ModelSettings
from halikit.priors import Flow, Mixture, Prior
from halikit.utils.random import seeded

__all__ = ["FittedKind", "fit", "log_density", "top_draws"]

FittedKind = Literal["mixture", "flow"]

# Draws of z_L that a fit should have, most draws for each datum, and data that are encoded at a time.
_DRAWS, _MOST_DRAWS, _CHUNK = 12_000, 8, 500
# Largest number of components that is tried, and smallest number of draws for each component.
_MOST_COMPONENTS, _DRAWS_EACH = 256, 20
# Of the flow: learning rate, batch size, most passes over the draws, and passes without improvement before it stops.
_RATE, _BATCH, _PASSES, _PATIENCE = 1e-3, 256, 300, 15


def fit(
    model: Model,
    data: DataSet | str | Tensor,
    kind: FittedKind = "mixture",
    *,
    components: int | None = None,
    layers: int | None = None,
    seed: int = 0,
) -> Model:
    """Fit a prior to draws of ``q(z_L|x)`` by maximum likelihood, after training.

    A tenth of the training data is set aside. Its likelihood chooses the number of components of a mixture, and ends
    the training of a flow.

    Args:
        model: A trained model with a real ``z_L``. It does not change.
        data: A data set, a data spec such as ``"digits"``, or a tensor ``(n, *shape of x)``. Its training part is used.
        kind: ``"mixture"`` of Gaussians with diagonal covariances, or ``"flow"`` of coupling layers.
        components: Number of components of the mixture; by default the best of 1, 2, 4, …, 256.
        layers: Number of coupling layers of the flow; 4 by default.
        seed: Seed of the draws and of the fit.

    Returns:
        A copy of the model with the new prior, in evaluation mode. Its config names the prior.

    Raises:
        InputError: If ``z_L`` is discrete or bounded, the data have another shape, or an argument does not fit the
            kind.
    """
    hierarchy = copy.deepcopy(model.hierarchy).eval()
    _check(hierarchy, kind, components, layers)
    loaded = datasets.as_data_set(data, size=model.config.data.size if model.config else None)
    if loaded.shape != hierarchy.spaces[0].shape:
        raise InputError(f"the model is for data of shape {hierarchy.spaces[0].shape}, but these have {loaded.shape}")
    n = len(loaded.train)
    context = model.context_kind(loaded) if hierarchy.context is None else None
    given = None if context is None else loaded.train.context(context).to(hierarchy.prior.device)
    z = top_draws(hierarchy.conditioned(given), loaded.train, draws=min(_MOST_DRAWS, -(-_DRAWS // n)), seed=seed)
    if not z.is_floating_point() or torch.equal(z, z.round()):
        raise InputError(_only_real(hierarchy))
    with seeded(seed):
        order = torch.randperm(n).to(z.device)
    cut = max(1, n // 10)
    held_out, trained = z[order[:cut]].flatten(0, 1), z[order[cut:]].flatten(0, 1)
    space, sizes = hierarchy.spaces[-1], {}
    prior: Prior
    if kind == "mixture":
        prior = _mixture(Mixture(space, 1), trained, held_out, components, seed)
        sizes["model.prior_components"] = len(prior.logits)
    else:
        with seeded(seed):
            prior = Flow(space, layers or _default("prior_layers"))
        prior = _fitted_flow(prior.to(z.device), trained, held_out, seed)
        sizes["model.prior_layers"] = len(prior.couplings)
    prior.to(hierarchy.prior.device, hierarchy.prior.dtype)
    settings = {name: _default(name) for name in ("prior_components", "prior_layers")}
    changes = {f"model.{name}": value for name, value in settings.items()} | {"model.prior": kind} | sizes
    config = override(model.config, changes) if model.config else None
    fitted = Hierarchy(list(hierarchy), prior).eval()
    fitted.context = hierarchy.context
    return Model(fitted, copy.deepcopy(model.discriminator), config)


@torch.no_grad()
def top_draws(hierarchy: Hierarchy, part: Split, *, draws: int = 1, seed: int = 0) -> Tensor:
    """Draws of ``q(z_L|x)`` for each datum, ``(n, draws, *shape of z_L)``, on the device of the hierarchy.

    Args:
        hierarchy: A hierarchy in evaluation mode; given the contexts of the data, if it takes one.
        part: The data.
        draws: Number of draws for each datum.
        seed: Seed of the draws.
    """
    device, top = hierarchy.prior.device, hierarchy.spaces[-1].name
    with seeded(seed, device):
        found = []
        for rows, x in batches(part, _CHUNK, device=device):
            own, x = hierarchy.rows(rows), x.to(hierarchy.prior.dtype)
            found.append(torch.stack([own.encode(x, sample=True)[top] for _ in range(draws)], 1))
    return torch.cat(found)


@torch.no_grad()
def log_density(prior: Prior, z: Tensor) -> Tensor:
    """``log p(z_L)`` in nats, ``(n,)``; −∞ outside the support.

    Args:
        prior: A prior.
        z: ``(n, *space.shape)``.
    """
    distribution = prior()
    inside = distribution.support.check(z)
    return torch.full_like(inside, -torch.inf, dtype=z.dtype).masked_scatter(
        inside, distribution.log_prob(z[inside]).to(z.dtype)
    )


def _check(hierarchy: Hierarchy, kind: str, components: int | None, layers: int | None) -> None:
    if kind not in ("mixture", "flow"):
        raise InputError(f"a prior that is fitted is a 'mixture' or a 'flow', got {kind!r}")
    if (components is not None and kind != "mixture") or (layers is not None and kind != "flow"):
        raise InputError("a mixture has components, and a flow has layers")
    if (components is not None and components < 1) or (layers is not None and layers < 2):
        raise InputError("a mixture needs one component or more, and a flow two layers or more")
    top, kernel = hierarchy.spaces[-1], hierarchy.links[-1].up
    if top.support not in (None, "real") or isinstance(kernel, BernoulliKernel | CategoricalKernel):
        raise InputError(_only_real(hierarchy))
    if kind == "flow" and top.size < 2:
        raise InputError(f"a flow needs two elements or more, and {top} has one: fit a mixture")


def _only_real(hierarchy: Hierarchy) -> str:
    top = hierarchy.spaces[-1]
    return f"mixtures and flows are fitted to real latents, and {top}, the top of this model, is discrete or bounded"


def _default(name: str) -> int:
    return int(ModelSettings.model_fields[name].default)


def _mixture(prior: Mixture, trained: Tensor, held_out: Tensor, components: int | None, seed: int) -> Mixture:
    """The mixture with the given number of components, or with the number of highest held-out likelihood."""
    from sklearn.mixture import GaussianMixture

    trained, held_out = (z.flatten(1).double().cpu() for z in (trained, held_out))
    centre, scale = trained.mean(0), trained.std(0).clamp_min(1e-6)
    most = max(1, min(_MOST_COMPONENTS, len(trained) // _DRAWS_EACH))
    if components is not None and components > len(trained):
        raise InputError(f"{components} components need as many draws, and there are {len(trained)}")
    best, highest, since = None, -float("inf"), 0
    for number in [components] if components else [2**power for power in range(most.bit_length())]:
        found = GaussianMixture(number, covariance_type="diag", reg_covar=1e-4, max_iter=100, random_state=seed)
        found.fit(((trained - centre) / scale).numpy())
        score = float(found.score(((held_out - centre) / scale).numpy()))
        since = 0 if score > highest else since + 1
        best, highest = (found, score) if score > highest or best is None else (best, highest)
        # The likelihood of one number is not exact: EM ends in a local maximum.
        if since == 2:
            break
    assert best is not None
    fitted = Mixture(prior.space, best.n_components)
    with torch.no_grad():
        fitted.locs.copy_(centre + scale * torch.from_numpy(best.means_))
        fitted.log_scales.copy_((scale * torch.from_numpy(best.covariances_).sqrt()).log())
        fitted.logits.copy_(torch.from_numpy(best.weights_).clamp_min(1e-12).log())
    return fitted


def _fitted_flow(flow: Flow, trained: Tensor, held_out: Tensor, seed: int) -> Flow:
    """The flow after Adam on its negative log-likelihood, with the weights of the highest held-out likelihood."""
    trained, held_out = trained.float(), held_out.float()
    with torch.no_grad():
        flow.loc.copy_(trained.flatten(1).mean(0))
        flow.log_scale.copy_(trained.flatten(1).std(0).clamp_min(1e-6).log())
    optimiser = torch.optim.Adam(flow.parameters(), _RATE)
    best, highest, since = copy.deepcopy(flow.state_dict()), float(log_density(flow, held_out).mean()), 0
    with seeded(seed, trained.device):
        for _ in range(_PASSES):
            for rows in torch.randperm(len(trained), device=trained.device).split(_BATCH):
                optimiser.zero_grad()
                (-flow().log_prob(trained[rows]).mean()).backward()
                optimiser.step()
            score = float(log_density(flow, held_out).mean())
            since += 1
            if score > highest:
                best, highest, since = copy.deepcopy(flow.state_dict()), score, 0
            if since == _PATIENCE:
                break
    flow.load_state_dict(best)
    return flow
