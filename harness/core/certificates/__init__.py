"""What a certificate compares: cases to train, gates to pass, and rules for deviating native optimizers."""
