"""Markov kernels ``T_{w|v}`` and their algebra: composition (Eq. 1) and adjoints (Eq. 2)."""

from halikit.kernels.density import DensityKernel
from halikit.kernels.deterministic import DeterministicKernel
from halikit.kernels.discrete import BernoulliKernel, CategoricalKernel
from halikit.kernels.flow import FlowKernel
from halikit.kernels.gauge import Gauge
from halikit.kernels.gauged import gauged
from halikit.kernels.gaussian import GaussianKernel, Moments
from halikit.kernels.implicit import ImplicitKernel
from halikit.kernels.kernel import Composite, Kernel, compose
from halikit.kernels.linear_gaussian import Gaussian, LinearGaussian, LinearGaussianKernel
from halikit.kernels.location_scale import LocationScaleKernel
from halikit.kernels.mixture import GaussianMixture, MixtureKernel
from halikit.kernels.paths import LogProbEstimate, NoDensityError

__all__ = [
    "BernoulliKernel",
    "CategoricalKernel",
    "Composite",
    "DensityKernel",
    "DeterministicKernel",
    "FlowKernel",
    "Gauge",
    "Gaussian",
    "GaussianKernel",
    "GaussianMixture",
    "ImplicitKernel",
    "Kernel",
    "LinearGaussian",
    "LinearGaussianKernel",
    "LocationScaleKernel",
    "LogProbEstimate",
    "MixtureKernel",
    "Moments",
    "NoDensityError",
    "compose",
    "gauged",
]
