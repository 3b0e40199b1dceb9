"""Sweeps on several machines: the parent decides, nodes train, and what came out of a run comes back.

The parent composes and checks all runs, leaves out what is finished, and alone writes run folders and MLflow.
A node gets plain JSON and the files that a run reads, and trains with the same worker processes as this
machine would. `engine` hands runs out and does them once more when a node is lost; `ray_cluster` and
`slurm_cluster` open places on nodes for it; `node` is what goes on there.
"""
