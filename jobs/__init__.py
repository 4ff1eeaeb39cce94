"""Run a command on SLURM, Kubernetes or this machine, with a snapshot of the code."""
