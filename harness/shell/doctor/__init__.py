"""`evenbench doctor`: what is installed, which devices there are, how fast and how steady the machine is.

`findings` says what a finding is, `frameworks`, `host` and `timings` look for them, `report` shows them.
Everything is looked at where a run would meet it: frameworks in their workers, limits with the run's threads.
"""

from harness.shell.commands.doctor import doctor_command

__all__ = ["doctor_command"]
