"""The commands of `datasette vision`, a module for each group. No work is done here: options in, a report out."""
