"""Statistics with guarantees: pure functions over counts and arrays, numpy and `math` alone."""
