"""`evenbench doctor`: installed frameworks, devices, matrix limits, and how noisy the machine is.

`findings` defines the parts of the report; `frameworks`, `host` and `timings` collect them; `report` prints
them. Everything is examined where a run would use it: frameworks in worker processes, matrix limits with the
run's threads.
"""
