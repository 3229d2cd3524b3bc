"""The benchmarks: what a bake costs, measured against the shell pipeline it replaces. Started by scripts/bench."""
