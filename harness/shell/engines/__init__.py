"""Who carries out runs: this machine's workers, or those of a cluster."""
