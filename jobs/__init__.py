"""Putting a command on machines: what to run, SLURM, Kubernetes, this host, the code it runs."""
