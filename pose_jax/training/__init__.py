"""Training: step, state, optimiser, objectives."""
