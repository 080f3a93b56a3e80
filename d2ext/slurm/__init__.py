"""Submit trainings to Slurm, or run them as detached jobs on this machine."""
