"""Which weights answer: routing by share, and the turns that hold each version in use."""
