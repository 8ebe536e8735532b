"""Requests and responses: bodies, limits, fairness, streaming. What a route computes is elsewhere."""
