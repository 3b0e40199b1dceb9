"""MLflow: a copy of the run folders, never the other way round. Only the shell's process accesses it.

uri         tracking URIs, checked without importing MLflow
store       open and migrate the store at a URI, with the project's experiment
conversion  plain values -> MLflow's params, tags and metrics
run_links   mlflow.json: which MLflow run a run's folder belongs to, and whether the copy is complete
studies     studies as parent runs, shared by processes
tracker     runs, with calls that wait
background  the same calls without waiting, for an unreachable server too
sync        add what a crash left out, and close what a killed process left RUNNING
views       ready-made views for MLflow's own pages
server      the MLflow server on the project's store
"""
