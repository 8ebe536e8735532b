"""The plugin's state for a Datasette: activity, permissions, differences between 0.65 and 1.0, startup and shutdown."""
