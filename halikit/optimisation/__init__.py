"""What changes the weights: optimisers, their schedule, the exponential moving average, the guard."""
