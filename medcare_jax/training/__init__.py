"""Training: loss, optimiser chain, step, stages and the loop."""
