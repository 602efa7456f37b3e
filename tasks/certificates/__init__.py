"""Certificates: design → layout → PDF; storage; records."""
