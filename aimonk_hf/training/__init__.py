"""From settings and a data folder to a run folder."""
