"""Training without a framework: update rules, schedules, batches, losses, metrics, state, weights."""
