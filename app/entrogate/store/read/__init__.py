"""Reading: pages, one trajectory, decisions and their replay, what has settled."""
