"""Copies of releases and extensions in a folder, for sites without a network and for web servers of one's own."""
