"""`datasette vision check`: a checklist for operators of public servers."""
