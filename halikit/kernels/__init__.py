"""Markov kernels ``T_{w|v}`` and their algebra: composition (Eq. 1) and adjoints (Eq. 2)."""

from halikit.kernels.deterministic import DeterministicKernel
from halikit.kernels.discrete import BernoulliKernel, CategoricalKernel
from halikit.kernels.gauge import Gauge
from halikit.kernels.gauged import gauged
from halikit.kernels.gaussian import GaussianKernel, Moments
from halikit.kernels.kernel import Composite, DensityKernel, Kernel, LogProbEstimate, NoDensityError, compose
from halikit.kernels.linear_gaussian import Gaussian, LinearGaussian, LinearGaussianKernel

__all__ = [
    "BernoulliKernel",
    "CategoricalKernel",
    "Composite",
    "DensityKernel",
    "DeterministicKernel",
    "Gauge",
    "Gaussian",
    "GaussianKernel",
    "Kernel",
    "LinearGaussian",
    "LinearGaussianKernel",
    "LogProbEstimate",
    "Moments",
    "NoDensityError",
    "compose",
    "gauged",
]
