"""Proteins and structures in, alignments out."""
