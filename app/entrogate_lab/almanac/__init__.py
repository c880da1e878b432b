"""The Almanac: a synthetic world, its tools, a tiny model of it, an agent and an evaluation."""
