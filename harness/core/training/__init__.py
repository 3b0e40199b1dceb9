"""What training means, independent of any framework: update rules, schedules, batches, losses, metrics."""
