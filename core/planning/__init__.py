"""What a large job will take before it is started: arithmetic, and a simulation of the cluster. Plain Python, no Ray."""
