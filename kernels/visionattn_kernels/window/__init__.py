"""The window rule, and tables and tiles made of it; torch alone, no attention."""

from visionattn_kernels.window.rule import BOUNDARIES, AxisWindow, BoolOrPair, Boundary, IntOrPair, Window
from visionattn_kernels.window.tables import AxisTables, tabulate_axis
from visionattn_kernels.window.tiles import TiledMap, TilePlan, choose_strip, choose_tile, plan_tiles, tile_axis

__all__ = [
    "BOUNDARIES", "AxisTables", "AxisWindow", "BoolOrPair", "Boundary", "IntOrPair", "TilePlan",
    "TiledMap", "Window", "choose_strip", "choose_tile", "plan_tiles", "tabulate_axis", "tile_axis",
]  # fmt: skip
