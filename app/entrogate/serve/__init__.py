"""One turn from request to record: routes, linkage, the gate's carrying out, the app factory."""
