"""Submit training jobs to Slurm, or run them as detached processes on this machine."""
