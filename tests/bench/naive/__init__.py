"""A sweep without evenbench: a script, Hydra's own launcher, MLflow in each job."""
