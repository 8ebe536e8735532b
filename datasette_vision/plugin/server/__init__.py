"""What the plugin is to a Datasette: its state and activity, permissions, both lines of Datasette, start and end."""
