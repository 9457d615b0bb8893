"""NATTEN's Python interface of the releases 0.14 to 0.17, on the operators of this library.

Code that was written for it runs with one changed import: `import visionattn_kernels.compat.natten as natten`, or
`from visionattn_kernels.compat.natten.functional import natten2dqkrpb, natten2dav`. For code that cannot be edited,
call `install_as_natten()` first.
"""

from visionattn_kernels.compat.natten import context, functional, types, utils
from visionattn_kernels.compat.natten.context import *  # noqa: F403
from visionattn_kernels.compat.natten.install import VERSION, install_as_natten
from visionattn_kernels.compat.natten.modules import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
    use_defaults_of,
)

__version__ = VERSION

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "context",
    "functional",
    "install_as_natten",
    "types",
    "use_defaults_of",
    "utils",
]
__all__ += context.__all__
