"""Measures the time of a training step, a textbook loop and the machine."""
