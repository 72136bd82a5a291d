"""When training goes wrong: spikes, divergence, no memory; what is decided, written down and done."""
