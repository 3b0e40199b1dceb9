"""The shell: the part that users and other programs talk to.

It composes the configuration (Hydra), starts worker processes, logs results (MLflow), compares and prints
them. It imports the core and never a framework: frameworks live in the workers, one process each, so that a
crash, a clash of CUDA libraries or a backend fixed at import time cannot reach the sweep.

A command's way through it:

    commands/      the command line: one module per subcommand
    compose/       from the command line and what Hydra composes to checked configurations
    runs/          from configurations to runs that can start
    session/       what one command does with its runs: prepare, skip finished, certify, execute, record
    certificates/  proofs that frameworks agree: made, stored, compared
    engines/       where runs execute: slots on this machine, on Ray, in Slurm jobs
    workers/       worker processes as the shell sees them
    search/        sweeps that are searches
    tracking/      MLflow
    studies/, reports/, doctor/   what users look at afterwards
    environment/   what is installed here
"""
