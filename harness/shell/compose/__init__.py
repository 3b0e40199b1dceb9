"""What is asked for: from the command line and Hydra's composition to checked configurations."""
