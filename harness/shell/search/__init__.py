"""Searches with Optuna: trials that become runs, recorded and resumable.

config          the section `search`, parsed and checked
space           ranges and choices, as command-line text
plan            a search that can start: overrides, base run, what must stay the same on resuming
trial_composer  compose and check the runs of trials
samplers        Optuna's samplers and distributions
pruning         Optuna's pruners, independent of the order of events
study           sample, record and resume trials
sweep           trials as jobs of a Hydra sweep
report          table, tags and metrics of the results
hydra           the entry point for Hydra's sweeper
"""
