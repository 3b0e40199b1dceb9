"""The sweep that one writes without this project: a script, Hydra's own launcher, MLflow in each job."""
