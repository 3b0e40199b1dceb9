"""Sweeps on several machines: the parent decides, nodes train, and the files of each run come back.

The parent composes and checks all runs, skips finished ones, and is the only process that writes run folders
and MLflow. A node gets plain JSON and the files that a run reads, and trains in the same worker processes as
a single machine would. `engine` distributes the runs and repeats those of a lost node, `remote_run` mirrors
one run, `ray` and `slurm` open slots on nodes, and `node` executes runs there.
"""
