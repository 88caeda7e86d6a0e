"""halikit: hierarchies of latent variables, trained and used by adversarially learned inference.

Names are imported when first used, so that ``halikit --help`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from halikit.utils.version import __version__

if TYPE_CHECKING:
    from halikit import data as data
    from halikit import presets as presets
    from halikit import priors as priors
    from halikit import testing as testing
    from halikit.config import Config as Config
    from halikit.discriminator import Discriminator as Discriminator
    from halikit.discriminator import JointDiscriminator as JointDiscriminator
    from halikit.discriminator import MultiGameDiscriminator as MultiGameDiscriminator
    from halikit.hierarchy import Hierarchy as Hierarchy
    from halikit.hierarchy import Link as Link
    from halikit.kernels import BernoulliKernel as BernoulliKernel
    from halikit.kernels import CategoricalKernel as CategoricalKernel
    from halikit.kernels import Composite as Composite
    from halikit.kernels import DensityKernel as DensityKernel
    from halikit.kernels import DeterministicKernel as DeterministicKernel
    from halikit.kernels import FlowKernel as FlowKernel
    from halikit.kernels import GaussianKernel as GaussianKernel
    from halikit.kernels import ImplicitKernel as ImplicitKernel
    from halikit.kernels import Kernel as Kernel
    from halikit.kernels import LinearGaussianKernel as LinearGaussianKernel
    from halikit.kernels import LocationScaleKernel as LocationScaleKernel
    from halikit.kernels import MixtureKernel as MixtureKernel
    from halikit.kernels import NoDensityError as NoDensityError
    from halikit.kernels import gauged as gauged
    from halikit.model import Model as Model
    from halikit.model import build as build
    from halikit.networks.discriminator import build_discriminator as build_discriminator
    from halikit.networks.ladder import ladder as ladder
    from halikit.networks.noisy import noisy_network as noisy_network
    from halikit.runs.hub import from_pretrained as from_pretrained
    from halikit.runs.loading import load as load
    from halikit.runs.loggers import TrackerLogger as TrackerLogger
    from halikit.spaces import Space as Space
    from halikit.training.callbacks import Callback as Callback
    from halikit.training.callbacks import EarlyStopping as EarlyStopping
    from halikit.training.extra_losses import ExtraLoss as ExtraLoss
    from halikit.training.trainer import Trainer as Trainer

_HOMES = {
    "halikit.config": ["Config"],
    "halikit.discriminator": ["Discriminator", "JointDiscriminator", "MultiGameDiscriminator"],
    "halikit.hierarchy": ["Hierarchy", "Link"],
    "halikit.kernels": [
        "BernoulliKernel",
        "CategoricalKernel",
        "Composite",
        "DensityKernel",
        "DeterministicKernel",
        "FlowKernel",
        "GaussianKernel",
        "ImplicitKernel",
        "Kernel",
        "LinearGaussianKernel",
        "LocationScaleKernel",
        "MixtureKernel",
        "NoDensityError",
        "gauged",
    ],
    "halikit.model": ["Model", "build"],
    "halikit.networks.discriminator": ["build_discriminator"],
    "halikit.networks.ladder": ["ladder"],
    "halikit.networks.noisy": ["noisy_network"],
    "halikit.runs.hub": ["from_pretrained"],
    "halikit.runs.loading": ["load"],
    "halikit.runs.loggers": ["TrackerLogger"],
    "halikit.spaces": ["Space"],
    "halikit.training.callbacks": ["Callback", "EarlyStopping"],
    "halikit.training.extra_losses": ["ExtraLoss"],
    "halikit.training.trainer": ["Trainer"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

_MODULES = ["data", "presets", "priors", "testing"]

__all__ = ["__version__", *_MODULES, *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    elif name in _MODULES:
        value = import_module(f"halikit.{name}")
    else:
        raise AttributeError(f"module 'halikit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
