"""Administration: API keys, copies, migrations, retention."""
