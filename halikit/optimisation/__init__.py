"""Optimisers and their schedule, the exponential moving average of the weights, and the guard against NaN."""
