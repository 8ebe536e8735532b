"""The commands of `datasette vision`, a module for each group. They only read options and print reports."""
