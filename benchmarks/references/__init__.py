"""Plain networks and loops that the benchmarks compare with."""
