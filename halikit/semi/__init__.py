"""Learning from few labels: consistency, pseudo-labels, label propagation. None of it is in the paper."""
