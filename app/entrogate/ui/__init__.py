"""What the viewer shows: pages from what is stored, without asking anything of anybody.

Pure: dictionaries in, HTML out. The routes are in `serve.viewer`.
"""
