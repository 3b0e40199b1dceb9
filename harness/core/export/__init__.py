"""Export a trained network as a standalone model: the exporter protocol, and the refitted preprocessing."""
