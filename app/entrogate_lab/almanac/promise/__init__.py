"""Does the promise of a calibrated policy hold? Experiments on the Almanac (docs/promise.md)."""
