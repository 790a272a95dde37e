"""Processes that read hostile files for the server: within limits of time and memory, killed beyond
them.
"""
