"""Conformance client: checks the promises of the documentation on live topics.

It knows only messages and docs: nothing here imports the code that the nodes run.
"""
