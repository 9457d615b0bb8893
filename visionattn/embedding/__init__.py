"""Features of image files by any model, and search among them.

`embed` returns the features of images, `embed_to_file` writes them. `search` finds the images of a folder that are most
similar to others, with an `Index` of their features that is kept in a file.
"""

from typing import TYPE_CHECKING

from visionattn.lazy import lazy_exports

if TYPE_CHECKING:
    from visionattn.embedding.embedder import Embedder, Extracted, embed, embed_to_file
    from visionattn.embedding.files import Embeddings
    from visionattn.embedding.gallery import Hit, SearchResult, search
    from visionattn.embedding.index import Changes, Index

__all__ = [
    "Changes", "Embedder", "Embeddings", "Extracted", "Hit", "Index", "SearchResult", "embed", "embed_to_file",
    "search",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "embedder": "Embedder Extracted embed embed_to_file",
        "files": "Embeddings",
        "gallery": "Hit SearchResult search",
        "index": "Changes Index",
    },
)
