"""MLflow: a copy of what run folders hold, never the other way round. Only the shell's process speaks to it.

store      a tracking URI -> an opened, migrated store with our experiment in it
entities   plain values -> MLflow's params, tags and metrics
links      mlflow.json: which MLflow run a run's folder belongs to, and whether all of it has arrived
tracker    studies and runs, as calls that wait
thread     the same calls, which don't wait and survive an unreachable server
sync       puts into MLflow what a crash kept from it, and closes what a killed process left RUNNING
dashboards the views that are ready-made in MLflow's own pages
ui         the MLflow server on the project's store
"""
