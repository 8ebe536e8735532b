"""Requests and responses: bodies, limits, fairness, answers. What a route computes is not here."""
