"""The Almanac (a small world and a model of it), the demo and the benchmarks."""

__version__ = "0.1.0"
