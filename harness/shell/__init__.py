"""The shell: what people and other programs talk to.

It composes the configuration (Hydra), starts worker processes, keeps the results (MLflow), compares them and
prints. It imports the core and never a framework: the frameworks live in the workers, one process each, so
that a crash, a clash of CUDA libraries or a backend fixed at import time can't reach the sweep.

A command's way through it:

    cli, looking   the command line and its subcommands
    task           the Hydra task: has the command composed, carried out, shown
    request/       from the command line and what Hydra composed to checked configurations
    prepare        from configurations to runs that can start
    session        which of them are done, which are to be done
    proof/         certificates and equivalence
    engines/       who carries runs out: workers on this machine, Ray, Slurm
    search/        sweeps that are searches
    progress       what is seen meanwhile
    tracking/      MLflow
    leaderboard, phases, show, studies/, doctor/, export   what is looked at afterwards
"""
