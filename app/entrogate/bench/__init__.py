"""The old place of `entrogate_lab.bench`. Only `upstream` is kept; it needs entrogate-lab."""
