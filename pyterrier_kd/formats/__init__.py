"""Folders on disk and the weights in them; no ranker is known here."""
