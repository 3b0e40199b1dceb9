"""Studies, the groups that runs belong to: who is in one, the list of them, their removal."""
