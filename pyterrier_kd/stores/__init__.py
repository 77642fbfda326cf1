"""Document representations on disk, computed once: stores, and what ranks and retrieves from them."""

from .documents import DocumentStore

__all__ = ["DocumentStore"]
