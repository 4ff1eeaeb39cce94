"""Commands as jobs on SLURM, Kubernetes or this machine."""
