"""What a certificate compares: cases, gates, and rules with the known deviations of native optimizers."""
