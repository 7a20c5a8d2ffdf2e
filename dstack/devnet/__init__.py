"""Everything on one machine: chain, KMS, simulated CVMs and replicators as separate programs. The demo is its story."""
