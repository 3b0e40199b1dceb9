"""The shell: what people and other programs talk to.

It composes the configuration (Hydra), starts worker processes, keeps the results (MLflow), compares them and
prints. It imports the core and never a framework: the frameworks live in the workers, one process each, so
that a crash, a clash of CUDA libraries or a backend fixed at import time can't reach the sweep.

MLflow is a copy of what the run folders hold, never the other way round. Only this process speaks to it:

    store      a tracking URI -> an opened, migrated store with our experiment in it
    entities   plain values -> MLflow's params, tags and metrics
    links      mlflow.json: which MLflow run a run's folder belongs to, and whether all of it has arrived
    tracking   studies and runs, as calls that wait
    trackthread  the same calls, which don't wait and survive an unreachable server
    sync       puts into MLflow what a crash kept from it, and closes what a killed process left RUNNING
    dashboards the views that are ready-made in MLflow's own pages
    ui         the MLflow server on the project's store
"""
