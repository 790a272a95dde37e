"""Tool server: text search, image search, crop and judge over HTTP, for agents that look and
search.
"""
